//! The TCP connections of a pod: whether each is captured, and if not, why.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use redirector_common::Addr;
use redirector_common::abi::{DIRECT, OriginalDst, SockKind, SockState};
use redirector_common::rule::Counter;
use schemars::JsonSchema;
use serde::Serialize;

use super::finding::{Finding, some_of};
use crate::explain::{self, Arriving, Offline, Outgoing};
use crate::netlink::sock_diag::Socket;
use crate::policy::Policy;
use crate::rules::Protocol;

/// What an instance did with a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It goes to the proxy.
    Captured,
    /// The proxy has accepted it.
    AtProxy,
    /// The rules let it pass.
    Passed,
    /// The rules would capture it, and no program has seen it.
    Missed,
    /// It is of a kind that no rule captures.
    NotAsked,
    /// Nobody can say: the kernel does not tell what it holds of sockets.
    Unknown,
}

impl Fate {
    /// In one word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::AtProxy => "at proxy",
            Self::Passed => "passed",
            Self::Missed => "MISSED",
            Self::NotAsked => "-",
            Self::Unknown => "unknown",
        }
    }
}

/// A TCP connection of a pod.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Connection {
    /// Captured or not.
    pub fate: Fate,
    /// Its own address.
    pub local: SocketAddr,
    /// The other end, as the kernel has it.
    pub remote: SocketAddr,
    /// Where it was going, if it is captured.
    pub original: Option<SocketAddr>,
    /// The rule that decided, as in `redirector show`.
    pub rule: Option<&'static str>,
    /// Why it is not captured.
    pub why: Option<String>,
    /// User of the socket.
    pub uid: u32,
    /// Its process, if that can be told.
    pub pid: Option<u32>,
    /// The process's name.
    pub process: Option<String>,
    /// Id of the cgroup it was made in.
    pub cgroup_id: Option<u64>,
}

/// What is known of the pod.
pub(super) struct Pod<'a> {
    /// The policy, with the kernel's users.
    pub policy: &'a Policy,
    /// Lists and routes as they are in force.
    pub in_force: &'a Offline,
    /// Ids of the cgroups that are captured.
    pub cgroups: HashMap<u64, std::path::PathBuf>,
    /// What the loopback addresses stand for that the instance has given.
    pub destinations: HashMap<Addr, OriginalDst>,
    /// Ports on which the pod listens.
    pub listening: HashSet<u16>,
    /// Whose sockets they are, by inode: pid, name, group.
    pub owners: HashMap<u64, (u32, String, u32)>,
}

/// Each connection, judged. `told`: the kernel tells what the instance holds of each socket.
pub(super) fn list(pod: &Pod<'_>, sockets: &[Socket], told: bool) -> Vec<Connection> {
    let ends: HashSet<(SocketAddr, SocketAddr)> = sockets.iter().map(|s| (s.local, s.remote)).collect();
    sockets.iter().map(|socket| judge(pod, socket, &ends, told)).collect()
}

fn judge(pod: &Pod<'_>, socket: &Socket, ends: &HashSet<(SocketAddr, SocketAddr)>, told: bool) -> Connection {
    let owner = pod.owners.get(&socket.inode);
    let mut connection = Connection {
        fate: Fate::Unknown,
        local: socket.local,
        remote: socket.remote,
        original: None,
        rule: None,
        why: None,
        uid: socket.uid,
        pid: owner.map(|(pid, ..)| *pid),
        process: owner.map(|(_, name, _)| name.clone()),
        cgroup_id: socket.cgroup,
    };
    if by_address(&mut connection, &pod.destinations) {
        return connection;
    }
    let state = socket.storage.as_deref().and_then(|bytes| bytemuck::try_pod_read_unaligned(bytes).ok());
    match state {
        Some(state) if told_by(&mut connection, &state) => {}
        _ if !told => {
            connection.why = Some("the kernel does not tell what it holds of sockets (sock_diag)".into())
        }
        _ => unseen(pod, socket, ends, &mut connection),
    }
    connection
}

/// What the address of one of its ends stands for; false if it stands for no original destination.
fn by_address(connection: &mut Connection, destinations: &HashMap<Addr, OriginalDst>) -> bool {
    let of = |end: SocketAddr| {
        destinations.get(&Addr::from(end.ip())).filter(|original| original.proxy_port == end.port())
    };
    let (fate, original) = match (of(connection.remote), of(connection.local)) {
        (Some(original), _) if original.verdict == DIRECT => (Fate::Passed, original),
        (Some(original), _) => (Fate::Captured, original),
        (None, Some(original)) => (Fate::AtProxy, original),
        (None, None) => return false,
    };
    connection.fate = fate;
    connection.rule = Counter::ALL.get(original.rule as usize).map(|rule| rule.name());
    connection.original = Some(SocketAddr::new(original.addr.into(), original.port));
    true
}

