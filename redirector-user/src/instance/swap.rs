//! The other policy slot: a policy, or the namespace as it is now, is written into the slot that is not in
//! force. One write to META then swaps, so each connection is decided under the old state or under the new one.

use super::lock::WriteLock;
use super::maps::{Instance, Phase};
use super::record::{self, Record};
use super::{detach, drain, links, listeners, surroundings};
use crate::base::error::{Context, Error, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::compile::tables;
use crate::pod::Target;
use crate::policy::{Mode, Policy};
use crate::programs::hooks;
use crate::routes::RouteSnapshot;
use crate::sys::bpf;
use redirector_common::abi::{ActiveWord, Meta, Slot};

/// Attaches anew what somebody has detached behind our back; says what.
pub(super) fn repair(
    instance: &Instance,
    slot: Slot,
    target: &Target,
    policy: &Policy,
) -> Result<Vec<String>> {
    let in_force = record::read(&instance.dir, slot).map_or_else(|_| policy.clone(), |record| record.policy);
    let mut missing = Vec::new();
    for hook in hooks::wanted(&in_force) {
        if links::is_missing(&instance.dir, &hook)? {
            missing.push(hook.short());
        }
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    links::attach_wanted(&instance.dir, target, &in_force).map_err(|e| {
        Error::failed(format!("the instance {} is damaged; detach it and attach again: {e}", instance.name))
    })?;
    Ok(vec![format!("attached again what had been detached: {}", missing.join(", "))])
}

pub(super) fn active_slot(instance: &Instance) -> Result<Slot> {
    let meta = instance.meta()?;
    match Phase::of(&meta) {
        Phase::Active(slot) => Ok(slot),
        Phase::Draining => Err(drain::is_draining(&instance.name, &meta)),
        Phase::Inert => Err(Error::failed(format!(
            "the instance {} was left half-made or half-removed by a command that was killed",
            instance.name
        ))
        .usage("`redirector list` sweeps it")),
    }
}

pub(super) fn swap(
    mut instance: Instance,
    old: Slot,
    target: &Target,
    record: &Record,
    _lock: &WriteLock,
) -> Result<(Vec<String>, RouteSnapshot)> {
    let policy = &record.policy;
    let new = old.other();
    let counted = IdMappedPolicy::new(policy, target)?;
    let mut meta = instance.meta()?;
    let flags = meta.flags;
    let before = record::read(&instance.dir, old).map(|record| record.policy);
    if let Err(e) = &before
        && surroundings::needs_old(&meta, policy)
    {
        return Err(Error::failed(format!(
            "what TPROXY mode has changed cannot be taken back without the record of its mark and table; detach the \
             instance {} and attach again: {e}",
            instance.name
        )));
    }
    let mut tables = instance.tables()?;
    let done = prepare(&mut instance, &mut meta, new, target, (record, &counted)).and_then(|prepared| {
        instance.set_meta(&Meta { active: ActiveWord::of(new), ..meta }).map(|()| prepared)
    });
    let (mut notes, facts) = match done {
        Ok(prepared) => prepared,
        Err(e) => {
            surroundings::take_back(&mut instance, &mut meta, target, policy, flags);
            // What cannot be cleared now is cleared by the next change.
            let _ = listeners::clear(&instance, new);
            let _ = tables::clear(&mut tables, new);
            let _ = record::remove(&instance.dir, new);
            return Err(e);
        }
    };
    meta.active = ActiveWord::of(new);

    // It is done: what goes wrong from here on is no failure of the change.
    // Listeners that appeared meanwhile were registered under the old policy.
    match listeners::register(&instance, target, policy, new) {
        Ok(more) => notes.extend(more),
        Err(e) => {
            notes.push(format!("the proxy's newest listeners may not be registered: {e}; run `refresh`"))
        }
    }
    bpf::wait_for_programs();
    if before.as_ref().is_ok_and(|before| before.mode == Mode::Tproxy && policy.mode != Mode::Tproxy)
        && instance.live().is_ok_and(|live| live > 0)
    {
        notes.push(detach::BROKEN_BY_LEAVING_TPROXY.into());
    }
    if let Ok(before) = &before
        && let Err(e) = surroundings::leave(&mut instance, &mut meta, target, before, policy)
    {
        notes.push(e.on_command_line());
    }
    let cleared = listeners::clear(&instance, old)
        .and_then(|()| tables::clear(&mut tables, old))
        .and_then(|()| record::remove(&instance.dir, old))
        .and_then(|()| links::detach_unwanted(&instance, policy));
    if let Err(e) = cleared {
        notes.push(format!("what the old policy had is not wholly cleared: {e}; the next change does it"));
    }
    Ok((notes, facts))
}

/// Makes everything a policy needs, in the slot that is not in force; returns remarks, and the facts. `counted` is the
/// policy with the kernel's numbers.
fn prepare(
    instance: &mut Instance,
    meta: &mut Meta,
    new: Slot,
    target: &Target,
    (record, counted): (&Record, &IdMappedPolicy),
) -> Result<(Vec<String>, RouteSnapshot)> {
    let policy = &record.policy;
    // A command that was killed half-way may have left something in the slot.
    let mut tables = instance.tables()?;
    tables::clear(&mut tables, new)?;
    record::write(&instance.dir, new, record)?;
    let mut facts = surroundings::facts(target)?;
    let needs = surroundings::foresee(policy, &mut facts);
    let compiled = counted.compile(&facts);
    if compiled.policy.flags & !meta.program_flags != 0 {
        // Other programs for the same policy; only then the other policy, and what it needs.
        let flags = meta.program_flags | compiled.policy.flags;
        links::replace_programs(instance, target, flags)?;
        record::write(&instance.dir, new, &Record::of(target, policy))?;
        instance.set_meta(&Meta { program_flags: flags, ..*meta })?;
        meta.program_flags = flags;
    }
    surroundings::apply(instance, meta, target, policy, needs)?;
    compiled.write(&mut tables, new)?;
    instance.policies()?.set(new.index(), compiled.policy, 0).context(|| "write POLICIES".into())?;
    listeners::clear(instance, new)?;
    listeners::register(instance, target, policy, new)?;
    // A hook that only the new policy needs does nothing under the old one.
    links::attach_wanted(&instance.dir, target, policy)?;
    Ok((surroundings::remarks(policy, &facts), facts))
}
