//! At `--log-level debug` the agent logs what the programs decide.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::sync::lock;
use crate::instance::directory::Directory;
use crate::instance::event::Event;
use crate::instance::trace::{Told, Trace};

/// Whether instances are attached so that they report decisions.
pub fn enabled() -> bool {
    tracing::enabled!(tracing::Level::DEBUG)
}

/// Reads decisions of instances into the log.
#[derive(Default)]
pub struct DecisionLog {
    /// Names of the instances that are being read.
    reading: Arc<Mutex<HashSet<String>>>,
}

impl DecisionLog {
    /// Reads the decisions of an instance from now on, if it reports them and is not being read yet.
    pub fn read(&self, root: &Directory, name: &str) {
        if !enabled() || !lock(&self.reading).insert(name.to_owned()) {
            return;
        }
        let trace = Trace::open(root, name);
        // An instance that was attached by hand, or at another level, reports nothing.
        let Ok(trace) = trace else {
            lock(&self.reading).remove(name);
            return;
        };
        let (reading, name) = (Arc::clone(&self.reading), name.to_owned());
        tokio::spawn(async move {
            let tell = |told: &Told<'_>| {
                log(&name, told);
                true
            };
            if let Err(e) = trace.follow(std::future::pending::<()>(), tell).await {
                tracing::debug!(instance = name, "its decisions cannot be read: {e}");
            }
            lock(&reading).remove(&name);
        });
    }
}

fn log(instance: &str, told: &Told<'_>) {
    match told {
        Told::Decision(Event { event, client, destination, redirected, verdict, rule, refused, .. }) => {
            let redirected = redirected.map(tracing::field::display);
            tracing::debug!(instance, event, %client, %destination, redirected, verdict, rule, refused, "decided");
        }
        Told::Trouble(text) => tracing::debug!(instance, "{text}"),
    }
}
