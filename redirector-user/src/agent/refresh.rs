//! Refreshes instances when addresses, routes or interfaces of their namespaces change.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use redirector_common::Addr;
use tokio::sync::Notify;

use super::decisions::DecisionLog;
use super::health::Health;
use super::metrics::{Metrics, Reason};
use super::netns_events::{Changes, Namespaces};
use super::retry::{Failures, Subject};
use super::sync::lock;
use crate::base::error::Result;
use crate::instance::directory::Directory;
use crate::instance::find;
use crate::instance::inventory::{InstanceState, InventoryItem, look_at};
use crate::instance::refresh::{self, Refreshed};
use crate::instance::telling;
use crate::routes::{self, RouteSnapshot};
use crate::sys::netns::NetNs;

pub struct Refresher {
    pub root: Directory,
    pub metrics: Arc<Metrics>,
    pub failures: Arc<Failures>,
    pub health: Arc<Health>,
    pub wake: Arc<Notify>,
    pub namespaces: Namespaces,
    pub decisions: DecisionLog,
    /// How each followed namespace was when its instance last read it, by cookie.
    snapshots: Mutex<HashMap<u64, RouteSnapshot>>,
    /// Names of their instances.
    names: Mutex<HashMap<u64, String>>,
    /// Cookies of namespaces that have changed since.
    changed: Mutex<BTreeSet<u64>>,
    /// Held from reading a namespace into its instance until the snapshot is stored: the later read is stored later.
    reading: Mutex<()>,
}

impl Refresher {
    /// Follows no namespace yet. Must be called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If netlink events of other namespaces cannot be received.
    pub fn new(
        root: Directory,
        metrics: Arc<Metrics>,
        failures: Arc<Failures>,
        health: Arc<Health>,
        wake: Arc<Notify>,
    ) -> Result<Self> {
        Ok(Self {
            root,
            metrics,
            failures,
            health,
            wake,
            namespaces: Namespaces::new()?,
            decisions: DecisionLog::default(),
            snapshots: Mutex::default(),
            names: Mutex::default(),
            changed: Mutex::default(),
            reading: Mutex::default(),
        })
    }

