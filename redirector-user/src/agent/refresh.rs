//! Follows what changes in the namespaces of instances: addresses, routes, interfaces.

use super::netns_events::Changes;
use super::{Agent, lock};
use crate::base::error::Result;
use crate::instance::inventory::{InstanceState, InventoryItem, take_inventory};
use crate::instance::{find, refresh};
use crate::routes::{self, RouteSnapshot};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
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
    pub(super) fn follow_all(&self, there: &[InventoryItem]) -> bool {
        let mut ending = false;
        for InventoryItem { name, state, .. } in there {
            let InstanceState::Active(active) = state else { continue };
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
            let followed = {
                let _turn = lock(&self.memory.looking);
                self.namespaces.follow(netns.as_fd(), netns.cookie).and_then(|()| self.refresh(name))
            };
            self.health.working();
            match followed {
                Ok(()) => {
                    self.fine(&format!("{name} (follow)"));
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

    /// How a namespace was when its instance read it.
    pub(super) fn remember(&self, cookie: u64, facts: RouteSnapshot) {
        lock(&self.memory.mirrors).insert(cookie, without_ours(facts));
    }

    /// Refreshes what has changed. What cannot be looked at now is left to the end of the attach that is at work on
    /// it, or to the next pass.
    fn changed(&self, changes: &Changes) {
        let heard = if changes.lost { self.namespaces.followed() } else { changes.changed.clone() };
        lock(&self.memory.heard).extend(&heard);
        let Ok(there) = take_inventory(&self.root) else {
            self.wake.notify_one();
            return;
        };
        for InventoryItem { name, state, .. } in there {
            if let InstanceState::Active(active) = state
                && active.netns_alive
                && heard.contains(&active.netns_cookie)
                && !self.catch_up(&name, active.netns_cookie)
            {
                self.wake.notify_one();
            }
        }
    }

    /// Refreshes an active instance if something was heard of its namespace and makes a difference; false if nobody
    /// can tell now.
    pub(super) fn catch_up(&self, name: &str, cookie: u64) -> bool {
        // One after the other: whoever reads a namespace later remembers it later.
        let _turn = lock(&self.memory.looking);
        if !lock(&self.memory.heard).remove(&cookie) {
            return true;
        }
        let now = find::netns(&self.root, name).and_then(|netns| routes::read(netns.as_fd()).ok());
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
        let renewed = refresh::refresh(&self.root, name)?;
        for note in renewed.notes {
            tracing::warn!(instance = name, "{note}");
        }
        self.remember(renewed.netns_cookie, renewed.routes);
        Ok(())
    }
}

/// A mirror without what an attach adds: that is no change to be followed.
fn without_ours(mut mirror: RouteSnapshot) -> RouteSnapshot {
    let ours = IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    mirror.routes.retain(|route| !(route.prefix.addr() == ours && route.prefix.prefix_len() == 128));
    for interface in mirror.interfaces.iter_mut().filter(|interface| interface.loopback) {
        interface.addresses.retain(|net| net.addr() != ours);
    }
    mirror
}
