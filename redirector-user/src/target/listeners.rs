//! The proxy's listening sockets that are older than the attach: found in /proc and taken
//! over with pidfd_getfd (5.6).

use super::cgroup::Cgroup;
use crate::error::{Context, Result};
use crate::sys::netns::NetNs;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashMap;
use std::os::fd::OwnedFd;

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

/// Listeners on `ports` in the namespace whose processes are in the cgroup.
pub fn find(netns: &NetNs, cgroup: &Cgroup, ports: &[u16]) -> Result<Vec<Listener>> {
    let mut wanted = netns.run(|| listening(ports)).context(|| "enter the network namespace".into())??;
    let mut found = Vec::new();
    for pid in cgroup.processes()? {
        if wanted.is_empty() {
            break;
        }
        // A process that has ended has no sockets any more.
        let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for fd in fds.flatten() {
            let Ok(link) = std::fs::read_link(fd.path()) else { continue };
            let Some(inode) = socket_inode(&link.to_string_lossy()) else { continue };
            let Some(&(port, v6)) = wanted.get(&inode) else { continue };
            let Some(number) = fd.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            // The number may have become that of another socket since the link was read.
            if let Some(socket) = take(pid, number)?.filter(|socket| is_inode(socket, inode)) {
                wanted.remove(&inode);
                found.push(Listener { socket, port, v6, pid });
            }
        }
    }
    Ok(found)
}

/// Port and family (true: AF_INET6) of every listener on `ports` in the namespace.
pub fn present(netns: &NetNs, ports: &[u16]) -> Result<Vec<(u16, bool)>> {
    let all = netns.run(|| listening(ports)).context(|| "enter the network namespace".into())??;
    Ok(all.into_values().collect())
}

/// Duplicates descriptor `fd` of a process; None if either has gone meanwhile.
fn take(pid: u32, fd: i32) -> Result<Option<OwnedFd>> {
    let Some(process) = Pid::from_raw(pid as i32) else { return Ok(None) };
    let taken = pidfd_open(process, PidfdFlags::empty())
        .and_then(|pidfd| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()));
    match taken {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::BADF) => Ok(None),
        Err(e) => Err(e).context(|| {
            format!("take descriptor {fd} of process {pid}, a listener of the proxy (needs CAP_SYS_PTRACE)")
        }),
    }
}

fn is_inode(socket: &OwnedFd, inode: u64) -> bool {
    rustix::fs::fstat(socket).is_ok_and(|stat| stat.st_ino == inode)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Inode → (port, IPv6) of the listeners on `ports`, as the calling thread's namespace has them.
fn listening(ports: &[u16]) -> Result<HashMap<u64, (u16, bool)>> {
    let mut all = HashMap::new();
    for (file, v6) in [("/proc/thread-self/net/tcp", false), ("/proc/thread-self/net/tcp6", true)] {
        match std::fs::read_to_string(file) {
            Ok(text) => all.extend(
                text.lines()
                    .skip(1)
                    .filter_map(parse)
                    .filter(|(_, port)| ports.contains(port))
                    .map(|(inode, port)| (inode, (port, v6))),
            ),
            Err(e) if v6 && e.kind() == std::io::ErrorKind::NotFound => {} // no IPv6
            Err(e) => return Err(e).context(|| format!("read {file}")),
        }
    }
    Ok(all)
}

/// Inode and port of a line of /proc/net/tcp that is in state LISTEN (0A).
fn parse(line: &str) -> Option<(u64, u16)> {
    let mut fields = line.split_ascii_whitespace();
    let local = fields.nth(1)?;
    if fields.nth(1)? != "0A" {
        return None;
    }
    let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
    let inode = fields.nth(5)?.parse().ok()?;
    Some((inode, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn proc_net_tcp() {
        let listen = "   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 \
                      12345 1 ffff 100 0 0 10 0";
        assert_eq!(parse(listen), Some((12345, 15001)));
        assert_eq!(parse(&listen.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse("garbage"), None);
        assert_eq!(socket_inode("socket:[77]"), Some(77));
        assert_eq!(socket_inode("pipe:[77]"), None);
    }

    #[test]
    fn a_descriptor_that_became_another_socket() {
        let socket = || OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let (one, other) = (socket(), socket());
        let link = std::fs::read_link(format!("/proc/self/fd/{}", one.as_raw_fd())).unwrap();
        let inode = socket_inode(&link.to_string_lossy()).unwrap();
        assert!(is_inode(&one, inode));
        assert!(!is_inode(&other, inode));
    }
}