    /// Refreshes instances whose namespaces have changed, for ever. Changes that come meanwhile are one change.
    pub async fn run(self: Arc<Self>) {
        loop {
            let changes = self.namespaces.changes().await;
            if changes.ended {
                self.wake.notify_one();
            }
            let this = Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || this.refresh_changed(&changes)).await;
        }
    }

    /// Follows the namespace of every instance, and refreshes those that were not followed before. True if a
    /// namespace has neither a process nor a file: it was just made or is about to end, and no event will tell.
    pub fn adopt_all(&self, inventory: &[InventoryItem]) -> bool {
        let mut in_transition = false;
        for InventoryItem { name, state, .. } in inventory {
            let InstanceState::Active(active) = state else { continue };
            lock(&self.names).insert(active.netns_cookie, name.clone());
            self.decisions.read(&self.root, name);
            match telling::mend(&self.root, name) {
                Ok(true) => {
                    tracing::info!(instance = name, "a trace was killed; the usual programs are back")
                }
                Ok(false) => {}
                // They capture as well as any.
                Err(e) => tracing::debug!(instance = name, "its programs still tell their decisions: {e}"),
            }
            let is_followed = lock(&self.snapshots).contains_key(&active.netns_cookie);
            let subject = Subject::Refresh(name.clone());
            if !active.netns_alive || self.failures.is_too_early(&subject) {
                continue;
            }
            if is_followed {
                in_transition |= !self.catch_up(name, active.netns_cookie);
                continue;
            }
            let Some(netns) = find::netns(&self.root, name) else {
                in_transition = true;
                continue;
            };
            let adopted = {
                let _reading = lock(&self.reading);
                self.follow(&netns, name)
                    .and_then(|()| self.refreshed(name, refresh::refresh(&self.root, name)))
            };
            self.health.step_done();
            match adopted {
                Ok(()) => {
                    self.failures.succeeded(&subject);
                    self.metrics.step("adopt");
                    tracing::info!(instance = name, "adopted");
                }
                Err(e) => {
                    self.failures.failed(subject, Reason::Follow, &e);
                }
            }
        }
        lock(&self.snapshots).retain(|cookie, _| self.namespaces.follows(*cookie));
        lock(&self.names).retain(|cookie, _| self.namespaces.follows(*cookie));
        lock(&self.changed).retain(|cookie| self.namespaces.follows(*cookie));
        in_transition
    }

    /// Receives the changes of an instance's namespace from now on.
    pub fn follow(&self, netns: &NetNs, name: &str) -> Result<()> {
        lock(&self.names).insert(netns.id.number(), name.to_owned());
        self.namespaces.follow(netns.as_fd(), netns.id.number())
    }

    /// To be held while an instance reads its namespace, until [`Self::store`].
    pub fn reading(&self) -> MutexGuard<'_, ()> {
        lock(&self.reading)
    }

    /// Stores how a namespace was when its instance read it.
    pub fn store(&self, cookie: u64, snapshot: RouteSnapshot) {
        lock(&self.snapshots).insert(cookie, without_ours(snapshot));
    }

    /// The next pass adopts the instance of this namespace again.
    pub fn forget(&self, cookie: u64) {
        lock(&self.snapshots).remove(&cookie);
    }

    /// What cannot be refreshed now is left to the attach that is at work on it, or to the next pass.
    fn refresh_changed(&self, changes: &Changes) {
        let cookies = if changes.lost { self.namespaces.followed() } else { changes.changed.clone() };
        lock(&self.changed).extend(&cookies);
        for cookie in cookies {
            // Of the others nothing is read, however many there are.
            let Some(name) = lock(&self.names).get(&cookie).cloned() else { continue };
            // One that is being attached catches up then; one that has another name by now is found by the next pass.
            let caught_up = match look_at(&self.root, &name) {
                Ok(Some(InventoryItem { state: InstanceState::Active(active), .. }))
                    if active.netns_alive && active.netns_cookie == cookie =>
                {
                    self.catch_up(&name, cookie)
                }
                Ok(_) => true,
                Err(_) => false,
            };
            if !caught_up {
                self.wake.notify_one();
            }
        }
    }

    /// Refreshes an active instance if its namespace has changed and the change makes a difference; false if the
    /// namespace cannot be read now.
    pub fn catch_up(&self, name: &str, cookie: u64) -> bool {
        let _reading = lock(&self.reading);
        if !lock(&self.changed).remove(&cookie) {
            return true;
        }
        let now = find::netns(&self.root, name).and_then(|netns| routes::read(&netns).ok());
        let Some(now) = now else {
            lock(&self.changed).insert(cookie);
            return false;
        };
        if lock(&self.snapshots).get(&cookie) == Some(&without_ours(now.clone())) {
            tracing::debug!(instance = name, "its namespace has changed, which makes no difference");
            return true;
        }
        match self.refreshed(name, refresh::refresh_with(&self.root, name, now)) {
            Ok(()) => {
                self.metrics.step("refresh");
                tracing::info!(instance = name, "refreshed: addresses, routes or interfaces have changed");
            }
            Err(e) => {
                self.forget(cookie);
                self.failures.failed(Subject::Refresh(name.to_owned()), Reason::Refresh, &e);
                self.wake.notify_one();
            }
        }
        true
    }

    fn refreshed(&self, name: &str, refreshed: Result<Refreshed>) -> Result<()> {
        let refreshed = refreshed?;
        for note in refreshed.notes {
            tracing::warn!(instance = name, "{note}");
        }
        self.store(refreshed.netns.number(), refreshed.routes);
        Ok(())
    }
}

/// A snapshot without what an attach adds.
fn without_ours(mut snapshot: RouteSnapshot) -> RouteSnapshot {
    snapshot.remove_from_lo(Addr::PASSTHROUGH_V6.into());
    snapshot
}
