//! Changing what an active instance does: another policy, or new facts of its namespace.
//!
//! Both are written into the policy slot that is not in force. One write to META then swaps,
//! so each connection is decided under the old state or under the new one.

use super::attach::{Outcome, PASSTHROUGH_V6, mirror_failed, link_hooks, needs_lo6, read_mirror, record_of};
use super::lock::WriteLock;
use super::root::Root;
use super::state::{Instance, Phase};
use super::tables::{self, Compiled};
use super::{hooks, listeners, record};
use crate::config::Policy;
use crate::error::{Context, Error, Result};
use crate::mirror;
use crate::sys::bpf;
use crate::target::Target;
use aya::maps::MapInfo;
use redirector_common::abi::{meta_flag, name};
use std::os::fd::AsFd;

/// Gives an instance a policy; nothing happens if it has an equal one.
pub(super) fn change(
    instance: Instance,
    target: &Target,
    policy: &Policy,
    lock: &WriteLock,
) -> Result<(Outcome, Vec<String>)> {
    let slot = active_slot(&instance)?;
    if record::read(&instance.dir, slot)?.policy == *policy {
        return Ok((Outcome::Unchanged, Vec::new()));
    }
    let room = MapInfo::from_pin(instance.dir.join(name::ORIGINAL_DST))
        .context(|| "read the size of ORIGINAL_DST".into())?
        .max_entries();
    if policy.max_connections >= room {
        return Err(Error::Input(format!(
            "--max-connections {} is more than the instance was made for; detach it and attach again",
            policy.max_connections
        )));
    }
    let notes = swap(instance, slot, target, policy, lock)?;
    Ok((Outcome::Changed, notes))
}

/// Reads addresses, routes, interfaces and listeners anew under the same policy.
pub fn refresh(root: &Root, name: &str) -> Result<Vec<String>> {
    let instance = Instance::open(root, name)?;
    let lock = WriteLock::take(root)?;
    let slot = active_slot(&instance)?;
    let record = record::read(&instance.dir, slot)?;
    let target = Target::of_paths(&record.netns, &record.cgroup)?;
    if target.netns.cookie != instance.meta()?.netns_cookie {
        return Err(Error::Failed(format!(
            "{} is another network namespace now; detach the instance {name}",
            record.netns.display()
        )));
    }
    swap(instance, slot, &target, &record.policy, &lock)
}

fn active_slot(instance: &Instance) -> Result<u32> {
    match Phase::of(&instance.meta()?) {
        Phase::Active(slot) => Ok(slot),
        phase => Err(Error::Failed(format!("the instance {} is not active ({phase:?})", instance.name))),
    }
}

fn swap(
    mut instance: Instance,
    old: u32,
    target: &Target,
    policy: &Policy,
    _lock: &WriteLock,
) -> Result<Vec<String>> {
    let new = 1 - old;
    let mut meta = instance.meta()?;
    let mut facts = read_mirror(target)?;
    if policy.ipv6 && needs_lo6(&facts) {
        // Noted before it is done, so that whoever cleans up after us knows.
        meta.flags |= meta_flag::ADDED_LO6;
        instance.set_meta(&meta)?;
        mirror::add_loopback_address(target.netns.as_fd(), PASSTHROUGH_V6).map_err(mirror_failed)?;
        facts = read_mirror(target)?;
    }
    let compiled = Compiled::new(policy, &facts);
    let mut tables = instance.tables()?;
    // A command that was killed half-way may have left something in the slot.
    tables::clear(&mut tables, new)?;
    compiled.write(&mut tables, new)?;
    instance.policies()?.set(new, compiled.policy, 0).context(|| "write POLICIES".into())?;
    record::write(&instance.dir, new, &record_of(target, policy))?;
    listeners::clear(&instance, new)?;
    listeners::register(&instance, target, policy, new)?;

    // A hook that only the new policy needs does nothing under the old one.
    link_hooks(&instance.dir, target, policy)?;
    meta.active = new + 1;
    instance.set_meta(&meta)?;

    // Listeners that appeared meanwhile were registered under the old policy.
    let notes = listeners::register(&instance, target, policy, new)?;
    bpf::wait_for_programs();
    listeners::clear(&instance, old)?;
    tables::clear(&mut tables, old)?;
    record::remove(&instance.dir, old)?;
    unlink_hooks(&instance, policy)?;
    Ok(notes)
}

/// Detaches the hooks that the policy does not need.
fn unlink_hooks(instance: &Instance, policy: &Policy) -> Result<()> {
    for hook in hooks::ALL.iter().filter(|hook| !hook.wanted(policy)) {
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
