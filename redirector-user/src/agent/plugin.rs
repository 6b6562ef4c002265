//! Keeps the CNI plugin installed: its binary and its entry come back whenever another tool has removed them.

use super::file_events::{Names, Signs};
use super::metrics::{Metrics, Reason};
use super::retry::{Failures, Subject};
use crate::cni_install::{self, Installed, Places};
use std::sync::Arc;

pub struct PluginKeeper {
    pub places: Places,
    pub failures: Arc<Failures>,
    pub metrics: Arc<Metrics>,
}

impl PluginKeeper {
    /// Adds the paths whose changes may undo the installation.
    pub fn watch(&self, signs: &mut Signs) {
        let names = Names::one(cni_install::TYPE.as_ref());
        signs.entry(self.places.bin_dir.clone()).or_default().add(names);
        let conf = signs.entry(self.places.conf_dir.clone()).or_default();
        [".conflist", ".conf", ".json"].into_iter().for_each(|kind| conf.add(Names::suffix(kind)));
        for file in cni_install::linked_files(&self.places.conf_dir) {
            if let (Some(dir), Some(name)) = (file.parent(), file.file_name()) {
                signs.entry(dir.to_owned()).or_default().add(Names::one(name));
            }
        }
    }

    pub fn install(&self) {
        match cni_install::install(&self.places) {
            Ok(Installed { written, .. }) => {
                self.failures.succeeded(&Subject::Plugin);
                for path in written {
                    self.metrics.step("install");
                    tracing::info!(path = %path.display(), "installed the CNI plugin");
                }
            }
            Err(e) => {
                self.failures.failed(Subject::Plugin, Reason::Install, &e);
            }
        }
    }
}
