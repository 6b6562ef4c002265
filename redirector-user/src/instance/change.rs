//! Changing what an active instance does: another policy, or new facts of its namespace.
//!
//! Both are written into the policy slot that is not in force. One write to META then swaps,
//! so each connection is decided under the old state or under the new one.

use super::find::target_of;
use super::lock::WriteLock;
use super::record::Record;
use super::root::Root;
use super::state::{Instance, Phase, no_instance};
use super::{detach, links, listeners, record, surroundings};
use crate::base::error::{Context, Error, Result};
use crate::compile::owners::Counted;
use crate::compile::tables;
use crate::pod::Target;
use crate::policy::{Mode, Policy};
use crate::programs::hooks;
use crate::routes::RouteSnapshot;
use crate::sys::bpf;
use aya::maps::MapInfo;
use redirector_common::abi::{Meta, name};

/// What attach came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new instance captures the target.
    Attached,
    /// The instance was there with an equal policy.
    Unchanged,
    /// The instance was there and has another policy now.
    Changed,
}

/// What a refresh or an upgrade came to.
#[derive(Debug)]
pub struct Renewed {
    /// Remarks.
    pub notes: Vec<String>,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Its addresses, routes and interfaces as they are in force now.
    pub facts: RouteSnapshot,
}

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
    let in_force = instance.policies()?.get(&slot, 0).context(|| "read POLICIES".into())?;
    let same_proxy = Counted::new(policy, target)?.proxy_cgroup() == in_force.proxy_cgroup;
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
        return Err(Error::Input(format!(
            "--max-connections {} is more than the instance was made for; detach it and attach again",
            policy.max_connections
        )));
    }
    let mut notes = repairs;
    let programs = before.map(|record| record.programs).unwrap_or_default();
    let record = Record { programs, ..Record::of(target, policy) };
    let (more, facts) = swap(instance, slot, target, &record, lock)?;
    notes.extend(more);
    Ok((Outcome::Changed, notes, Some(facts)))
}

/// Attaches anew what somebody has detached behind our back; says what.
fn repair(instance: &Instance, slot: u32, target: &Target, policy: &Policy) -> Result<Vec<String>> {
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
        Error::Failed(format!("the instance {} is damaged; detach it and attach again: {e}", instance.name))
    })?;
    Ok(vec![format!("attached again what had been detached: {}", missing.join(", "))])
}

/// Reads addresses, routes, interfaces and listeners anew under the same policy.
pub fn refresh(root: &Root, name: &str) -> Result<Renewed> {
    renew(root, name, false)
}

/// Swaps in the programs of this version, link by link and without a moment in which none runs, and
/// refreshes.
///
/// # Errors
///
/// [`Error::Unsupported`] if the instance has another map layout: its programs would not understand it.
pub fn upgrade(root: &Root, name: &str) -> Result<Renewed> {
    renew(root, name, true)
}

fn renew(root: &Root, name: &str, programs: bool) -> Result<Renewed> {
    let lock = WriteLock::take_if_any(root)?.ok_or_else(|| no_instance(name))?;
    let mut instance = Instance::open(root, name)?;
    let slot = active_slot(&instance)?;
    let mut record = record::read(&instance.dir, slot)?;
    let meta = instance.meta()?;
    let target = target_of(name, &record, &meta)?;
    surroundings::settle(&mut instance, &target, slot)?;
    let mut notes = repair(&instance, slot, &target, &record.policy)?;
    if programs {
        links::replace_programs(&instance, &target, meta.program_flags)?;
        record = Record::of(&target, &record.policy);
    }
    let (more, facts) = swap(instance, slot, &target, &record, &lock)?;
    notes.extend(more);
    Ok(Renewed { notes, netns_cookie: target.netns.cookie, facts })
}

fn active_slot(instance: &Instance) -> Result<u32> {
    let meta = instance.meta()?;
    match Phase::of(&meta) {
        Phase::Active(slot) => Ok(slot),
        Phase::Draining => Err(detach::is_draining(&instance.name, &meta)),
        Phase::Inert => Err(Error::Failed(format!(
            "the instance {} was left half-made or half-removed by a command that was killed; `redirector list` sweeps it",
            instance.name
        ))),
    }
}

fn swap(
    mut instance: Instance,
    old: u32,
    target: &Target,
    record: &Record,
    _lock: &WriteLock,
) -> Result<(Vec<String>, RouteSnapshot)> {
    let policy = &record.policy;
    let new = 1 - old;
    let counted = Counted::new(policy, target)?;
    let mut meta = instance.meta()?;
    let flags = meta.flags;
    let before = record::read(&instance.dir, old).map(|record| record.policy);
    if let Err(e) = &before
        && surroundings::needs_old(&meta, policy)
    {
        return Err(Error::Failed(format!(
            "what TPROXY mode has changed cannot be taken back without the record of its mark and table; detach the \
             instance {} and attach again: {e}",
            instance.name
        )));
    }
    let mut tables = instance.tables()?;
    let done = prepare(&mut instance, &mut meta, new, target, (record, &counted))
        .and_then(|prepared| instance.set_meta(&Meta { active: new + 1, ..meta }).map(|()| prepared));
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
    meta.active = new + 1;

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
        notes.push(e.to_string());
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
    new: u32,
    target: &Target,
    (record, counted): (&Record, &Counted),
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
    instance.policies()?.set(new, compiled.policy, 0).context(|| "write POLICIES".into())?;
    listeners::clear(instance, new)?;
    listeners::register(instance, target, policy, new)?;
    // A hook that only the new policy needs does nothing under the old one.
    links::attach_wanted(&instance.dir, target, policy)?;
    Ok((surroundings::remarks(policy, &facts), facts))
}
