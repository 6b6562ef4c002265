//! Lets the programs of an instance tell their decisions for a while: they are swapped for some that do, link by link, so
//! that there is no moment without capture, and back.

use redirector_common::abi::{Meta, meta_flag};

use super::directory::Directory;
use super::lock::WriteLock;
use super::maps::{Instance, no_instance};
use super::{record, upgrade};
use crate::base::error::{Error, Result};
use crate::programs::object;

/// Programs that tell their decisions until it ends.
#[derive(Debug)]
pub struct Telling {
    root: Directory,
    name: String,
    identity: Option<u64>,
}

impl Telling {
    /// None: they do so already.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if the programs are of another version: it would have to be an upgrade.
    pub fn begin(root: &Directory, name: &str) -> Result<Option<Self>> {
        let swapped = swap(root, name, true)?;
        let this = Self { root: root.clone(), name: name.to_owned(), identity: root.identity(name) };
        Ok(swapped.then_some(this))
    }

    /// Swaps the other programs in again, unless the instance is gone.
    ///
    /// # Errors
    ///
    /// If the kernel does not take them; those that tell go on to work.
    pub fn end(self) -> Result<()> {
        if self.root.identity(&self.name) == self.identity {
            swap(&self.root, &self.name, false)?;
        }
        Ok(())
    }
}

/// Whether anything had to be swapped.
fn swap(root: &Directory, name: &str, tells: bool) -> Result<bool> {
    let _lock = WriteLock::take_if_any(root)?.ok_or_else(|| no_instance(name))?;
    let mut instance = Instance::open(root, name)?;
    let meta = instance.meta()?;
    if (meta.flags & meta_flag::TRACE != 0) == tells {
        return Ok(false);
    }
    let record = record::read(&instance.dir, instance.active_slot()?)?;
    if record.programs != object::ID {
        let what = format!(
            "{name} runs programs of another version ({}), which cannot be swapped for a while",
            record.version
        );
        return Err(Error::input(what).usage(format!("run `redirector upgrade {name}` first")));
    }
    // Every swap of programs reads it.
    instance.set_meta(&Meta { flags: meta.flags ^ meta_flag::TRACE, ..meta })?;
    upgrade::replace_programs(&mut instance, meta.program_flags).inspect_err(|_| {
        // What is left of either kind captures as ever.
        let _ = instance.meta().and_then(|now| instance.set_meta(&Meta { flags: meta.flags, ..now }));
    })?;
    Ok(true)
}
