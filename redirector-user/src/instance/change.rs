//! change: another policy for an active instance.

use super::attach::Outcome;
use super::lock::WriteLock;
use super::maps::Instance;
use super::record::{self, Record};
use super::surroundings;
use super::swap::{active_slot, repair, swap};
use crate::base::error::{Context, Error, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::pod::Target;
use crate::policy::Policy;
use crate::routes::RouteSnapshot;
use aya::maps::MapInfo;
use redirector_common::abi::name;

/// Gives an instance a policy; nothing happens if it has an equal one, and then there are no facts.
pub(super) fn change(
    mut instance: Instance,
    target: &Target,
    policy: &Policy,
    lock: &WriteLock,
) -> Result<(Outcome, Vec<String>, Option<RouteSnapshot>)> {
    let slot = active_slot(&instance)?;
    let before = record::read(&instance.dir, slot).ok();
    if let Some(record) = &before {
        surroundings::check_change(&record.policy, policy)?;
    }
    surroundings::settle(&mut instance, target, slot)?;
    let repairs = repair(&instance, slot, target, policy)?;
    // Without its record nobody knows the policy in force: it is written anew.
    // The same path may lead to another cgroup of the proxy by now.
    let in_force = instance.policies()?.get(&slot.index(), 0).context(|| "read POLICIES".into())?;
    let same_proxy = IdMappedPolicy::new(policy, target)?.proxy_cgroup() == in_force.proxy_cgroup;
    // While a hook was away listeners may have come that nobody has registered.
    let as_it_was = same_proxy && repairs.is_empty();
    if as_it_was && before.as_ref().is_some_and(|record| record.policy == *policy) {
        return Ok((Outcome::Unchanged, repairs, None));
    }
    let exposed = instance.dir.join(name::ORIGINAL_DST);
    let room = MapInfo::from_pin(&exposed)
        .context(|| format!("read the size of {}", exposed.display()))?
        .max_entries();
    if policy.max_connections >= room {
        return Err(Error::input(format!(
            "--max-connections {} is more than the instance was made for",
            policy.max_connections
        ))
        .remedy("detach it and attach again"));
    }
    let mut notes = repairs;
    let programs = before.map(|record| record.programs).unwrap_or_default();
    let record = Record { programs, ..Record::of(target, policy) };
    let (more, facts) = swap(instance, slot, target, &record, lock)?;
    notes.extend(more);
    Ok((Outcome::Changed, notes, Some(facts)))
}
