//! Draining: an instance captures nothing new and keeps the names of what it has captured.

use std::time::{Duration, Instant};

use redirector_common::abi::{ActiveWord, Meta};

use super::directory::Directory;
use super::lock::WriteLock;
use super::maps::Instance;
use super::phase::boot_seconds;
use super::{connections, find};
use crate::base::error::Result;

/// Captures nothing new and waits until what was captured has ended; the mark that this drain
/// left, or None if there is nothing that could be drained.
pub(super) fn drain(root: &Directory, name: &str, limit: Duration) -> Result<Option<u64>> {
    let Some(lock) = WriteLock::take_if_any(root)? else { return Ok(None) };
    let Ok(mut instance) = Instance::open(root, name) else { return Ok(None) };
    let drain_until = boot_seconds() + limit.as_secs() + 1;
    let meta = instance.meta()?;
    instance.set_meta(&Meta { active: ActiveWord::DRAINING, drain_until, ..meta })?;
    // Others may work on other instances meanwhile, or end this one: then its maps are gone.
    drop(lock);
    let end = Instant::now() + limit;
    let netns = find::any_record(&instance.dir).and_then(|record| find::netns_of(&record, &meta).ok()?);
    let alive = || connections::alive(&instance, netns.as_ref());
    if let (Some(tell), Ok(live @ 1..)) = (root.tell, alive()) {
        tell(&format!(
            "{name}: waits until {live} captured connections have ended, for at most {} s (`redirector original-dst {name}` \
             lists them)",
            limit.as_secs()
        ));
    }
    while alive().is_ok_and(|alive| alive > 0) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(drain_until))
}
