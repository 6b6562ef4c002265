//! Passes: gather, plan, execute. Every event only wakes the next pass.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::execute::Executor;
use super::file_events::Watcher;
use super::health::{Condition, Health};
use super::lock::HeldLock;
use super::metrics::Reason;
use super::plan::{DesiredState, Location, plan};
use super::plugin::PluginKeeper;
use super::pods::capture::PodCapture;
use super::remount;
use super::retry::Subject;
use super::sync::lock;
use super::targets::capture::FileTargets;
use crate::base::error::{Error, Result};
use crate::instance::directory::Directory;
use crate::instance::inventory::{InstanceState, take_inventory};
use crate::instance::sweep;

/// How soon to look again at what is being made or removed, doubled up to 1024 times.
const FIRST_TRANSITION_PAUSE: Duration = Duration::from_millis(25);

/// What passes need. Nothing of it has to survive a restart.
pub struct Passes {
    /// None before this agent works.
    pub lock: Option<Arc<HeldLock>>,
    pub executor: Arc<Executor>,
    pub files: FileTargets,
    pub plugin: Option<PluginKeeper>,
    pub watcher: Arc<Watcher>,
    pub health: Arc<Health>,
    pub resync: Duration,
    /// How many passes in a row have met something that is being made or removed.
    pub in_transition: u32,
}

impl Passes {
    /// Passes for ever: one now, then one after each event, or after a while.
    pub async fn run(mut self) -> Result<()> {
        let wake = Arc::clone(&self.executor.wake);
        loop {
            let pass = move || {
                let next = self.pass();
                (self, next)
            };
            let next;
            (self, next) = tokio::task::spawn_blocking(pass)
                .await
                .map_err(|e| Error::failed(format!("a pass has panicked: {e}")))?;
            self.health.met(Condition::FirstPass);
            self.health.step_done();
            let _ = tokio::time::timeout(next, wake.notified()).await;
        }
    }

    /// Makes the node as it is desired; returns when to look again at the latest.
    fn pass(&mut self) -> Duration {
        let begin = Instant::now();
        let executor = Arc::clone(&self.executor);
        let (root, failures) = (&executor.root, &executor.failures);
        if let Err(e) = self.keep_bpffs(root) {
            self.health.unmet(Condition::Bpffs, e.advice());
            failures.failed(Subject::Node, Reason::Target, &e);
            return failures.retry_in().unwrap_or(self.resync);
        }
        // Sweeps what a killed agent has left half-made, unless another command is at work.
        for swept in sweep::sweep_if_idle(root).unwrap_or_default() {
            tracing::info!("{swept}");
        }
        // Inventory first: whoever attaches an instance writes its file before.
        let inventory = match take_inventory(root) {
            Ok(inventory) => inventory,
            Err(e) => {
                self.health.unmet(Condition::Bpffs, e.advice());
                failures.failed(Subject::Node, Reason::Target, &e);
                return failures.retry_in().unwrap_or(self.resync);
            }
        };
        self.health.met(Condition::Bpffs);
        failures.succeeded(&Subject::Node);
        let here = inventory.iter().filter(|it| matches!(it.state, InstanceState::Active(_)));
        lock(&executor.kept).extend(here.map(|it| it.name.clone()));
        let mut state = DesiredState::default();
        let mut gathered = self.files.gather(root, failures, &inventory, &mut state);
        PodCapture { root, pods: &executor.pods, failures, metrics: &executor.metrics }.gather(
            &inventory,
            &mut state,
            &mut gathered,
        );
        if let Some(plugin) = &self.plugin {
            plugin.watch(&mut gathered.signs);
        }
        // A path that was not watched before may have changed since it was read.
        if self.watcher.set(gathered.signs) {
            executor.wake.notify_one();
        }
        let present = state.desired.values().filter(|it| it.location != Location::Unknown).count();
        executor.metrics.targets(state.desired.len(), present);
        let reinstall = self.plugin.as_mut().and_then(PluginKeeper::install);
        for step in plan(&state.desired, &inventory) {
            executor.execute(step, &state);
            self.health.step_done();
        }
        let in_transition = executor.refresher.adopt_all(&inventory) | gathered.in_transition;
        failures.forget_due(begin);
        let soon = self.transition_pause(in_transition);
        [failures.retry_in(), soon, reinstall, gathered.grace_ends_in]
            .into_iter()
            .flatten()
            .fold(self.resync, Duration::min)
    }

    /// Another bpffs may have been mounted.
    fn keep_bpffs(&self, root: &Directory) -> Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let was_there = lock.is_of(root.dir().parent().unwrap_or(Path::new("/")));
        let carried = remount::carry_over(lock, root)?;
        if !was_there {
            tracing::warn!(
                instances = carried.join(" "),
                "another bpffs has been mounted; the instances are carried over"
            );
        }
        Ok(())
    }

    fn transition_pause(&mut self, in_transition: bool) -> Option<Duration> {
        self.in_transition = if in_transition { self.in_transition + 1 } else { 0 };
        in_transition.then(|| FIRST_TRANSITION_PAUSE * (1 << self.in_transition.min(10)))
    }
}
