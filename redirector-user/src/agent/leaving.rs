//! What the agent does when it is told to end: it takes the CNI plugin off the node if its DaemonSet is deleted, and
//! leaves it there in every other case.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::daemonset::OwnDaemonSet;
use super::lock_file::stands_by;
use super::plugin::Installation;

/// Pods of a namespace that is deleted may be told before its DaemonSets are. The agent works meanwhile.
const DELETION_PATIENCE: Duration = Duration::from_secs(5);
/// A standby of the same DaemonSet ends with us, one of another takes over.
const STANDBY_PATIENCE: Duration = Duration::from_secs(5);
const STANDBY_INTERVAL: Duration = Duration::from_millis(100);

pub struct Leaving {
    pub daemonset: Arc<OwnDaemonSet>,
    pub installation: Arc<Installation>,
    pub run_dir: PathBuf,
}

impl Leaving {
    /// To be called by the agent that works on this node, while it works.
    pub async fn leave(&self) {
        // A rollout, whose next agent waits.
        let patience = if stands_by(&self.run_dir) { Duration::ZERO } else { DELETION_PATIENCE };
        if !self.daemonset.is_deleted() && !self.daemonset.is_deleted_within(patience).await {
            return;
        }
        let none_stands_by = async {
            while stands_by(&self.run_dir) {
                sleep(STANDBY_INTERVAL).await;
            }
        };
        if timeout(STANDBY_PATIENCE, none_stands_by).await.is_err() {
            tracing::info!("the DaemonSet is deleted; the CNI plugin is left to the agent that stands by");
            return;
        }
        match self.installation.take_off() {
            Ok(done) => done.iter().for_each(|line| tracing::info!("the DaemonSet is deleted: {line}")),
            Err(e) => tracing::error!("the CNI plugin cannot be taken off this node: {}", e.advice()),
        }
    }
}
