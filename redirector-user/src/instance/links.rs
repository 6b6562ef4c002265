//! The links of an instance: attaching its programs, detaching them.

use std::os::fd::AsFd;
use std::path::Path;

use super::maps::Instance;
use super::others;
use crate::base::error::{Context, Result};
use crate::pod::Target;
use crate::policy::Policy;
use crate::programs::hooks::{self, Hook};
use crate::sys::bpf::{self, Link};

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
            others::refuse_override(target, &hook)?;
            (target.cgroup.as_fd(), format!("the cgroup {}", target.cgroup.path.display()))
        };
        let link = Link::create(program.as_fd(), to, hook.at)
            .context(|| format!("attach {} ({:?}) to {what}", hook.program, hook.at))?;
        link.pin(&pin).context(|| format!("pin the link {}", pin.display()))?;
    }
    Ok(())
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
