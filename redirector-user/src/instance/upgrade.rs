//! upgrade: swaps other programs into the links of an instance, of this version or for more features.

use std::os::fd::BorrowedFd;

use redirector_common::abi::{meta_flag, name};

use super::maps::Instance;
use crate::base::error::{Context, Error, Result};
use crate::kernel::{Kernel, Subject};
use crate::pod::Target;
use crate::programs::hooks;
use crate::programs::object::{Loaded, Maps};
use crate::sys::bpf::{self, Link};

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
