//! What an instance is attached to: a network namespace and a cgroup.

pub mod boundary;
pub mod cgroup;
pub mod cgroup_namespace;
pub mod descriptors;
pub mod facts;
pub mod kubernetes;
pub mod listeners;
pub mod live_rules;
pub mod name;
pub mod process;
pub mod sandbox;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cgroup::Cgroup;
use name::PodName;

use crate::base::error::{Context, Error, Result};
use crate::sys::netns::{NetNs, NetnsId};
use crate::sys::userns;

/// An open target. Captured are the sockets that are created in the cgroup (or below) and
/// are in the namespace.
#[derive(Debug)]
pub struct Target {
    /// The namespace.
    pub netns: NetNs,
    /// The file it was opened by.
    pub netns_path: PathBuf,
    /// The cgroup.
    pub cgroup: Cgroup,
    /// The process that stands for the target, if it was given by one.
    pub pid: Option<u32>,
    /// The pod of Kubernetes that it is, if it is known to be one.
    pub pod: Option<PodName>,
}

impl Target {
    /// The namespace of a process, and the cgroup of the pod, unit or container that holds every process of it
    /// (`boundary`).
    ///
    /// # Errors
    ///
    /// [`Error::input`] if there is no such process, if it lives in the machine's own namespace,
    /// or if there is no such cgroup.
    pub fn of_pid(pid: u32) -> Result<Self> {
        let netns_path = netns_file(pid);
        let netns = open_netns(&netns_path, || {
            format!("there is no process {pid} (or it has ended); give the pid as the host sees it")
        })?;
        refuse_own(&netns, &netns_path)?;
        Self::of_processes(netns, netns_path, pid)
    }

    /// The namespace that we are in ourselves, with the cgroup as [`Target::of_pid`] takes it.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if that is the machine's own, or there is no such cgroup.
    pub fn own() -> Result<Self> {
        let path = Path::new("/proc/self/ns/net");
        let netns = open_netns(path, || "/proc is not mounted".into())?;
        // net_core_table is registered for the initial namespace alone; in others of the machine (a node in
        // a container) its processes have only the root cgroup in common.
        if Path::new("/proc/sys/net/core/netdev_max_backlog").exists() {
            return Err(machines(path));
        }
        let own = std::process::id();
        // One that stays longer than we do.
        let other = process::in_netns(netns.inode)?.into_iter().find(|pid| *pid != own);
        let netns_path = PathBuf::from(format!("/proc/{}/ns/net", other.unwrap_or(own)));
        Self::of_processes(netns, netns_path, own)
    }

    /// A namespace file, with the cgroup as [`Target::of_pid`] takes it.
    ///
    /// # Errors
    ///
    /// As [`Target::of_pid`], and if no process is in it.
    pub fn of_netns(path: &Path) -> Result<Self> {
        let netns = open_netns(path, || format!("{} does not exist", path.display()))?;
        refuse_own(&netns, path)?;
        let Some(pid) = process::in_netns(netns.inode)?.into_iter().next() else {
            return Err(Error::input(format!(
                "no process is in {}, so there is no cgroup to take",
                path.display()
            ))
            .usage("use `redirector attach --netns FILE --cgroup DIR`"));
        };
        Self::of_processes(netns, std::path::absolute(path).unwrap_or_else(|_| path.into()), pid)
    }

    /// With the cgroup of `pid` and of the namespace's other processes.
    fn of_processes(netns: NetNs, netns_path: PathBuf, pid: u32) -> Result<Self> {
        let mut processes = process::in_netns(netns.inode)?;
        if !processes.contains(&pid) {
            processes.push(pid);
        }
        let cgroup = boundary::cgroup_of(&processes)?;
        Ok(Self { netns, netns_path, cgroup, pid: Some(pid), pod: None })
    }

    /// A namespace file and a cgroup v2 directory.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if either is not what it should be.
    pub fn of_paths(netns_path: &Path, cgroup: &Path) -> Result<Self> {
        let netns = open_netns(netns_path, || {
            format!(
                "{} does not exist; give a file such as /proc/PID/ns/net or /run/netns/NAME",
                netns_path.display()
            )
        })?;
        refuse_own(&netns, netns_path)?;
        // Later commands run elsewhere.
        let path = std::path::absolute(netns_path).context(|| format!("resolve {}", netns_path.display()))?;
        Ok(Self { netns, netns_path: path, cgroup: Cgroup::open(cgroup)?, pid: None, pod: None })
    }

    /// A namespace that is open already, by the file of its descriptor, and known by another.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if it is none, or the machine's own.
    pub fn of_open(file: &Path, known_as: PathBuf, cgroup: Cgroup) -> Result<Self> {
        let netns = open_netns(file, || format!("{} is not open", file.display()))?;
        refuse_own(&netns, &known_as)?;
        Ok(Self { netns, netns_path: known_as, cgroup, pid: None, pod: None })
    }

