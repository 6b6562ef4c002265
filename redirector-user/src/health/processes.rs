//! The processes of a pod: which are not captured, and which are taken for the proxy.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::finding::{Finding, some_of};
use crate::base::error::{Context, Result};
use crate::base::input;
use crate::pod::{process, sandbox};
use crate::policy::Policy;

/// The processes of the node by the inode number of their network namespace: read once for all instances.
#[derive(Debug, Default)]
pub struct NodeProcesses(HashMap<u64, Vec<u32>>);

impl NodeProcesses {
    /// Reads /proc.
    ///
    /// # Errors
    ///
    /// If /proc cannot be read.
    pub fn read() -> Result<Self> {
        let mut all: HashMap<u64, Vec<u32>> = HashMap::new();
        for entry in std::fs::read_dir("/proc").context(|| "read /proc".into())?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(inode) = process::netns_inode(pid) {
                all.entry(inode).or_default().push(pid);
            }
        }
        Ok(Self(all))
    }

    pub(super) fn of(&self, netns: u64) -> &[u32] {
        self.0.get(&netns).map(Vec::as_slice).unwrap_or_default()
    }
}

/// A process in the pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub pid: u32,
    pub name: String,
    /// Effective ids, as the caller's user namespace counts.
    pub uid: u32,
    pub gid: u32,
    pub parent: u32,
    /// By a signal, or a debugger.
    pub stopped: bool,
    /// Its cgroup (v2), from the root of the hierarchy.
    pub cgroup: PathBuf,
}

impl Process {
    /// None if it has ended.
    pub(super) fn read(pid: u32) -> Option<Self> {
        let status = input::of_the_kernel(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str, column: usize| -> Option<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().nth(column)?.parse().ok()
        };
        let cgroups = process::cgroups(pid)?;
        let cgroup = cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        Some(Self {
            pid,
            name: process::name(pid),
            uid: number("Uid:", 1)?,
            gid: number("Gid:", 1)?,
            parent: number("PPid:", 0)?,
            // "T (stopped)", "t (tracing stop)"
            stopped: status
                .lines()
                .any(|line| line.strip_prefix("State:\t").is_some_and(|s| s.starts_with(['T', 't']))),
            cgroup: cgroup.into(),
        })
    }

    /// Its cgroup's directory, if that is one of these.
    pub(super) fn home<'a>(&self, cgroups: &'a HashMap<u64, PathBuf>) -> Option<&'a PathBuf> {
        let own = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup);
        cgroups.values().find(|path| path.ends_with(own))
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        format!("pid {} {}", self.pid, self.name)
    }
}

/// Processes that are outside the cgroup. Of the proxy's user no program captures anything, wherever it is.
pub(super) fn judge_outside(policy: &Policy, outside: &[&Process], cgroup: &str) -> Vec<Finding> {
    let is_proxy = |process: &&&Process| {
        policy.proxy_uids.contains(&process.uid) || policy.proxy_gids.contains(&process.gid)
    };
    let (proxy, others): (Vec<&Process>, Vec<&Process>) = outside.iter().partition(is_proxy);
    let what = |of: &str, all: &[&Process]| {
        let shown: Vec<String> = all.iter().map(|p| format!("{} {}", p.pid, p.name)).collect();
        let many = if all.len() == 1 { "process" } else { "processes" };
        format!("outside the cgroup {cgroup}: {} {many} of the {of} ({})", all.len(), some_of(&shown, 8))
    };
    let mut findings = Vec::new();
    if !others.is_empty() {
        findings.push(Finding::fault(
            "process_outside",
            what("pod", &others),
            "their connections go past the proxy",
            "move them into it (echo PID > cgroup.procs) and start them again, or attach with a cgroup that holds them all"
                .into(),
        ));
    }
    if !proxy.is_empty() {
        findings.push(Finding::notice(
            "process_outside",
            what("proxy", &proxy),
            "sockets that they listen on from now on get nothing that is captured",
            "start the proxy in the cgroup".into(),
        ));
    }
    findings
}

/// A pod with a kernel of its own.
pub(super) fn judge_sandbox(process: String) -> Finding {
    Finding::fault(
        "own_kernel",
        format!("the pod has a kernel of its own ({process})"),
        "its sockets are not this kernel's, and nothing of them is captured",
        sandbox::REMEDY.into(),
    )
}

