//! Programs of others that stand in the way of an instance.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use crate::base::error::{Context, Error, Result};
use crate::pod::Target;
use crate::pod::cgroup;
use crate::programs::hooks::Hook;
use crate::sys::bpf::AttachType;
use crate::sys::program_query::{self, Attached};

/// The links of an instance that has just been removed are freed in the background.
const FREED_WITHIN: Duration = Duration::from_secs(2);
const FREED_STEP: Duration = Duration::from_millis(20);

/// Refuses a namespace at which an instance works that this bpffs does not know: its pins are in another one, or in one
/// that has been mounted over.
///
/// # Errors
///
/// [`Error::input`] with the program.
pub(super) fn refuse_second(target: &Target) -> Result<()> {
    let what = || format!("ask what is attached to {}", target.netns_path.display());
    let mut left = FREED_WITHIN;
    loop {
        let ids = program_query::attached(target.netns.as_fd(), AttachType::SkLookup).context(what)?.ids;
        // ENOENT: it has been unloaded meanwhile.
        let is_ours = |id: &&u32| program_query::name(**id).is_ok_and(|name| name == "rd_sk_lookup");
        let Some(id) = ids.iter().find(is_ours) else { return Ok(()) };
        if left.is_zero() {
            return Err(Error::input(format!(
                "another instance of redirector works at {} (program {id}), which this bpffs does not know",
                target.netns_path.display()
            ))
            .remedy("detach it with the bpffs that it was attached with; a bpffs that is mounted over it has to be unmounted first"));
        }
        std::thread::sleep(FREED_STEP);
        left = left.saturating_sub(FREED_STEP);
    }
}

/// Refuses to switch off a foreign program. One that is attached without BPF_F_ALLOW_MULTI to our cgroup or above
/// either forbids ours (`hierarchy_allows_attach`), or, with BPF_F_ALLOW_OVERRIDE, runs no more for the cgroups below that
/// have one of their own (`compute_effective_progs`).
///
/// # Errors
///
/// [`Error::input`] with the program.
pub(super) fn refuse_override(target: &Target, hook: &Hook) -> Result<()> {
    const ALLOW_OVERRIDE: u32 = 1;
    const ALLOW_MULTI: u32 = 2;
    let path = &target.cgroup.path;
    let running = program_query::effective(target.cgroup.as_fd(), hook.at);
    // Where none runs none is attached, there or above.
    if running.context(|| format!("ask what runs at {}", path.display()))?.is_empty() {
        return Ok(());
    }
    let root = cgroup::mount()?;
    for dir in path.ancestors().take_while(|dir| dir.starts_with(&root)) {
        let Attached { ids, flags } = attached(dir, hook)?;
        let Some(id) = ids.first() else { continue };
        if flags & ALLOW_MULTI != 0 {
            break;
        }
        let name = program_query::name(*id).unwrap_or_default();
        let effect = if flags & ALLOW_OVERRIDE != 0 && dir != *path {
            "with BPF_F_ALLOW_OVERRIDE, and would run no more for the pod"
        } else {
            "without BPF_F_ALLOW_MULTI, which forbids every other there and below"
        };
        return Err(Error::input(format!(
            "the program {id} {name:?} of somebody else is attached at {} of the cgroup {} {effect}",
            hook.short(),
            dir.display()
        ))
        .remedy(format!(
            "attach that program with BPF_F_ALLOW_MULTI; see whose it is: bpftool prog show id {id}"
        )));
    }
    Ok(())
}

fn attached(dir: &Path, hook: &Hook) -> Result<Attached> {
    let what = || format!("ask what is attached to {}", dir.display());
    let cgroup = File::open(dir).context(what)?;
    program_query::attached(cgroup.as_fd(), hook.at).context(what)
}
