//! What the agent has to look for because no event announces it: what `redirector status` finds of the node's instances, for the
//! metrics, and links that are detached behind the agent's back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::metrics::Metrics;
use crate::health::node;
use crate::instance::directory::Directory;
use crate::instance::inventory;

/// Looking takes at most one part in so many of the time.
const SHARE: u32 = 50;

/// The kernel sends no event when a link is detached (BPF_LINK_DETACH).
const LINK_INTERVAL: Duration = Duration::from_secs(2);

/// Looks for what is wrong every now and then, for ever.
pub async fn findings(root: Directory, metrics: Arc<Metrics>, interval: Duration) {
    loop {
        let begin = Instant::now();
        let dir = root.clone();
        // What cannot be read now is read the next time.
        if let Ok(Ok(found)) = spawn_blocking(move || node::instances(&dir)).await {
            metrics.set_findings(&found);
        }
        tokio::time::sleep(interval.max(begin.elapsed() * SHARE)).await;
    }
}

/// Wakes a pass, which repairs it, when a link does not work any more, or an instance is gone.
pub async fn links(root: Directory, wake: Arc<Notify>) {
    let mut before = None;
    loop {
        let begin = Instant::now();
        let dir = root.clone();
        if let Ok(Ok(now)) = spawn_blocking(move || inventory::working_links(&dir)).await {
            if before.as_ref().is_some_and(|before: &BTreeSet<_>| !before.is_subset(&now)) {
                wake.notify_one();
            }
            if before.as_ref() != Some(&now) {
                tracing::debug!(links = now.len(), "following the links of instances");
            }
            before = Some(now);
        }
        tokio::time::sleep(LINK_INTERVAL.max(begin.elapsed() * SHARE)).await;
    }
}