/// Processes that run as the proxy's user or group and are not the proxy: not related to one that listens on a port of the proxy, and
/// not in its container.
pub(super) fn judge_impostors(
    processes: &[Process],
    listening: &HashSet<u32>,
    (uids, gids): (&[u32], &[u32]),
    whole: &str,
) -> Option<Finding> {
    let is_known = |p: &Process| uids.contains(&p.uid) || gids.contains(&p.gid);
    let by_pid: HashMap<u32, &Process> = processes.iter().map(|p| (p.pid, p)).collect();
    let proxies: Vec<&Process> =
        processes.iter().filter(|p| listening.contains(&p.pid) && is_known(p)).collect();
    if proxies.is_empty() {
        // Nobody knows which of them is the proxy.
        return None;
    }
    let is_ancestor = |ancestor: u32, mut of: u32| {
        // No longer than there are processes: a pid may be used again while we look.
        for _ in 0..=processes.len() {
            if of == ancestor {
                return true;
            }
            let Some(process) = by_pid.get(&of) else { return false };
            of = process.parent;
        }
        false
    };
    let related = |p: &Process| {
        proxies.iter().any(|proxy| is_ancestor(p.pid, proxy.pid) || is_ancestor(proxy.pid, p.pid))
    };
    // Without containers of their own the cgroup tells nothing.
    let same_container =
        |p: &Process| proxies.iter().any(|proxy| proxy.cgroup == p.cgroup && !p.cgroup.ends_with(whole));
    let impostors: Vec<String> = processes
        .iter()
        .filter(|p| is_known(p) && !related(p) && !same_container(p))
        .map(|p| format!("{} (uid {}, gid {})", p.told(), p.uid, p.gid))
        .collect();
    if impostors.is_empty() {
        return None;
    }
    Some(Finding::fault(
        "app_as_proxy_user",
        format!("runs as the proxy's user or group and is not the proxy: {}", some_of(&impostors, 8)),
        "its connections are taken for the proxy's own and go past it",
        "run the application as another user and group, or attach with --proxy-cgroup in place of -u and -g"
            .into(),
    ))
}

/// Processes of the proxy that do not run: the kernel accepts connections in their place, until their queues are full.
pub(super) fn judge_stopped(proxy: &[&Process], cgroups: &HashMap<u64, PathBuf>) -> Vec<Finding> {
    let finding = |process: &&Process| {
        let (how, remedy) = if process.stopped {
            ("stopped".to_owned(), format!("kill -CONT {}", process.pid))
        } else if let Some(path) = frozen_by_v1(process.pid) {
            let path = path.display();
            let remedy = format!(
                "echo THAWED > {path}/freezer.state, or docker unpause; or of the cgroup above that is frozen"
            );
            (format!("frozen with its cgroup {path}"), remedy)
        } else {
            let path = process.home(cgroups).filter(|path| is_frozen(path))?.display();
            let remedy = format!("echo 0 > {path}/cgroup.freeze, or of the cgroup above that is frozen");
            (format!("frozen with its cgroup {path}"), remedy)
        };
        let what = format!("the proxy ({}) is {how}", process.told());
        let effect = "captured connections are accepted and get no answer";
        Some(Finding::fault("listener_stopped", what, effect, remedy))
    };
    proxy.iter().filter_map(finding).collect()
}

/// The freezer's cgroup (v1) of a process, if that is frozen, by itself or by one above it. Where hierarchies of v1 are
/// mounted, they are here (systemd, docs/CGROUP_DELEGATION.md).
fn frozen_by_v1(pid: u32) -> Option<PathBuf> {
    let cgroups = process::cgroups(pid)?;
    let own = cgroups.lines().find_map(|line| line.split_once(":freezer:"))?.1;
    let path = Path::new("/sys/fs/cgroup/freezer").join(own.trim_start_matches('/'));
    let state = input::of_the_kernel(path.join("freezer.state")).ok()?;
    (state.trim() != "THAWED").then_some(path)
}

/// Whether a cgroup is, or one above it.
fn is_frozen(cgroup: &Path) -> bool {
    let events = input::of_the_kernel(cgroup.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, uid: u32, parent: u32, cgroup: &str) -> Process {
        Process { pid, uid, parent, cgroup: cgroup.into(), name: format!("p{pid}"), ..Process::default() }
    }

    #[test]
    fn the_proxys_relatives_are_the_proxy() {
        let listening = HashSet::from([20]);
        let of = |processes: &[Process]| {
            judge_impostors(processes, &listening, (&[1337], &[1338]), "pod").map(|finding| finding.what)
        };
        let agent_and_envoy =
            [process(10, 1337, 1, "/pod"), process(20, 1337, 10, "/pod"), process(21, 1337, 20, "/pod")];
        assert_eq!(of(&agent_and_envoy), None);
        let mut with_app = agent_and_envoy.to_vec();
        with_app.push(process(30, 1337, 1, "/pod"));
        assert!(of(&with_app).is_some_and(|what| what.contains("pid 30 p30 (uid 1337, gid 0)")));
        // kubectl exec into the proxy's container.
        let contained = [process(20, 1337, 1, "/pod/proxy"), process(30, 1337, 1, "/pod/proxy")];
        assert_eq!(of(&contained), None);
        let apart = [process(20, 1337, 1, "/pod/proxy"), process(30, 1337, 1, "/pod/app")];
        assert!(of(&apart).is_some());
        // Its group tells the proxy, too.
        let by_group = Process { gid: 1338, ..process(31, 1000, 1, "/pod/app") };
        assert!(of(&[process(20, 1337, 1, "/pod/proxy"), by_group]).is_some());
        // Another user, and a pod whose proxy nobody knows.
        assert_eq!(of(&[process(20, 1337, 1, "/pod"), process(30, 1000, 1, "/pod")]), None);
        assert_eq!(of(&[process(30, 1337, 1, "/pod")]), None);
    }

    #[test]
    fn of_this_process() {
        let own = Process::read(std::process::id()).unwrap();
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        assert_eq!(Some(own.parent), rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32));
        assert_eq!(Process::read(0), None);
    }
}
