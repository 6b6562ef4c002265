//! The node: its instances, the agent, the CNI plugin, the bpffs.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use schemars::JsonSchema;
use serde::Serialize;

use super::finding::{Finding, Health};
use super::processes::NodeProcesses;
use super::{gather, room};
use crate::base::error::{Context, Result};
use crate::cni::plugin;
use crate::cni::protocol::SOCKET;
use crate::cni_install;
use crate::instance::directory::Directory;
use crate::kernel::privileges;

/// Where the agent and the plugin have their files.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory of the agent's lock and socket.
    pub run_dir: PathBuf,
    /// Directory of the files that name targets.
    pub targets: PathBuf,
    /// Directory of the runtime's network configurations.
    pub cni_conf: PathBuf,
}

/// What there is to say of the node beside its instances.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NodeHealth {
    /// An agent holds the lock; null: nobody can say.
    pub agent: Option<bool>,
    /// The file that the CNI plugin is installed in.
    pub plugin: Option<PathBuf>,
    /// What was found; faults first.
    pub findings: Vec<Finding>,
}

/// Every instance, each looked at; a few at a time, as most of the time the kernel is waited for.
///
/// # Errors
///
/// If the instances cannot be listed, or /proc cannot be read.
pub fn instances(root: &Directory) -> Result<Vec<Health>> {
    const AT_ONCE: usize = 4;
    let names = root.names()?;
    let processes = NodeProcesses::read()?;
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // An error: it has been detached meanwhile.
                    if let Ok(health) = gather::instance(root, name, &processes)
                        && let Ok(mut found) = found.lock()
                    {
                        found.push(health);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_default();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Looks at the node; `awaited` is what the agent's files say of targets that are not there.
pub fn node(root: &Directory, places: &Places, instances: &[Health], awaited: Vec<Finding>) -> NodeHealth {
    let mut findings = Vec::new();
    if let Err(e) = privileges::require() {
        findings.push(Finding::unknown("the node", &e));
    }
    if let Some(obstacle) = root.obstacle() {
        let (what, remedy) = obstacle.split_once("; ").unwrap_or((&obstacle, ""));
        findings.push(Finding::fault("bpffs", what.into(), "nothing can be attached", remedy.into()));
    }
    findings.extend(room::read_only(root));
    let plugin = installed_plugin(&places.cni_conf);
    let lock = places.run_dir.join("agent.lock");
    let held = is_locked(&lock).context(|| format!("lock {}", lock.display()));
    let agent =
        held.and_then(
            |held| if held { Ok((true, true)) } else { agent_works_on(root).map(|held| (held, false)) },
        );
    match &agent {
        Ok((true, is_here)) => findings.extend(is_here.then(|| judge_answer(&places.run_dir)).flatten()),
        Ok((false, _)) => {
            let expecting = Expecting {
                targets: has_files(&places.targets),
                plugin: plugin.is_some(),
                instances: instances.iter().any(|one| is_the_agents(&one.name)),
            };
            findings.push(judge_absence(&lock, &places.targets, &expecting));
        }
        Err(e) => findings.push(Finding::unknown("the agent", e)),
    }
    findings.extend(awaited);
    findings.sort_by_key(|finding| finding.level);
    NodeHealth { agent: agent.ok().map(|(works, _)| works), plugin, findings }
}

/// Whether an agent works on these instances, whatever its --run-dir: it holds the mount point of their bpffs.
///
/// # Errors
///
/// If that cannot be asked.
pub fn agent_works_on(root: &Directory) -> Result<bool> {
    let bpffs = root.dir().parent().unwrap_or(Path::new("/"));
    is_locked(bpffs).context(|| format!("lock {}", bpffs.display()))
}

/// Whether an instance has a name that only the agent gives.
pub fn is_the_agents(name: &str) -> bool {
    name.starts_with("file-") || name.starts_with("pod-")
}

/// Whether somebody holds the agent's lock.
fn is_locked(path: &Path) -> std::io::Result<bool> {
    let file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Who counts on the agent.
#[derive(Clone, Copy, Debug, Default)]
struct Expecting {
    targets: bool,
    plugin: bool,
    instances: bool,
}

fn judge_absence(lock: &Path, targets: &Path, expecting: &Expecting) -> Finding {
    let what = format!("no agent holds {}", lock.display());
    let start = "start it: systemctl start redirector-agent, or see why its pod does not run".to_owned();
    let mut effects = Vec::new();
    if expecting.plugin {
        effects.push("the CNI plugin lets no pod start".to_owned());
    }
    if expecting.targets {
        effects.push(format!("the targets in {} are not captured when they start", targets.display()));
    }
    if expecting.instances {
        effects.push("its instances do not follow changes of addresses and routes".to_owned());
    }
    if effects.is_empty() {
        let effect = "instances do not follow changes of addresses and routes by themselves";
        return Finding::notice(
            "no_agent",
            what,
            effect,
            format!("redirector refresh NAME after a change, or {start}"),
        );
    }
    Finding::fault("no_agent", what, &effects.join("; "), start)
}

/// What the agent says of itself.
fn judge_answer(run_dir: &Path) -> Option<Finding> {
    let why = plugin::ask_ready(&run_dir.join(SOCKET)).err()?;
    let remedy = "see its log (journalctl -u redirector-agent, kubectl logs), and whether it is stopped (T in ps) or frozen".to_owned();
    Some(Finding::fault(
        "agent_not_ready",
        format!("the agent is not ready: {why}"),
        "pods may not start, or not be captured",
        remedy,
    ))
}

/// Whether there are files of targets, as the agent reads them.
fn has_files(dir: &Path) -> bool {
    let is_target = |name: &str| name.ends_with(".toml") && !name.starts_with('.');
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(is_target))
}

/// The network configuration that the runtime uses, if our plugin is in it.
fn installed_plugin(dir: &Path) -> Option<PathBuf> {
    let (path, has_ours) = cni_install::first_network(dir)?;
    has_ours.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Level;

    #[test]
    fn whose_absence_is_a_fault() {
        let (lock, targets) =
            (Path::new("/run/redirector/agent.lock"), Path::new("/etc/redirector/targets.d"));
        let of = |expecting| judge_absence(lock, targets, &expecting);
        let nobody = of(Expecting::default());
        assert_eq!(
            (nobody.level, nobody.what.as_str()),
            (Level::Notice, "no agent holds /run/redirector/agent.lock")
        );
        for (expecting, words) in [
            (Expecting { targets: true, ..Expecting::default() }, "targets.d are not captured"),
            (Expecting { plugin: true, ..Expecting::default() }, "lets no pod start"),
            (Expecting { instances: true, ..Expecting::default() }, "follow changes"),
        ] {
            let found = of(expecting);
            assert!(found.level == Level::Fault && found.consequence.contains(words), "{found:?}");
        }
    }

    #[test]
    fn locks_and_plugins() {
        let dir = std::env::temp_dir().join(format!("redirector-node-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let lock = dir.join("agent.lock");
        assert!(!is_locked(&lock).unwrap());
        let held = File::create(&lock).unwrap();
        assert!(!is_locked(&lock).unwrap());
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(is_locked(&lock).unwrap());
        assert_eq!(installed_plugin(&dir), None);
        std::fs::write(
            dir.join("20-other.conflist"),
            r#"{"name": "n", "plugins": [{"type": "ptp"}, {"type": "redirector"}]}"#,
        )
        .unwrap();
        assert!(installed_plugin(&dir).is_some());
        // CRI-O passes over what is no network.
        std::fs::write(dir.join("10-net.conflist"), r#"{"plugins": []}"#).unwrap();
        assert!(installed_plugin(&dir).is_some());
        std::fs::write(dir.join("10-net.conflist"), r#"{"name": "n", "plugins": [{"type": "bridge"}]}"#)
            .unwrap();
        assert_eq!(installed_plugin(&dir), None);
        assert!(!has_files(&dir), "no file of a target");
        std::fs::write(dir.join("shop.toml"), "").unwrap();
        assert!(has_files(&dir));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
