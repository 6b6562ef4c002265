//! At `--log-level debug` what the programs decide goes to the log, too.

use super::{Agent, lock};
use crate::instance::trace::{Event, Trace};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Names of the instances whose decisions are being read.
pub(super) type Read = Arc<Mutex<HashSet<String>>>;

/// Whether instances are attached so that they tell.
pub(super) fn wanted() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

impl Agent {
    /// Reads the decisions of an instance from now on, if it tells them and nobody of us reads them yet.
    pub(super) fn read_decisions(&self, name: &str) {
        if !wanted() || !lock(&self.memory.decisions).insert(name.to_owned()) {
            return;
        }
        let instance = name.to_owned();
        let trace = Trace::open(&self.root, name, move |event: &Event| {
            let Event { event, client, destination, verdict, rule } = event;
            tracing::debug!(instance, event, %client, %destination, verdict, rule, "decided");
            true
        });
        // One that was attached by somebody else, or at another level, tells nothing.
        let Ok(trace) = trace else {
            lock(&self.memory.decisions).remove(name);
            return;
        };
        let (reading, name) = (Arc::clone(&self.memory.decisions), name.to_owned());
        tokio::spawn(async move {
            if let Err(e) = trace.follow(std::future::pending::<()>()).await {
                tracing::debug!(instance = name, "its decisions cannot be read: {e}");
            }
            lock(&reading).remove(&name);
        });
    }
}
