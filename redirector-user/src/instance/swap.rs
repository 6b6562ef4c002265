//! The other policy slot: a policy, or the namespace as it is now, is written into the slot that is not in
//! force. One write to META then swaps, so each connection is decided under the old state or under the new one.

use redirector_common::abi::{Meta, Slot};

use super::lock::WriteLock;
use super::maps::Instance;
use super::record::{self, Record};
use super::{connections, detach, journal, links, listeners, own_maps, upgrade};
use crate::base::error::{Error, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::compile::tables;
use crate::netdev::{self, Journal as _, time_wait};
use crate::pod::Target;
use crate::policy::{Mode, Policy};
use crate::programs::hooks;
use crate::routes::{self, RouteSnapshot};
use crate::sys::bpf;

/// Makes again what somebody has taken away behind our back, hooks and the instance's entry; says what.
pub(super) fn repair(
    instance: &mut Instance,
    slot: Slot,
    target: &Target,
    policy: &Policy,
) -> Result<Vec<String>> {
    let record = record::find(&instance.dir, slot)?;
    let in_force = record.map_or_else(|| policy.clone(), |record| record.policy);
    let mut missing = Vec::new();
    for hook in hooks::needed_by(&in_force) {
        if links::is_missing(&instance.dir, &hook)? {
            missing.push(hook.short());
        }
    }
    let mut notes = Vec::new();
    if own_maps::enter_again(instance)? {
        notes.push("the node's programs did not find the instance, and do again".to_owned());
    }
    if missing.is_empty() {
        return Ok(notes);
    }
    links::attach_missing(&instance.dir, target, &in_force).map_err(|e| {
        Error::failed(format!("the instance {} is damaged; detach it and attach again: {e}", instance.name))
    })?;
    notes.push(format!("attached again what had been detached: {}", missing.join(", ")));
    Ok(notes)
}

/// What comes into force.
pub(super) struct Swap<'a> {
    pub instance: Instance,
    pub target: &'a Target,
    pub record: Record,
    pub mapped: &'a IdMappedPolicy,
    /// The namespace, if somebody has read it already.
    pub snapshot: Option<RouteSnapshot>,
}

/// What has come into force.
pub(super) struct Swapped {
    pub notes: Vec<String>,
    pub routes: RouteSnapshot,
}

impl Swap<'_> {
    /// Brings it into force in place of what is in the slot `old`.
    pub(super) fn run(mut self, old: Slot, _lock: &WriteLock) -> Result<Swapped> {
        let new = old.other();
        let noted = self.instance.noted()?;
        let bounded = self.record.time_wait.is_some();
        let before = record::find(&self.instance.dir, old)?.map(|record| record.policy);
        if before.is_none() && journal::needs_old(&self.instance, &self.record.policy)? {
            return Err(Error::failed(format!(
                "what TPROXY mode of the instance {} has changed cannot be taken back without the record of its mark and \
                 table",
                self.instance.name
            ))
            .remedy("detach it and attach again"));
        }
        let prepared = self.prepare(new).and_then(|swapped| {
            self.instance.activate(new)?;
            Ok(swapped)
        });
        match prepared {
            Ok(mut swapped) => {
                self.finish(old, before.as_ref(), &mut swapped.notes);
                Ok(swapped)
            }
            Err(e) => {
                journal::take_back(&mut self.instance, self.target, &self.record.policy, noted);
                if !bounded && let Some(change) = self.record.time_wait {
                    let _ = time_wait::restore(&self.target.netns, change);
                }
                // What cannot be cleared now is cleared by the next change, which the record tells that there is something.
                let _ = listeners::clear(&self.instance, new)
                    .and_then(|()| tables::clear(&mut self.instance.tables()?, new))
                    .and_then(|()| record::remove(&self.instance.dir, new));
                Err(e)
            }
        }
    }

    /// Makes everything the policy needs, in the slot that is not in force.
    fn prepare(&mut self, new: Slot) -> Result<Swapped> {
        let Self { instance, target, record, mapped, snapshot } = self;
        let mut tables = instance.tables()?;
        // A command that was killed half-way has left its record, which goes last.
        if instance.dir.join(record::pin_name(new)).exists() {
            tables::clear(&mut tables, new)?;
            listeners::clear(instance, new)?;
        }
        let bound = journal::write_record(&instance.dir, new, target, record)?;
        let policy = &record.policy;
        let mut snapshot = match snapshot.take() {
            Some(snapshot) => snapshot,
            None => routes::read(&target.netns)?,
        };
        let needs = netdev::foresee(policy, &mut snapshot);
        let compiled = mapped.compile(&snapshot);
        let meta = instance.meta()?;
        if compiled.policy.flags & !meta.program_flags != 0 {
            // Other programs for the same policy; only then the other policy, and what it needs.
            let flags = meta.program_flags | compiled.policy.flags;
            upgrade::replace_programs(instance, flags)?;
            let (pod, time_wait) = (record.pod.clone(), record.time_wait);
            record::write(&instance.dir, new, &Record { pod, time_wait, ..Record::of(target, policy) })?;
            instance.set_meta(&Meta { program_flags: flags, ..instance.meta()? })?;
        }
        journal::apply(instance, target, policy, needs)?;
        compiled.write(&mut tables, new)?;
        instance.write_policy(new, compiled.policy)?;
        let listening = listeners::listening(target, policy)?;
        if let Some(before) = record::find(&instance.dir, new.other())? {
            listeners::carry_over(instance, policy, &before.policy, new, &listening)?;
        }
        listeners::register(instance, target, policy, new, listening, false)?;
        // A hook that only the new policy needs does nothing under the old one.
        links::attach_missing(&instance.dir, target, policy)?;
        let mut notes = netdev::without_effect(policy, &snapshot);
        notes.extend(bound);
        Ok(Swapped { notes, routes: snapshot })
    }

    /// The new policy is in force: what goes wrong from here on is no failure of the change.
    fn finish(&mut self, old: Slot, before: Option<&Policy>, notes: &mut Vec<String>) {
        let Self { instance, target, record: Record { policy, .. }, .. } = self;
        // Listeners that appeared meanwhile were registered under the old policy.
        let newest = listeners::listening(target, policy);
        match newest.and_then(|it| listeners::register(instance, target, policy, old.other(), it, false)) {
            Ok(more) => notes.extend(more),
            Err(e) => {
                notes.push(format!("the proxy's newest listeners may not be registered: {e}; run `refresh`"));
            }
        }
        bpf::wait_for_programs();
        if before.is_some_and(|before| before.mode == Mode::Tproxy && policy.mode != Mode::Tproxy)
            && connections::alive(instance, Some(&target.netns)).is_ok_and(|alive| alive > 0)
        {
            notes.push(detach::BROKEN_BY_LEAVING_TPROXY.into());
        }
        if let Some(before) = before
            && let Err(e) = journal::leave(instance, target, before, policy)
        {
            notes.push(e.on_command_line());
        }
        let cleared = listeners::clear(instance, old)
            .and_then(|()| tables::clear(&mut instance.tables()?, old))
            .and_then(|()| record::remove(&instance.dir, old))
            .and_then(|()| links::detach_unneeded(instance, policy));
        if let Err(e) = cleared {
            notes
                .push(format!("what the old policy had is not wholly cleared: {e}; the next change does it"));
        }
    }
}
