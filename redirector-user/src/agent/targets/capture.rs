//! Which targets of files are captured, with which policy.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::files::{self, Entry};
use super::path::TargetPath;
use crate::agent::file_events::{Names, Signs};
use crate::agent::metrics::Reason;
use crate::agent::plan::{Desired, DesiredState, FILE_PREFIX, Location, Present};
use crate::agent::retry::{Failures, Subject};
use crate::base::error::Result;
use crate::instance::directory::Directory;
use crate::instance::find;
use crate::instance::inventory::{InstanceState, InventoryItem};
use crate::pod::Target;

/// Some editors rename the old file away before they write the new one.
const DELETION_GRACE: Duration = Duration::from_secs(1);

/// The files of `--config` from one pass to the next.
#[derive(Default)]
pub struct FileTargets {
    pub dir: Option<PathBuf>,
    /// Since when files are missing, by the names of their instances.
    missing: BTreeMap<String, Instant>,
}

/// What a pass has to know besides the desired state.
#[derive(Default)]
pub struct Gathered {
    /// Paths to watch.
    pub signs: Signs,
    /// A namespace is being made or removed; no event will tell when it has been.
    pub in_transition: bool,
    /// When a missing file counts as deleted.
    pub grace_ends_in: Option<Duration>,
}

impl FileTargets {
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, missing: BTreeMap::new() }
    }

    /// Adds the targets of files to the desired state.
    pub fn gather(
        &mut self,
        root: &Directory,
        failures: &Failures,
        inventory: &[InventoryItem],
        state: &mut DesiredState,
    ) -> Gathered {
        let mut gathering = Gathering { root, failures, state, gathered: Gathered::default() };
        let mut is_readable = false;
        if let Some(dir) = &self.dir {
            gathering.gathered.signs.insert(dir.clone(), Names::suffix(".toml"));
            match files::read(dir) {
                Ok(entries) => {
                    for (name, entry) in entries {
                        let instance = inventory.iter().find(|instance| instance.name == name);
                        let desired = gathering.desired(&name, instance, entry);
                        gathering.state.desired.insert(name, desired);
                    }
                    failures.succeeded(&Subject::Configuration);
                    is_readable = true;
                }
                Err(e) => {
                    failures.failed(Subject::Configuration, Reason::Config, &e);
                }
            }
        }
        let mut gathered = gathering.gathered;
        gathered.grace_ends_in = self.keep_missing(is_readable, inventory, state);
        gathered
    }

    /// Keeps instances whose file may come back. If the directory cannot be read, no file counts as deleted. A deleted
    /// file gets a grace period, unless another file has its namespace.
    fn keep_missing(
        &mut self,
        is_readable: bool,
        inventory: &[InventoryItem],
        state: &mut DesiredState,
    ) -> Option<Duration> {
        let is_taken = |instance: &InventoryItem| match &instance.state {
            InstanceState::Active(active) => state.desired.values().any(|it| is_in(it, active.netns_cookie)),
            _ => false,
        };
        let missing = inventory
            .iter()
            .filter(|it| it.name.starts_with(FILE_PREFIX) && !state.desired.contains_key(&it.name))
            .filter(|it| !(is_readable && is_taken(it)));
        let missing: BTreeSet<String> = missing.map(|it| it.name.clone()).collect();
        self.missing.retain(|name, _| is_readable && missing.contains(name));
        let mut soonest: Option<Duration> = None;
        for name in missing {
            if is_readable {
                let since = *self.missing.entry(name.clone()).or_insert_with(Instant::now);
                let left = DELETION_GRACE.saturating_sub(since.elapsed());
                if left.is_zero() {
                    continue;
                }
                soonest = Some(soonest.map_or(left, |soonest| soonest.min(left)));
            }
            state.desired.insert(name, Desired::unknown(None));
        }
        soonest
    }
}

struct Gathering<'a> {
    root: &'a Directory,
    failures: &'a Failures,
    state: &'a mut DesiredState,
    gathered: Gathered,
}

impl Gathering<'_> {
    fn desired(&mut self, name: &str, instance: Option<&InventoryItem>, entry: Result<Entry>) -> Desired {
        let subject = Subject::Target(name.to_owned());
        let Entry { path, policy, allow_partial } = match entry {
            Ok(entry) => entry,
            Err(e) => {
                self.failures.failed(subject, Reason::Config, &e);
                return Desired::unknown(None);
            }
        };
        for (path, names) in path.signs() {
            self.gathered.signs.entry(path).or_default().add(names);
        }
        let found = path.find();
        self.gathered.in_transition |= path.is_in_transition();
        let found = match found {
            Ok(found) => found,
            Err(e) => {
                self.failures.failed(subject, Reason::Target, &e);
                return Desired::unknown(Some(policy));
            }
        };
        self.failures.succeeded(&subject);
        let Some(target) = found else { return Desired::unknown(Some(policy)) };
        let target = self.captured_target(target, &path, instance);
        let present = Present { target, policy, allow_partial };
        let desired = present.desired();
        self.state.present.insert(name.to_owned(), present);
        desired
    }

    /// The innermost cgroup of all processes of a pid file's namespace changes whenever some come or go: the one
    /// that is captured stays as long as it holds them all.
    fn captured_target(&self, found: Target, path: &TargetPath, instance: Option<&InventoryItem>) -> Target {
        let (
            TargetPath::PidFile { .. },
            Some(InventoryItem { name, state: InstanceState::Active(active), .. }),
        ) = (path, instance)
        else {
            return found;
        };
        if active.netns_cookie != found.netns.id.number() || active.cgroup_id == found.cgroup.id {
            return found;
        }
        let captured = find::target(self.root, name).ok();
        let holds_all = |target: &Target| target.processes_outside().is_ok_and(|strays| strays.is_empty());
        captured.filter(holds_all).unwrap_or(found)
    }
}

fn is_in(desired: &Desired, cookie: u64) -> bool {
    matches!(desired.location, Location::Present { netns, .. } if netns == cookie)
}
