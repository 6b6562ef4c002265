//! refresh: reads addresses, routes, interfaces and listeners again under the same policy. An upgrade does, too.

use super::directory::Directory;
use super::find::target_of;
use super::lock::WriteLock;
use super::maps::{Instance, no_instance};
use super::record::{self, Record};
use super::swap::{Swap, repair};
use super::{journal, telling, upgrade};
use crate::base::error::Result;
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::programs::object;
use crate::routes::RouteSnapshot;
use crate::sys::netns::NetnsId;

/// What a refresh or an upgrade came to.
#[derive(Debug)]
pub struct Refreshed {
    /// What the user should know.
    pub notes: Vec<String>,
    /// Whether the programs of this version took the place of others.
    pub programs_replaced: bool,
    /// The network namespace.
    pub netns: NetnsId,
    /// Its addresses, routes and interfaces as they are in force now.
    pub routes: RouteSnapshot,
}

/// Reads addresses, routes, interfaces and listeners again under the same policy.
///
/// # Errors
///
/// If there is no such instance, or what it is attached to is gone.
pub fn refresh(root: &Directory, name: &str) -> Result<Refreshed> {
    renew(root, name, None, false)
}

/// The same for somebody who has just read addresses, routes and interfaces.
///
/// # Errors
///
/// As [`refresh`].
pub fn refresh_with(root: &Directory, name: &str, snapshot: RouteSnapshot) -> Result<Refreshed> {
    renew(root, name, Some(snapshot), false)
}

/// Swaps in the programs of this version, link by link and without a moment in which none runs, and
/// refreshes.
///
/// # Errors
///
/// [`crate::Error::unsupported`] if the instance has another map layout: its programs would not understand it.
pub fn upgrade(root: &Directory, name: &str) -> Result<Refreshed> {
    renew(root, name, None, true)
}

fn renew(root: &Directory, name: &str, snapshot: Option<RouteSnapshot>, programs: bool) -> Result<Refreshed> {
    let lock = WriteLock::take_if_any(root)?.ok_or_else(|| no_instance(name))?;
    let mut instance = Instance::open(root, name)?;
    let slot = instance.active_slot()?;
    let mut record = record::read(&instance.dir, slot)?;
    let meta = instance.meta()?;
    let target = target_of(name, &record, &meta)?;
    journal::settle(&mut instance, &target, slot)?;
    let mut notes = repair(&mut instance, slot, &target, &record.policy)?;
    if programs {
        telling::forget_killed(&mut instance, &lock)?;
    } else {
        telling::mend_locked(&mut instance, &lock)?;
    }
    let programs_replaced = programs
        && (record.programs.as_str(), record.version.as_str()) != (object::ID, env!("CARGO_PKG_VERSION"));
    if programs {
        upgrade::replace_programs(&mut instance, meta.program_flags)?;
        record = Record { time_wait: record.time_wait, ..Record::of(&target, &record.policy) };
    }
    let mapped = &IdMappedPolicy::new(record.policy.clone(), &target)?;
    let swapped = Swap { instance, target: &target, record, mapped, snapshot }.run(slot, &lock)?;
    notes.extend(swapped.notes);
    Ok(Refreshed { programs_replaced, notes, netns: target.netns.id, routes: swapped.routes })
}
