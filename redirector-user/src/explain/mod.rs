//! What would become of a connection, and which rule says so, without a kernel.
//!
//! [`Offline`] puts the lists that an instance would have into plain sets; [`outgoing`] and [`incoming`] then ask the
//! same `decide` that the programs run. What connect(2) and routing do before the rules is that of `connect.rs`.

mod offline;
mod report;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use redirector_common::abi::Route;
use redirector_common::decide::{self, Incoming, NOBODY};

use crate::policy::Policy;
use crate::rules::{Packet, Protocol};

pub use offline::Offline;
pub use report::Explanation;

/// A connection (or datagram) out of the pod, or within it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The user of its socket; `None`: one that no rule names.
    pub uid: Option<u32>,
    /// The group of its socket.
    pub gid: Option<u32>,
    /// It was created in the proxy's cgroup.
    pub proxy: bool,
    /// The address it is bound to.
    pub source: Option<IpAddr>,
    /// Its destination as the application gives it.
    pub to: SocketAddr,
}

/// A connection from the network.
#[derive(Debug, Clone)]
pub struct Arriving {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its destination.
    pub to: SocketAddr,
    /// The interface it arrives on.
    pub interface: Option<String>,
}

/// Where the kernel goes for an unspecified address: `ip_route_output_key_hash_rcu`, `tcp_v6_connect`.
fn effective(to: IpAddr, source: Option<IpAddr>) -> IpAddr {
    let source = source.filter(|source| !source.is_unspecified());
    match (to, source) {
        (to, _) if !to.is_unspecified() => to,
        (IpAddr::V4(_), Some(source)) => source,
        (IpAddr::V4(_), None) | (IpAddr::V6(_), Some(IpAddr::V4(_))) => Ipv4Addr::LOCALHOST.into(),
        (IpAddr::V6(_), _) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The errno by which routing refuses a connection before netfilter sees it (`unroutable` of `connect.rs`).
fn unroutable(destination: IpAddr, bound: Option<IpAddr>, route: &Route, lo: bool) -> Option<i32> {
    let link_local = matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local());
    // A loopback source may not leave on another interface (a broadcast has one).
    let from_loopback = destination.is_ipv4() && bound.is_some_and(|source| source.is_loopback());
    let martian = from_loopback && (route.errno == 0 || route.oif != 0);
    if !lo && (link_local || martian) {
        return Some(libc::EINVAL);
    }
    (route.errno != 0).then_some(route.errno.into())
}

/// What becomes of an outgoing connection.
pub fn outgoing(policy: &Policy, offline: &Offline, query: &Outgoing) -> Explanation {
    let bound = query.source.map(|source| source.to_canonical()).filter(|source| !source.is_unspecified());
    let destination = effective(query.to.ip().to_canonical(), bound);
    let to = SocketAddr::new(destination, query.to.port());
    let route = offline.route(destination);
    let source = bound.or_else(|| Some(route.source_for(&destination.into()).into()));
    let source = source.filter(|source: &IpAddr| !source.is_unspecified());
    let lo = route.local != 0 || destination.is_loopback();
    if destination.is_ipv6() && !policy.ipv6 {
        return Explanation::without_ipv6(query.protocol, to);
    }
    let decision = decide::outgoing(
        &offline.compiled.policy,
        offline,
        &decide::Outgoing {
            dst: destination.into(),
            dport: to.port(),
            src: source.unwrap_or(unspecified(destination)).into(),
            tcp: query.protocol == Protocol::Tcp,
            lo,
            oif: route.oif,
            uid: query.uid.unwrap_or(NOBODY),
            gid: query.gid.unwrap_or(NOBODY),
            proxy: query.proxy,
            mark: 0,
        },
    );
    let packet = Packet {
        source: source.unwrap_or(unspecified(destination)),
        destination,
        port: to.port(),
        protocol: query.protocol,
        input: None,
        output: if lo { Some("lo") } else { offline.name(route.oif) },
        uid: query.uid,
        gid: query.gid,
        proxy: query.proxy,
        mark: 0,
    };
    let mut explanation = Explanation::new(policy, decision, &packet);
    explanation.source = source;
    if explanation.verdict != "pass" {
        let loopback =
            if destination.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        explanation.proxy = explanation.port.map(|port| SocketAddr::new(loopback, port));
    }
    if let Some(errno) = unroutable(destination, bound, &route, lo) {
        let error = std::io::Error::from_raw_os_error(errno);
        if explanation.verdict == "pass" {
            explanation.notes.push(format!("routing refuses it: connect() fails with {error}"));
        } else {
            explanation.refuse(&error);
        }
    }
    if !policy.exclude_interfaces.is_empty() && packet.output.is_none() {
        let text =
            "the interface it leaves on is not known (--oif), and -c excludes some: taken as none of them";
        explanation.notes.push(text.into());
    }
    explanation
}

/// What becomes of a connection from the network.
pub fn incoming(policy: &Policy, offline: &Offline, query: &Arriving) -> Explanation {
    let to = SocketAddr::new(query.to.ip().to_canonical(), query.to.port());
    if to.is_ipv6() && !policy.ipv6 {
        return Explanation::without_ipv6(query.protocol, to);
    }
    if query.interface.as_deref() == Some("lo") || to.ip().is_loopback() {
        let words = "what arrives on lo was decided on its way out (leave out --inbound)";
        return Explanation::unruled(query.protocol, to, words);
    }
    if query.protocol == Protocol::Udp {
        return Explanation::unruled(query.protocol, to, "inbound only TCP is captured");
    }
    let iif = query.interface.as_deref().map_or(0, |name| offline.index(name));
    // What is not for an address of the namespace gets here by way of a virtual interface only.
    let arriving = Incoming { dst: to.ip().into(), dport: to.port(), iif, local: true };
    let decision = decide::incoming(&offline.compiled.policy, offline, &arriving);
    let packet = Packet {
        source: unspecified(to.ip()),
        destination: to.ip(),
        port: to.port(),
        protocol: query.protocol,
        input: query.interface.as_deref(),
        output: None,
        uid: None,
        gid: None,
        proxy: false,
        mark: 0,
    };
    // The destination stays: sk_lookup gives the connection to the proxy's listener as it is.
    let mut explanation = Explanation::new(policy, decision, &packet);
    let named = !(policy.exclude_interfaces.is_empty() && policy.virtual_interfaces.is_empty());
    if named && query.interface.is_none() {
        let text =
            "the interface it arrives on is not given (--iif), and -c or -k name some: taken as none of them";
        explanation.notes.push(text.into());
    }
    explanation
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
