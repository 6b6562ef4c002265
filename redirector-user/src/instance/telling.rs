//! Lets the programs of an instance tell their decisions for a while: they are swapped for some that do, link by link, so
//! that there is no moment without capture, and back.
//!
//! Who reads them holds a shared lock (flock) on the directory of the instance, which ends with its process. Where nobody
//! does, the reader was killed, and the next command that changes the instance, or pass of the agent, swaps them back.

use std::fs::File;
use std::path::Path;

use redirector_common::abi::{Meta, meta_flag};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::directory::Directory;
use super::lock::WriteLock;
use super::maps::{Instance, no_instance};
use super::{record, upgrade};
use crate::base::error::{Context, Error, Result};
use crate::programs::object;

const TELLING: u32 = meta_flag::TRACE | meta_flag::TRACE_FOR_A_WHILE;

/// Programs that tell their decisions until it ends.
#[derive(Debug)]
pub struct Telling {
    root: Directory,
    name: String,
    identity: Option<u64>,
    reader: File,
}

impl Telling {
    /// None: they do so for as long as the instance is there.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if the programs are of another version: it would have to be an upgrade.
    pub fn begin(root: &Directory, name: &str) -> Result<Option<Self>> {
        let _lock = WriteLock::take_if_any(root)?.ok_or_else(|| no_instance(name))?;
        let mut instance = Instance::open(root, name)?;
        let flags = instance.meta()?.flags;
        if flags & TELLING == meta_flag::TRACE {
            return Ok(None);
        }
        let reader = open(&instance.dir)?;
        flock(&reader, FlockOperation::LockShared).context(|| format!("lock {}", instance.dir.display()))?;
        if flags & meta_flag::TRACE == 0 {
            swap(&mut instance, TELLING)?;
        }
        Ok(Some(Self { root: root.clone(), name: name.to_owned(), identity: root.identity(name), reader }))
    }

    /// Swaps the other programs in again, unless the instance is gone or somebody else reads.
    ///
    /// # Errors
    ///
    /// If the kernel does not take them; those that tell go on to work.
    pub fn end(self) -> Result<()> {
        drop(self.reader);
        if self.root.identity(&self.name) == self.identity {
            mend(&self.root, &self.name)?;
        }
        Ok(())
    }
}

/// Swaps the usual programs in again where the last `trace` was killed; whether it was.
///
/// # Errors
///
/// If the kernel does not take them; those that tell go on to work.
pub fn mend(root: &Directory, name: &str) -> Result<bool> {
    if !is_left_telling(&Instance::open(root, name)?)? {
        return Ok(false);
    }
    let lock = WriteLock::take_if_any(root)?.ok_or_else(|| no_instance(name))?;
    mend_locked(&mut Instance::open(root, name)?, &lock)
}

/// The same for who may change instances. Programs of another version stay until an upgrade.
pub(super) fn mend_locked(instance: &mut Instance, _lock: &WriteLock) -> Result<bool> {
    let left = is_left_telling(instance)? && programs_of(instance)?.0 == object::ID;
    if left {
        swap(instance, 0)?;
    }
    Ok(left)
}

/// Has an upgrade swap in programs that do not tell where the last `trace` was killed.
pub(super) fn forget_killed(instance: &mut Instance, _lock: &WriteLock) -> Result<()> {
    if is_left_telling(instance)? {
        let meta = instance.meta()?;
        instance.set_meta(&Meta { flags: meta.flags & !TELLING, ..meta })?;
    }
    Ok(())
}

/// Whether the programs tell their decisions to a `trace` that was killed.
///
/// # Errors
///
/// If META or the lock cannot be read.
pub fn is_left_telling(instance: &Instance) -> Result<bool> {
    if instance.meta()?.flags & meta_flag::TRACE_FOR_A_WHILE == 0 {
        return Ok(false);
    }
    match flock(open(&instance.dir)?, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e).context(|| format!("lock {}", instance.dir.display())),
    }
}

fn open(dir: &Path) -> Result<File> {
    File::open(dir).context(|| format!("open {}", dir.display()))
}

/// Id and version of its programs.
fn programs_of(instance: &Instance) -> Result<(String, String)> {
    let record = record::read(&instance.dir, instance.active_slot()?)?;
    Ok((record.programs, record.version))
}

/// Swaps in the programs that these flags stand for.
fn swap(instance: &mut Instance, telling: u32) -> Result<()> {
    let meta = instance.meta()?;
    let name = &instance.name;
    let (programs, version) = programs_of(instance)?;
    if programs != object::ID {
        let what = format!(
            "{name} runs programs of another version ({version}), which cannot be swapped for a while"
        );
        return Err(Error::input(what).usage(format!("run `redirector upgrade {name}` first")));
    }
    // Every swap of programs reads it.
    instance.set_meta(&Meta { flags: meta.flags & !TELLING | telling, ..meta })?;
    upgrade::replace_programs(instance, meta.program_flags).inspect_err(|_| {
        // What is left of either kind captures as ever.
        let _ = instance.meta().and_then(|now| instance.set_meta(&Meta { flags: meta.flags, ..now }));
    })
}
