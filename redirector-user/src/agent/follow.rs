//! Follows what changes in the namespaces of instances: addresses, routes, interfaces.

use super::namespaces::Changes;
use super::{Agent, lock};
use crate::error::{Error, Result, chain};
use crate::instance::survey::{State, Surveyed, survey};
use crate::instance::{change, find};
use crate::mirror::{self, Mirror};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// Refreshes instances whose namespaces have changed, for ever.
pub async fn follow(agent: Arc<Agent>) {
    loop {
        let changes = agent.namespaces.changes().await;
        if changes.ended {
            agent.wake.notify_one();
        }
        let agent = Arc::clone(&agent);
        // One after the other: what happens meanwhile is one change afterwards.
        let _ = tokio::task::spawn_blocking(move || agent.changed(&changes)).await;
    }
}

impl Agent {
    /// Follows every namespace that has an instance, whoever made it. One that was not followed
    /// before may have changed unseen. True if one has neither a process nor a file: it is about to
    /// end, and nobody will tell, or it was just made.
    pub(super) fn follow_all(&self, there: &[Surveyed]) -> bool {
        let mut ending = false;
        for Surveyed { name, state, .. } in there {
            let State::Active(active) = state else { continue };
            self.read_decisions(name);
            let known = lock(&self.memory.mirrors).contains_key(&active.netns_cookie);
            if !active.netns_alive || self.is_too_early(&format!("{name} (follow)")) {
                continue;
            }
            if known {
                ending |= !self.catch_up(name, active.netns_cookie);
                continue;
            }
            let Some(netns) = find::netns(&self.root, name) else {
                ending = true;
                continue;
            };
            let followed = self.follow_one(netns.as_fd(), netns.cookie).and_then(|mirror| {
                self.refresh(name)?;
                Ok(mirror)
            });
            self.health.working();
            match followed {
                Ok(mirror) => {
                    self.fine(&format!("{name} (follow)"));
                    self.remember(netns.cookie, mirror);
                    self.metrics.step("adopt");
                    tracing::info!(instance = name, "adopted");
                }
                Err(e) => {
                    self.failed(&format!("{name} (follow)"), "follow", &e);
                }
            }
        }
        lock(&self.memory.mirrors).retain(|cookie, _| self.namespaces.follows(*cookie));
        lock(&self.memory.heard).retain(|cookie| self.namespaces.follows(*cookie));
        ending
    }

    /// Hears of changes from now on; the namespace as it is.
    pub(super) fn follow_one(&self, netns: BorrowedFd<'_>, cookie: u64) -> Result<Mirror> {
        self.namespaces.follow(netns, cookie)?;
        mirror::read(netns).map_err(|e| Error::Failed(chain(&e)))
    }

    /// How a namespace was before its instance read it; returns what was remembered before.
    pub(super) fn remember(&self, cookie: u64, mirror: Mirror) -> Option<Mirror> {
        lock(&self.memory.mirrors).insert(cookie, without_ours(mirror))
    }

    /// Refreshes what has changed. What cannot be looked at now is left to the end of the attach that is at work on
    /// it, or to the next pass.
    fn changed(&self, changes: &Changes) {
        if changes.lost {
            let all: Vec<u64> = lock(&self.memory.mirrors).keys().copied().collect();
            lock(&self.memory.heard).extend(all);
        }
        lock(&self.memory.heard).extend(&changes.changed);
        let caught_up = survey(&self.root).is_ok_and(|there| {
            there.into_iter().fold(true, |all, Surveyed { name, state, .. }| match state {
                State::Active(active) if active.netns_alive => {
                    self.catch_up(&name, active.netns_cookie) && all
                }
                _ => all,
            })
        });
        if !caught_up {
            self.wake.notify_one();
        }
    }

    /// Refreshes an active instance if something was heard of its namespace and makes a difference; false if nobody
    /// can tell now.
    pub(super) fn catch_up(&self, name: &str, cookie: u64) -> bool {
        // Whoever looks later remembers later.
        let _turn = lock(&self.memory.looking);
        if !lock(&self.memory.heard).remove(&cookie) {
            return true;
        }
        let now = find::netns(&self.root, name).and_then(|netns| mirror::read(netns.as_fd()).ok());
        let Some(now) = now.map(without_ours) else {
            lock(&self.memory.heard).insert(cookie);
            return false;
        };
        if lock(&self.memory.mirrors).get(&cookie) == Some(&now) {
            tracing::debug!(instance = name, "its namespace has changed, which makes no difference");
            return true;
        }
        match self.refresh(name) {
            Ok(()) => {
                lock(&self.memory.mirrors).insert(cookie, now);
                self.metrics.step("refresh");
                tracing::info!(instance = name, "refreshed: addresses, routes or interfaces have changed");
            }
            Err(e) => {
                // Forgotten, it is adopted anew by the next pass.
                lock(&self.memory.mirrors).remove(&cookie);
                self.failed(&format!("{name} (follow)"), "refresh", &e);
                self.wake.notify_one();
            }
        }
        true
    }

    fn refresh(&self, name: &str) -> Result<()> {
        for note in change::refresh(&self.root, name)? {
            tracing::warn!(instance = name, "{note}");
        }
        Ok(())
    }
}

/// A mirror without what an attach adds: that is no change to be followed.
fn without_ours(mut mirror: Mirror) -> Mirror {
    let ours = IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    mirror.routes.retain(|route| !(route.prefix.addr() == ours && route.prefix.prefix_len() == 128));
    for interface in mirror.interfaces.iter_mut().filter(|interface| interface.loopback) {
        interface.addresses.retain(|net| net.addr() != ours);
    }
    mirror
}
