//! Keeps the CNI plugin installed: its binary and its entry come back whenever another tool has removed them.

use super::file_events::{Names, Signs};
use super::metrics::{Metrics, Reason};
use super::retry::{Failures, Subject};
use crate::base::error::Error;
use crate::cni_install::{self, Places};
use std::sync::Arc;

pub struct PluginKeeper {
    pub places: Places,
    pub failures: Arc<Failures>,
    pub metrics: Arc<Metrics>,
}

impl PluginKeeper {
    pub fn watch(&self, signs: &mut Signs) {
        let names = Names::one(cni_install::TYPE.as_ref());
        signs.entry(self.places.bin_dir.clone()).or_default().add(names);
        let conf = signs.entry(self.places.conf_dir.clone()).or_default();
        [".conflist", ".conf", ".json"].into_iter().for_each(|kind| conf.add(Names::suffix(kind)));
    }

    pub fn install(&self) {
        let error = match cni_install::install(&self.places) {
            Ok(cni_install::State::Unchanged) => return self.failures.succeeded(&Subject::Plugin),
            Ok(cni_install::State::Written(path)) => {
                self.failures.succeeded(&Subject::Plugin);
                self.metrics.step("install");
                tracing::info!(path = %path.display(), "installed the CNI plugin");
                return;
            }
            Ok(cni_install::State::NoNetwork) => Error::failed(format!(
                "there is no network's configuration in {} to chain to",
                self.places.conf_dir.display()
            )),
            Err(e) => e,
        };
        self.failures.failed(Subject::Plugin, Reason::Install, &error);
    }
}
