//! The proxy's listening sockets that are older than the attach: found in /proc and taken
//! over with pidfd_getfd (5.6).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::net::{getsockname, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::cgroup::Cgroup;
use super::descriptors::{self, Budget, Descriptor};
pub use super::descriptors::{MAX_DESCRIPTORS, MAX_DESCRIPTORS_OF_ONE, SEARCH_TIMEOUT};
use crate::base::error::{Context, Result};
use crate::netlink::sock_diag;
use crate::sys::netns::NetNs;

/// A listening socket of another process.
#[derive(Debug)]
pub struct Listener {
    /// Our own descriptor of it.
    pub socket: OwnedFd,
    /// Its port.
    pub port: u16,
    /// It is of family AF_INET6.
    pub v6: bool,
    /// The process it was found in.
    pub pid: u32,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the listener on port {} of process {}", self.port, self.pid)
    }
}

/// What a search for listeners gives.
#[derive(Debug)]
pub struct Found {
    /// Those whose processes are in the cgroup.
    pub listeners: Vec<Listener>,
    /// Ports, in order, on which the namespace has others, too.
    pub elsewhere: Vec<u16>,
    /// Ports of those that were made outside the cgroup (socket activation, a process that was moved): what they accept
    /// keeps their cgroup (`sk_clone`), where no hook of ours runs. Of each that is not registered, found or not.
    pub made_outside: Vec<u16>,
    /// The processes have more descriptors than are looked at, and some may be of those ports.
    pub incomplete: bool,
}

/// Listeners on `ports` in the namespace, taken from the processes in the cgroup.
pub fn find(netns: &NetNs, cgroup: &Cgroup, ports: &[u16]) -> Result<Found> {
    take_over(listening(netns, ports)?, cgroup)
}

/// Those of these listeners that are of processes in the cgroup, taken from them.
pub fn take_over(unknown: Vec<sock_diag::Socket>, cgroup: &Cgroup) -> Result<Found> {
    let made_outside = made_outside(&unknown, cgroup);
    let mut wanted: HashMap<u64, (u16, bool)> =
        unknown.into_iter().map(|socket| (socket.inode, (socket.local.port(), socket.v6))).collect();
    let mut listeners = Vec::new();
    let (sockets, mut budget) = (descriptors::mount_of_sockets(), Budget::new());
    for pid in cgroup.processes()? {
        if wanted.is_empty() || budget.is_spent() {
            break;
        }
        // None: it has ended.
        let Some(process) = open(pid)? else { continue };
        for (before, (number, descriptor)) in descriptors::of(pid, sockets).enumerate() {
            if wanted.is_empty() || !budget.allows(before) {
                break;
            }
            match descriptor {
                Descriptor::Socket(inode) if wanted.contains_key(&inode) => {}
                Descriptor::Unknown => {}
                Descriptor::Socket(_) | Descriptor::Other => continue,
            }
            let Some(socket) = take(&process, pid, number)? else { continue };
            // The number may have become that of another socket since it was looked at.
            if let Some((port, v6)) = inode_of(&socket).and_then(|inode| wanted.remove(&inode))
                && is_of_use(&socket)
            {
                listeners.push(Listener { socket, port, v6, pid });
            }
        }
    }
    let incomplete = budget.exceeded && !wanted.is_empty();
    let elsewhere: BTreeSet<u16> = wanted.into_values().map(|(port, _)| port).collect();
    Ok(Found { listeners, elsewhere: elsewhere.into_iter().collect(), made_outside, incomplete })
}

/// Ports of the sockets whose cgroup the kernel tells, and it is neither the cgroup nor below it.
fn made_outside(sockets: &[sock_diag::Socket], cgroup: &Cgroup) -> Vec<u16> {
    let mut others: Vec<_> =
        sockets.iter().filter(|it| it.cgroup.is_some_and(|id| id != cgroup.id)).collect();
    if !others.is_empty() {
        let inside = cgroup.ids();
        others.retain(|socket| socket.cgroup.is_some_and(|id| !inside.contains_key(&id)));
    }
    let ports: BTreeSet<u16> = others.into_iter().map(|socket| socket.local.port()).collect();
    ports.into_iter().collect()
}

/// Port and family (true: AF_INET6) of every listener on `ports` in the namespace.
pub fn present(netns: &NetNs, ports: &[u16]) -> Result<Vec<(u16, bool)>> {
    let listening = listening(netns, ports)?.into_iter();
    Ok(listening.map(|socket| (socket.local.port(), socket.v6)).collect())
}

/// A handle of a process; None if it has gone meanwhile.
fn open(pid: u32) -> Result<Option<OwnedFd>> {
    let Some(process) = Pid::from_raw(pid as i32) else { return Ok(None) };
    match pidfd_open(process, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        // EINVAL: it ends just now (pidfd_open(2)).
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(e) => Err(e).context(|| format!("open process {pid}, which may have a listener of the proxy")),
    }
}

/// Duplicates descriptor `fd` of a process; None if either has gone meanwhile.
fn take(process: &OwnedFd, pid: u32, fd: i32) -> Result<Option<OwnedFd>> {
    match pidfd_getfd(process, fd, PidfdGetfdFlags::empty()) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::BADF) => Ok(None),
        Err(e) => Err(e).context(|| {
            format!("take descriptor {fd} of process {pid}, a listener of the proxy (needs CAP_SYS_PTRACE)")
        }),
    }
}

/// The inode of a socket; None of anything else, whose numbers are of another kind, and which is not asked for them: its
/// file system may not answer.
fn inode_of(descriptor: &OwnedFd) -> Option<u64> {
    sockopt::socket_domain(descriptor).ok()?;
    let stat = rustix::fs::fstat(descriptor).ok()?;
    FileType::from_raw_mode(stat.st_mode).is_socket().then_some(stat.st_ino)
}

/// REDIRECT never sends to a loopback address but 127.0.0.1 and ::1.
fn is_of_use(socket: &OwnedFd) -> bool {
    let bound = getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok());
    bound.is_none_or(|bound| {
        let address = bound.ip().to_canonical();
        !address.is_loopback()
            || [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address)
    })
}

/// The listeners on `ports` in the namespace.
pub fn listening(netns: &NetNs, ports: &[u16]) -> Result<Vec<sock_diag::Socket>> {
    let mut sockets = netns.run(|| sock_diag::list(sock_diag::Kind::TcpListeners, None))?.list;
    sockets.retain(|socket| ports.contains(&socket.local.port()));
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_descriptor_that_became_another_socket() {
        let socket = || OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let (one, other) = (socket(), socket());
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", one.as_raw_fd())).unwrap().ino();
        assert_eq!(inode_of(&one), Some(inode));
        assert_ne!(inode_of(&other), Some(inode));
        assert_eq!(inode_of(&std::fs::File::open("/dev/null").unwrap().into()), None);
    }
}
