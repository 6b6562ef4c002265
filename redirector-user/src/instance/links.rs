//! The links of an instance: attaching its programs, swapping them, detaching them.

use super::maps::Instance;
use crate::base::error::{Context, Error, Result};
use crate::kernel::{Kernel, Subject};
use crate::pod::Target;
use crate::policy::Policy;
use crate::programs::hooks::{self, Hook};
use crate::programs::object::{Loaded, Maps};
use crate::sys::bpf::{self, Link};
use redirector_common::abi::{meta_flag, name};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Whether a hook is without its link. One that somebody has detached (BPF_LINK_DETACH) keeps its pin, and has no target.
///
/// # Errors
///
/// If the kernel does not say: a link that works must not be taken for one that does not.
pub(super) fn is_missing(dir: &Path, hook: &Hook) -> Result<bool> {
    let pin = dir.join(hook.link_pin());
    if !pin.exists() {
        return Ok(true);
    }
    let info = Link::open(&pin).and_then(|link| link.info());
    Ok(info.context(|| format!("inspect the link {}", pin.display()))?.target == 0)
}

/// Whether every link that is pinned is without its target, whatever version has made them.
pub(super) fn are_dead(dir: &Path) -> bool {
    let there = |hook: &&Hook| dir.join(hook.link_pin()).exists();
    hooks::ALL.iter().filter(there).all(|hook| is_missing(dir, hook).unwrap_or(false))
}

/// Attaches the pinned programs of the hooks that the policy needs and that are not attached.
pub(super) fn attach_missing(dir: &Path, target: &Target, policy: &Policy) -> Result<()> {
    for hook in hooks::needed_by(policy) {
        let pin = dir.join(hook.link_pin());
        if pin.exists() {
            if !is_missing(dir, &hook)? {
                continue;
            }
            std::fs::remove_file(&pin).context(|| format!("remove the dead link {}", pin.display()))?;
        }
        let path = dir.join(hook.program_pin());
        let program = bpf::obj_get(&path).context(|| format!("open the program {}", path.display()))?;
        let (to, what) = if hook.netns {
            (target.netns.as_fd(), format!("the network namespace {}", target.netns_path.display()))
        } else {
            (target.cgroup.as_fd(), format!("the cgroup {}", target.cgroup.path.display()))
        };
        let link = Link::create(program.as_fd(), to, hook.at)
            .context(|| format!("attach {} ({:?}) to {what}", hook.program, hook.at))?;
        link.pin(&pin).context(|| format!("pin the link {}", pin.display()))?;
    }
    Ok(())
}

/// Swaps in programs that were loaded for more flags, link by link: each does what the one it
/// replaces does, so it does not matter where this is interrupted.
pub(super) fn replace_programs(instance: &Instance, target: &Target, flags: u32) -> Result<()> {
    // The loader would make what is missing again, and programs with other maps would be mixed.
    if let Some(map) = name::MAPS.iter().find(|map| !instance.dir.join(map).exists()) {
        return Err(Error::failed(format!(
            "the instance {} is damaged: {} is missing",
            instance.name,
            instance.dir.join(map).display()
        ))
        .remedy("detach it and attach again"));
    }
    let trace = instance.meta()?.flags & meta_flag::TRACE != 0;
    let kernel = Kernel::probe()?;
    kernel.require(flags)?;
    let constants = kernel.constants(Subject::of(target), flags);
    let loaded = Loaded::new(&constants, Maps::Of(&instance.dir), trace, hooks::ALL.into_iter())?;
    for hook in hooks::ALL {
        // Those that are not attached too: a later policy may need them, under the same flags.
        replace(instance, hook.program, &hook.program_pin(), &loaded, |program| {
            let link = instance.dir.join(hook.link_pin());
            if !link.exists() {
                return Ok(());
            }
            Link::open(&link)
                .and_then(|link| link.update(program))
                .context(|| format!("replace the program of {}", link.display()))
        })?;
    }
    if hooks::has_guests(flags) {
        // Attached with the next policy.
        replace(instance, hooks::GUEST, hooks::GUEST_PIN, &loaded, |_| Ok(()))?;
    }
    Ok(())
}

/// Pins another program, which `swap` lets run.
fn replace(
    instance: &Instance,
    name: &str,
    pin: &str,
    loaded: &Loaded,
    swap: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    let program = loaded.program(name)?;
    let (pin, next) = (instance.dir.join(pin), instance.dir.join(format!("{pin}_new")));
    let _ = std::fs::remove_file(&next);
    bpf::obj_pin(program, &next).context(|| format!("pin the program {}", next.display()))?;
    swap(program)?;
    std::fs::rename(&next, &pin).context(|| format!("rename {} to {}", next.display(), pin.display()))
}

/// Detaches the hooks that the policy does not need.
pub(super) fn detach_unneeded(instance: &Instance, policy: &Policy) -> Result<()> {
    for hook in hooks::ALL.iter().filter(|hook| !hook.is_needed_by(policy)) {
        let path = instance.dir.join(hook.link_pin());
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