/// What a program has noted of the socket; false if that says nothing of this connection.
fn told_by(connection: &mut Connection, state: &SockState) -> bool {
    let rule = Counter::ALL.get(state.rule as usize).map(|rule| rule.name());
    match state.kind {
        SockKind::PASSED | SockKind::LOCAL => {
            connection.fate = Fate::Passed;
            connection.rule = rule;
        }
        SockKind::REDIRECTED => {
            connection.fate = Fate::Captured;
            connection.rule = rule;
            connection.original = Some(SocketAddr::new(state.orig.into(), state.orig_port));
        }
        SockKind::ACCEPTED => {
            connection.fate = Fate::AtProxy;
            connection.rule = rule;
            connection.original = Some(SocketAddr::new(state.orig.into(), state.orig_port));
        }
        // Of a listener, cloned into what it accepts: it came from the network.
        SockKind::LISTENER => {
            connection.fate = Fate::AtProxy;
            let original = SocketAddr::new(state.orig.into(), state.orig_port);
            connection.original = Some(original).filter(|at| at.port() != 0);
        }
        _ => return false,
    }
    true
}

/// No program has noted anything of it: either no rule would capture it, or no program has seen it.
fn unseen(
    pod: &Pod<'_>,
    socket: &Socket,
    ends: &HashSet<(SocketAddr, SocketAddr)>,
    connection: &mut Connection,
) {
    connection.fate = Fate::NotAsked;
    let accepted = pod.listening.contains(&socket.local.port());
    let explanation = if accepted {
        // The other end is in the pod: the decision was that socket's.
        if ends.contains(&(socket.remote, socket.local)) {
            return;
        }
        let arriving = Arriving { protocol: Protocol::Tcp, to: socket.local, interface: None };
        explain::incoming(pod.policy, pod.in_force, &arriving)
    } else if socket.inode == 0 {
        // `sock_orphan`: what it held of the socket is gone, and the user is told as 0 (`sock_i_uid`).
        connection.fate = Fate::Unknown;
        connection.why = Some("its process has closed it".into());
        return;
    } else {
        let home = socket.cgroup.and_then(|id| pod.cgroups.get(&id)).zip(pod.policy.proxy_cgroup.as_ref());
        let query = Outgoing {
            protocol: Protocol::Tcp,
            uid: Some(socket.uid),
            gid: pod.owners.get(&socket.inode).map(|(.., gid)| *gid),
            proxy: home.is_some_and(|(home, proxy)| home.starts_with(proxy)),
            source: Some(socket.local.ip()),
            to: socket.remote,
        };
        explain::outgoing(pod.policy, pod.in_force, &query)
    };
    connection.rule = explanation.rule;
    if explanation.port.is_none() {
        return;
    }
    connection.fate = Fate::Missed;
    let outside = socket.cgroup.is_some_and(|id| !pod.cgroups.contains_key(&id));
    connection.why = Some(if outside && !accepted {
        "its socket was made outside the cgroup that is captured".into()
    } else {
        "it is older than the attach".into()
    });
}

/// What is to be said of the connections. Those of processes that are outside the cgroup are told with these.
pub(super) fn judge_missed(connections: &[Connection], outside: &HashSet<u32>) -> Vec<Finding> {
    let missed = connections
        .iter()
        .filter(|c| c.fate == Fate::Missed && !c.pid.is_some_and(|pid| outside.contains(&pid)));
    let (mut made_elsewhere, mut older) = (Vec::new(), Vec::new());
    for connection in missed {
        let whose = match (connection.pid, &connection.process) {
            (Some(pid), Some(name)) => format!(" (pid {pid} {name})"),
            _ => " (process not told)".into(),
        };
        let text = format!("{} -> {}{whose}", connection.local, connection.remote);
        let by_why = connection.why.as_ref().is_some_and(|why| why.contains("outside"));
        if by_why { made_elsewhere.push(text) } else { older.push(text) }
    }
    let mut findings = Vec::new();
    let count = |list: &[String]| match list.len() {
        1 => "1 connection is".to_owned(),
        more => format!("{more} connections are"),
    };
    if !older.is_empty() {
        findings.push(Finding::fault(
            "connection_older",
            format!("{} older than the attach: {}", count(&older), some_of(&older, 4)),
            "they go past the proxy until they end",
            "close them, or start the process again".into(),
        ));
    }
    if !made_elsewhere.is_empty() {
        findings.push(Finding::fault(
            "socket_made_outside",
            format!(
                "{} of a socket that was made outside the cgroup: {}",
                count(&made_elsewhere),
                some_of(&made_elsewhere, 4)
            ),
            "what such sockets connect to goes past the proxy",
            "start the process again, in the cgroup".into(),
        ));
    }
    findings
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
