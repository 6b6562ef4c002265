//! What an instance changes in its namespace beside its hooks: made and taken back by [`netdev`], noted in META.

use std::path::Path;

use redirector_common::abi::{Meta, Slot, meta_flag};

use super::maps::Instance;
use super::phase::Phase;
use super::record::{self, Record};
use super::{find, listeners};
use crate::base::error::{Context, Error, Result};
use crate::netdev::{self, Journal, Needs, time_wait};
use crate::pod::Target;
use crate::pod::cgroup::Cgroup;
use crate::policy::{Mode, Policy};
use crate::programs::hooks::GUEST_PIN;
use crate::sys::bpf;

impl Journal for Instance {
    fn noted(&self) -> Result<u32> {
        Ok(self.meta()?.flags & netdev::ALL_CHANGES)
    }

    fn note(&mut self, changes: u32) -> Result<()> {
        let meta = self.meta()?;
        self.set_meta(&Meta { flags: meta.flags & !netdev::ALL_CHANGES | changes, ..meta })
    }
}

/// Writes the record of a slot and, unless that is done, bounds the namespace's TIME_WAIT sockets, which the record notes; says why
/// they could not be bounded.
pub(super) fn write_record(
    dir: &Path,
    slot: Slot,
    target: &Target,
    record: &mut Record,
) -> Result<Option<String>> {
    if record.time_wait.is_some() || !time_wait::is_wanted(&record.policy) {
        return record::write(dir, slot, record).map(|()| None);
    }
    let refused = time_wait::lower(&target.netns, |change| {
        record.time_wait = change;
        record::write(dir, slot, record)
    })?;
    Ok(refused.map(|e| format!("connections from outside to every port may use up the pod's own ports: {e}")))
}

/// Makes the changes a policy needs; all of them or none. The policy's record must have been written, for whoever cleans
/// up.
pub(super) fn apply(instance: &mut Instance, target: &Target, policy: &Policy, needs: Needs) -> Result<()> {
    let pin = instance.dir.join(GUEST_PIN);
    let before = instance.noted()?;
    let open = || bpf::obj_get(&pin).context(|| format!("open the program {}", pin.display()));
    let result = netdev::apply(&target.netns, instance, policy, needs, open);
    if result.is_err() {
        take_back(instance, target, policy, before);
    }
    result
}

/// Takes back what was changed since `before` for a policy that does not come into force, as far as possible.
pub(super) fn take_back(instance: &mut Instance, target: &Target, policy: &Policy, before: u32) {
    netdev::take_back(&target.netns, instance, policy, before);
    let _ = trim(instance, target);
}

/// Takes back what virtual interfaces have needed, but not under the policy in force.
fn trim(instance: &mut Instance, target: &Target) -> Result<()> {
    let noted = instance.noted()?;
    if noted & meta_flag::VIRTUAL == 0 {
        return Ok(());
    }
    let in_force = match Phase::of(&instance.meta()?) {
        Phase::Active(slot) => match record::read(&instance.dir, slot) {
            Ok(record) => Some(record.policy),
            Err(_) => return Ok(()), // Nobody knows; whoever writes it again comes by here.
        },
        Phase::Inert | Phase::Draining => None,
    };
    netdev::keep_virtual_interfaces(&target.netns, in_force.as_ref())?;
    if in_force.is_none_or(|policy| policy.virtual_interfaces.is_empty()) {
        listeners::clear_transparent(
            instance,
            &target.netns,
            &target.cgroup,
            &outbound_ports(&record::all(&instance.dir)?),
        )?;
        instance.note(noted & !meta_flag::VIRTUAL)?;
    }
    Ok(())
}

/// Of the policy in force, and of one that is coming or going.
fn outbound_ports(records: &[Record]) -> Vec<u16> {
    records.iter().map(|record| record.policy.outbound_port).collect()
}

