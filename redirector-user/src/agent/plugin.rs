//! Keeps the CNI plugin installed: its binary and its entry come back whenever another tool has removed them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::file_events::{Names, Signs};
use super::health::{Condition, Health};
use super::metrics::{Metrics, Reason};
use super::retry::{Failures, Subject, pause};
use super::sync::lock;
use crate::base::error::{Error, Result};
use crate::cni::protocol::PLUGIN_TYPE;
use crate::cni_install::{self, CACHE_DIR, Installed, Places};

/// The first rewrites of the list by others are answered at once: updates of the network come in bursts.
const FREE_REWRITES: u32 = 3;
/// Between proofs that the plugin works.
const PROBE_INTERVAL: Duration = Duration::from_secs(20);
const FIRST_FIGHT_PAUSE: Duration = Duration::from_millis(100);
/// A rewrite this long after our last pause is no answer to ours.
const FIGHT_WINDOW: Duration = Duration::from_secs(10);

/// The plugin on this node, until this agent has taken it off.
pub struct Installation {
    places: Places,
    is_taken_off: Mutex<bool>,
}

impl Installation {
    pub fn new(places: Places) -> Self {
        Self { places, is_taken_off: Mutex::default() }
    }

    fn install(&self) -> Result<Installed> {
        match *lock(&self.is_taken_off) {
            true => Ok(Installed::default()),
            false => cni_install::install(&self.places),
        }
    }

    /// Whether it could be installed.
    pub fn check(&self) -> Result<()> {
        cni_install::check(&self.places)
    }

    fn is_taken_off(&self) -> bool {
        *lock(&self.is_taken_off)
    }

    /// Takes it off; it is not installed again by this agent.
    pub fn take_off(&self) -> Result<Vec<String>> {
        let mut is_taken_off = lock(&self.is_taken_off);
        *is_taken_off = true;
        let removal =
            cni_install::uninstall(&self.places.bin_dir, &self.places.conf_dir, Path::new(CACHE_DIR))?;
        Ok(removal.done)
    }
}

pub struct PluginKeeper {
    pub installation: Arc<Installation>,
    failures: Arc<Failures>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// How often others have rewritten the list in answer to us.
    rewrites: u32,
    /// Until when a list that is rewritten again and again is left alone.
    next: Option<Instant>,
    /// When the plugin has reached this agent.
    probed: Option<Instant>,
    /// What was logged about files that no runtime takes.
    notes: Vec<String>,
}

impl PluginKeeper {
    pub fn new(
        installation: Arc<Installation>,
        failures: Arc<Failures>,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            installation,
            failures,
            metrics,
            health,
            rewrites: 0,
            next: None,
            probed: None,
            notes: Vec::new(),
        }
    }

    /// Adds the paths whose changes may undo the installation.
    pub fn watch(&self, signs: &mut Signs) {
        let names = Names::one(PLUGIN_TYPE.as_ref());
        let places = &self.installation.places;
        signs.entry(places.bin_dir.clone()).or_default().add(names);
        let conf = signs.entry(places.conf_dir.clone()).or_default();
        [".conflist", ".conf", ".json"].into_iter().for_each(|kind| conf.add(Names::suffix(kind)));
        for file in cni_install::linked_files(&places.conf_dir) {
            if let (Some(dir), Some(name)) = (file.parent(), file.file_name()) {
                signs.entry(dir.to_owned()).or_default().add(Names::one(name));
            }
        }
    }

    /// Installs what is missing; returns when to look again.
    pub fn install(&mut self) -> Option<Duration> {
        if let Some(left) = self.pause_left() {
            return Some(left);
        }
        let result = self.installation.install().and_then(|Installed { written, notes }| {
            if notes != self.notes {
                notes.iter().for_each(|note| tracing::warn!("{note}; it is left alone"));
                self.notes = notes;
            }
            match written.last() {
                Some(path) => self.written(path),
                None => self.probe(),
            }
        });
        match result {
            Ok(()) => {
                self.failures.succeeded(&Subject::Plugin);
                self.health.met(Condition::Plugin);
                self.metrics.plugin_installed(!self.installation.is_taken_off());
            }
            Err(e) => {
                self.metrics.plugin_installed(false);
                self.health
                    .unmet(Condition::Plugin, format!("the CNI plugin is not installed: {}", e.advice()));
                self.failures.failed(Subject::Plugin, Reason::Install, &e);
            }
        }
        self.pause_left()
    }

    /// Has the installed plugin ask this agent, every now and then.
    fn probe(&mut self) -> Result<()> {
        if self.probed.is_some_and(|probed| probed.elapsed() < PROBE_INTERVAL)
            || self.installation.is_taken_off()
        {
            return Ok(());
        }
        let places = &self.installation.places;
        cni_install::probe(&places.bin_dir, &places.socket)?;
        self.probed = Some(Instant::now());
        Ok(())
    }

    fn pause_left(&self) -> Option<Duration> {
        self.next?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Slows down when another program rewrites the list each time.
    fn written(&mut self, path: &Path) -> Result<()> {
        self.metrics.step("install");
        let is_answer = self.next.is_some_and(|next| next.elapsed() < FIGHT_WINDOW);
        self.rewrites = if is_answer { self.rewrites + 1 } else { 0 };
        let Some(times) = self.rewrites.checked_sub(FREE_REWRITES) else {
            self.next = Some(Instant::now());
            tracing::info!(path = %path.display(), "installed the CNI plugin");
            return Ok(());
        };
        self.next = Some(Instant::now() + pause(times + 1, FIRST_FIGHT_PAUSE));
        let others = cni_install::other_plugins(path).join(", ");
        Err(Error::failed(format!(
            "another program keeps taking redirector out of {} (plugins: {others}), and pods may start uncaptured",
            path.display()
        ))
        .remedy("stop it from owning the list (cilium: cni.exclusive=false)"))
    }
}
