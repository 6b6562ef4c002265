//! The verdict about a connection, and the rule that gives it, without a kernel.
//!
//! [`Offline`] puts the lists that an instance would have into plain sets; [`outgoing`] and [`incoming`] then ask the
//! same decision that the programs take, after the same routing.

mod offline;
mod report;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use offline::Offline;
use redirector_common::Addr;
use redirector_common::decision::{self, Incoming};
use redirector_common::routing::{Owner, Way, effective, unroutable};
pub use report::Explanation;

use crate::policy::Policy;
use crate::rules::{Packet, Protocol};

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

/// What becomes of an outgoing connection.
pub fn outgoing(policy: &Policy, offline: &Offline, query: &Outgoing) -> Explanation {
    let bound = query.source.map_or(Addr::UNSPECIFIED, |source| source.to_canonical().into());
    let dst = effective(query.to.ip().into(), &bound);
    let destination = IpAddr::from(dst);
    let to = SocketAddr::new(destination, query.to.port());
    if destination.is_ipv6() && !policy.ipv6 {
        return Explanation::without_ipv6(query.protocol, to);
    }
    let route = offline.route(destination);
    let nobody = Owner::NOBODY;
    let owner = Owner {
        uid: query.uid.unwrap_or(nobody),
        gid: query.gid.unwrap_or(nobody),
        proxy: query.proxy,
        mark: 0,
    };
    let (tcp, way) = (query.protocol == Protocol::Tcp, Way::of(&route, &dst));
    let first = decision::Outgoing::routed(tcp, &bound, dst, to.port(), way, owner);
    let decision = decision::outgoing(&offline.compiled.policy, offline, &first);
    let source = (!first.src.is_unspecified()).then(|| IpAddr::from(first.src));
    let lo = first.lo;
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
    if !decision.is_pass() {
        let proxy = IpAddr::from(dst.localhost());
        explanation.proxy = explanation.port.map(|port| SocketAddr::new(proxy, port));
    }
    if let Some(errno) = unroutable(&dst, &bound, &route, lo) {
        let error = std::io::Error::from_raw_os_error(errno.into());
        if decision.is_pass() {
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
    let decision = decision::incoming(&offline.compiled.policy, offline, &arriving);
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
