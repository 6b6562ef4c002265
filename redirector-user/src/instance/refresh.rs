//! refresh: reads addresses, routes, interfaces and listeners again under the same policy.

use super::directory::Directory;
use super::find::target_of;
use super::lock::WriteLock;
use super::maps::{Instance, no_instance};
use super::record::{self, Record};
use super::swap::{active_slot, repair, swap};
use super::{links, surroundings};
use crate::base::error::Result;
use crate::routes::RouteSnapshot;

/// What a refresh or an upgrade came to.
#[derive(Debug)]
pub struct Refreshed {
    /// Remarks.
    pub notes: Vec<String>,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Its addresses, routes and interfaces as they are in force now.
    pub routes: RouteSnapshot,
}

/// Reads addresses, routes, interfaces and listeners anew under the same policy.
pub fn refresh(root: &Directory, name: &str) -> Result<Refreshed> {
    renew(root, name, false)
}

pub(super) fn renew(root: &Directory, name: &str, programs: bool) -> Result<Refreshed> {
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
    let (more, snapshot) = swap(instance, slot, &target, &record, &lock)?;
    notes.extend(more);
    Ok(Refreshed { notes, netns_cookie: target.netns.cookie, routes: snapshot })
}
