//! What an instance is doing, as META has it.

use redirector_common::abi::{ActiveWord, Meta, Slot};

use crate::base::error::Error;

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: it was being made or taken down when its command was killed.
    Inert,
    /// It captures, under the policy in this slot.
    Active(Slot),
    /// It captures nothing new and keeps the names of what it has captured.
    Draining,
}

impl Phase {
    /// From [`Meta::active`].
    pub fn of(meta: &Meta) -> Self {
        match meta.active {
            ActiveWord::INERT => Self::Inert,
            word => word.slot().map_or(Self::Draining, Self::Active),
        }
    }

    /// As `list` and `show` print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inert => "inert",
            Self::Active(_) => "active",
            Self::Draining => "draining",
        }
    }
}

/// Seconds since boot, suspended time included.
pub(super) fn boot_seconds() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}

/// How many seconds a drain may still take; then the next command sweeps the instance.
pub(super) fn time_left(meta: &Meta) -> u64 {
    meta.drain_until.saturating_sub(boot_seconds())
}

/// What an instance that is draining cannot do, and what to do about it.
pub(super) fn is_draining(name: &str, meta: &Meta) -> Error {
    Error::failed(format!("the instance {name} is draining and captures nothing new")).usage(format!(
        "`redirector detach --name {name}` ends that at once, else its detach does or, if \
         that was interrupted, the first command after {} s",
        time_left(meta)
    ))
}