/// Takes back what a change of policy that was killed has left of TPROXY mode, while the policy
/// in force is not of that mode, and of virtual interfaces.
pub(super) fn settle(instance: &mut Instance, target: &Target, slot: Slot) -> Result<()> {
    trim(instance, target)?;
    let policy_in = |slot| record::read(&instance.dir, slot).map(|record| record.policy);
    if instance.noted()? & netdev::TPROXY != 0
        && let (Ok(in_force), Ok(left)) = (policy_in(slot), policy_in(slot.other()))
        && (in_force.mode, left.mode) == (Mode::Redirect, Mode::Tproxy)
    {
        netdev::leave_tproxy(&target.netns, instance, &left)?;
    }
    Ok(())
}

/// Whether [`leave`] cannot do without the old policy.
pub(super) fn needs_old(instance: &Instance, new: &Policy) -> Result<bool> {
    Ok(new.mode != Mode::Tproxy && instance.noted()? & netdev::TPROXY != 0)
}

/// Takes back what only the old policy needed.
pub(super) fn leave(instance: &mut Instance, target: &Target, old: &Policy, new: &Policy) -> Result<()> {
    if needs_old(instance, new)? {
        netdev::leave_tproxy(&target.netns, instance, old)?;
    }
    trim(instance, target)
}

/// TPROXY's mark and table cannot be exchanged while connections depend on them.
pub(super) fn check_change(old: &Policy, new: &Policy) -> Result<()> {
    let both = old.mode == Mode::Tproxy && new.mode == Mode::Tproxy;
    if both && (old.tproxy_mark, old.tproxy_table) != (new.tproxy_mark, new.tproxy_table) {
        return Err(Error::input(
            "the mark (-t) and the table (-r) of TPROXY mode cannot be changed while attached",
        )
        .remedy("detach first"));
    }
    Ok(())
}

/// Takes back everything that META says was changed; returns what could not be. No error: the
/// namespace may be gone, and with it all of it.
pub(super) fn restore(dir: &Path, meta: &Meta) -> Vec<String> {
    let noted = meta.flags & netdev::ALL_CHANGES;
    // A namespace that is gone has taken all of it with it. Before 5.14 a later one may have its number, and be found in its
    // place.
    if find::netns_is_gone(dir, meta) {
        return Vec::new();
    }
    // Two, if a change of policy was killed.
    let found = record::all(dir).and_then(|records| {
        let netns = records.iter().find_map(|record| find::netns_of(record, meta).transpose()).transpose()?;
        Ok((records, netns))
    });
    let (records, netns) = match found {
        Ok((records, Some(netns))) => (records, netns),
        Ok((_, None)) => return Vec::new(),
        Err(e) => {
            return vec![format!("what was changed in the network namespace could not be taken back: {e}")];
        }
    };
    let policies: Vec<&Policy> = records.iter().map(|record| &record.policy).collect();
    let mut left = netdev::restore(&netns, noted, &policies);
    if let Some(change) = records.iter().find_map(|record| record.time_wait)
        && let Err(e) = time_wait::restore(&netns, change)
    {
        left.push(format!("net.ipv4.tcp_max_tw_buckets is not {} again: {e}", change.before));
    }
    // Without a cgroup there is no process, and no listener.
    if noted & meta_flag::VIRTUAL != 0
        && let Some(cgroup) = records.first().and_then(|record| Cgroup::open(&record.cgroup).ok())
        && let Err(e) = Instance::open_unchecked(dir, "").and_then(|instance| {
            listeners::clear_transparent(&instance, &netns, &cgroup, &outbound_ports(&records))
        })
    {
        left.push(format!("the proxy's listeners stay transparent: {e}"));
    }
    left
}

/// The same for an instance whose META is lost: nobody knows whether there is anything to take back.
pub(super) fn unknown(dir: &Path) -> Option<String> {
    let record = record::all(dir).ok()?.into_iter().next()?;
    let all = netdev::possible_changes(&record.policy);
    (!all.is_empty()).then(|| {
        format!(
            "nobody knows whether they were attach's doing, so these are as they were in {}: {}",
            record.netns.display(),
            all.join("; ")
        )
    })
}
