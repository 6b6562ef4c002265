//! change: another policy for an active instance.

use aya::maps::MapInfo;
use redirector_common::abi::name;

use super::lock::WriteLock;
use super::maps::Instance;
use super::record::{self, Record};
use super::request::{Attached, Outcome, Request};
use super::swap::{Swap, repair};
use super::{journal, telling};
use crate::base::error::{Context, Error, Result};
use crate::policy::Policy;

/// Gives an instance a policy; nothing happens if it has an equal one, and then the namespace is not read.
pub(super) fn change(mut instance: Instance, request: &Request<'_>, lock: &WriteLock) -> Result<Attached> {
    let Request { target, policy: mapped, .. } = *request;
    let policy = &mapped.policy;
    let slot = instance.active_slot()?;
    let before = record::find(&instance.dir, slot)?;
    if let Some(record) = &before {
        journal::check_change(&record.policy, policy)?;
    }
    journal::settle(&mut instance, target, slot)?;
    telling::mend_locked(&mut instance, lock)?;
    let repairs = repair(&mut instance, slot, target, policy)?;
    // The same path may lead to another cgroup of the proxy by now.
    let same_proxy = mapped.proxy_cgroup() == instance.policy(slot)?.proxy_cgroup;
    // While a hook was away listeners may have come that nobody has registered. Without its record nobody knows the
    // policy in force: it is written again.
    let as_it_was = same_proxy && repairs.is_empty();
    if as_it_was && before.as_ref().is_some_and(|record| record.policy == *policy) {
        return Ok(Attached { outcome: Outcome::Unchanged, repaired: false, notes: repairs, routes: None });
    }
    check_capacity(&instance, policy)?;
    let mut record = Record::of(target, policy);
    if let Some(before) = before {
        record.programs = before.programs;
        record.time_wait = before.time_wait;
        // A change by hand does not name the pod.
        record.pod = record.pod.or(before.pod);
    }
    let swapped = Swap { instance, target, record, mapped, snapshot: None }.run(slot, lock)?;
    let repaired = !repairs.is_empty();
    let notes = repairs.into_iter().chain(swapped.notes).collect();
    Ok(Attached { outcome: Outcome::Changed, repaired, notes, routes: Some(swapped.routes) })
}

/// The maps cannot grow.
fn check_capacity(instance: &Instance, policy: &Policy) -> Result<()> {
    // FLOWS has more entries than it was made for.
    fits(instance, name::FLOWS, "--max-connections", policy.max_connections.saturating_add(1))?;
    fits(instance, name::ORIGINAL_DST, "--max-destinations", policy.max_destinations)
}

/// Whether a map of the instance has room for what an option allows.
fn fits(instance: &Instance, map: &str, option: &str, wanted: u32) -> Result<()> {
    let path = instance.dir.join(map);
    let info = MapInfo::from_pin(&path);
    let entries = info.context(|| format!("read the size of {}", path.display()))?.max_entries();
    if wanted <= entries {
        return Ok(());
    }
    let why =
        format!("{option} is more than the instance was made for (its map {map} has room for {entries})");
    Err(Error::input(why).remedy("detach it and attach again"))
}