    /// A cgroup v2 directory and the namespace of the processes in it; None if there is no process in it.
    ///
    /// Processes in the machine's own namespace do not count beside others: CRI-O puts the monitor of a pod's containers
    /// into the pod's cgroup (`conmon_cgroup = "pod"`). It is not captured, its sockets are in another namespace.
    /// Nor does a namespace that a process without privileges has made: it belongs to a user namespace within the one that
    /// the pod's belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if its processes are in several namespaces, or all in the machine's own.
    pub fn of_cgroup(cgroup: Cgroup) -> Result<Option<Self>> {
        let (mut found, mut machines_own): (Vec<(NetNs, u32)>, _) = (Vec::new(), None);
        let own = own_ids();
        for pid in cgroup.processes()? {
            // It may have ended meanwhile.
            let Ok(netns) = NetNs::open(&netns_file(pid)) else { continue };
            if own.contains(&netns.id) {
                machines_own = Some(pid);
            } else if found.iter().all(|(other, _)| other.id != netns.id) {
                found.push((netns, pid));
            }
        }
        if found.len() > 1 {
            found = outermost(found).context(|| "find the user namespaces of network namespaces".into())?;
        }
        if let [(_, first), (_, second), ..] = found.as_slice() {
            return Err(Error::input(format!(
                "the processes of the cgroup {} are in several network namespaces (those of {first} and {second}, for \
                 instance)",
                cgroup.path.display()
            ))
            .remedy("give a cgroup for each, or say which with the namespace's file"));
        }
        match (found.pop(), machines_own) {
            (Some((netns, pid)), _) => {
                Ok(Some(Self { netns, netns_path: netns_file(pid), cgroup, pid: Some(pid), pod: None }))
            }
            (None, Some(pid)) => Err(machines(&netns_file(pid))),
            (None, None) => Ok(None),
        }
    }

    /// A sentence about the processes that are not captured; None if there are none.
    pub fn describe_processes_outside(&self) -> Result<Option<String>> {
        let strays = self.processes_outside()?;
        if strays.is_empty() {
            return Ok(None);
        }
        let shown: Vec<String> =
            strays.iter().take(8).map(|pid| format!("{pid} ({})", process::name(*pid))).collect();
        Ok(Some(format!(
            "{} not in the cgroup {} and would not be captured: {}",
            match strays.len() {
                1 => "1 of the network namespace's processes is".to_owned(),
                more => format!("{more} of the network namespace's processes are"),
            },
            self.cgroup.path.display(),
            shown.join(", ")
        )))
    }

    /// Processes of the namespace that are not in the cgroup, and so are not captured.
    pub fn processes_outside(&self) -> Result<Vec<u32>> {
        let mut strays = process::in_netns(self.netns.inode)?;
        // Processes come and go while we look: a stray is one each time, and there after that. One that is being forked
        // is in its namespace before it is in its cgroup (copy_process: cgroup_post_fork comes last), one that is ending is
        // there longer than cgroup.procs lists it (Linux 7.0, a72f73c4dd9b).
        for _ in 0..process::LOOKS {
            let inside = self.cgroup.processes()?;
            strays.retain(|pid| !inside.contains(pid));
            if strays.is_empty() {
                break;
            }
            std::thread::sleep(process::FORKING);
        }
        strays
            .retain(|pid| process::netns_inode(*pid) == Some(self.netns.inode) && !process::is_ending(*pid));
        Ok(strays)
    }
}

fn netns_file(pid: u32) -> PathBuf {
    format!("/proc/{pid}/ns/net").into()
}

/// Without those whose owner is a user namespace within the owner of another.
fn outermost(namespaces: Vec<(NetNs, u32)>) -> std::io::Result<Vec<(NetNs, u32)>> {
    let owners: Vec<Vec<(u64, u64)>> =
        namespaces.iter().map(|(netns, _)| userns::owners_of(netns.as_fd())).collect::<Result<_, _>>()?;
    let is_within = |inner: &[_], outer: &[_]| inner.len() > outer.len() && inner.ends_with(outer);
    let is_outermost = |own: &Vec<_>| !owners.iter().any(|other| is_within(own, other));
    Ok(namespaces.into_iter().zip(&owners).filter(|(_, own)| is_outermost(own)).map(|(it, _)| it).collect())
}

/// Opens a namespace file; a wrong one is the user's error.
pub fn open_netns(path: &Path, missing: impl FnOnce() -> String) -> Result<NetNs> {
    match NetNs::open_of_node(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::input(missing())),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput || e.raw_os_error() == Some(libc::ENOTTY) => {
            Err(Error::input(format!("{} is not a network namespace", path.display()))
                .remedy("give a file such as /proc/PID/ns/net or /run/netns/NAME"))
        }
        other => other.context(|| format!("open the network namespace {}", path.display())),
    }
}

/// Capturing the namespace of the machine itself would cut its own connections. Process 1 may be
/// out of our sight (another pid namespace, more capabilities than ours); then our own counts.
fn refuse_own(netns: &NetNs, path: &Path) -> Result<()> {
    if own_ids().contains(&netns.id) {
        return Err(machines(path));
    }
    Ok(())
}

fn own_ids() -> Vec<NetnsId> {
    let files = ["/proc/1/ns/net", "/proc/self/ns/net"];
    files.iter().filter_map(|file| NetNs::open(Path::new(file)).ok()).map(|netns| netns.id).collect()
}

fn machines(path: &Path) -> Error {
    Error::input(format!(
        "{} is the machine's own network namespace, which is never captured (a pod with hostNetwork?)",
        path.display()
    ))
    .remedy("give the namespace of a pod")
}
