//! An agent that waits for another one to end: what it would do, and whether it could.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::leaving::Leaving;
use super::plugin::Installation;
use super::pods::cache::PodCache;
use crate::base::error::Error;
use crate::instance::directory::Directory;
use crate::instance::inventory::take_inventory;

pub struct Standby {
    pub root: Directory,
    pub pods: Arc<PodCache>,
    pub installation: Option<Arc<Installation>>,
    pub leaving: Option<Arc<Leaving>>,
}

impl Standby {
    /// An agent whose DaemonSet is deleted keeps no plugin.
    pub fn would_keep_plugin(&self) -> bool {
        let is_deleted = self.leaving.as_ref().is_some_and(|leaving| leaving.daemonset.is_deleted());
        self.installation.is_some() && !is_deleted
    }

    /// Looks at everything that its work depends on.
    pub async fn could_take_over(&self) -> Result<(), String> {
        self.pods.source.check().await?;
        let (root, installation) = (self.root.clone(), self.installation.clone());
        let look = move || {
            take_inventory(&root)?;
            installation.map_or(Ok(()), |installation| installation.check())
        };
        let looked = spawn_blocking(look).await.map_err(|e| e.to_string())?;
        looked.map_err(|e: Error| e.advice())
    }
}
