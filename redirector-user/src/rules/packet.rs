//! The first packet of a connection, and the match of a rule.

use std::net::IpAddr;

use ipnet::IpNet;

use super::spec::{Is, Protocol, Spec};

/// The properties that rules match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The interface it arrived on; `None` if it is local or the interface is unknown.
    pub input: Option<&'a str>,
    /// The interface it leaves on.
    pub output: Option<&'a str>,
    /// The user of its socket; `None`: no rule names the user.
    pub uid: Option<u32>,
    /// The group of its socket.
    pub gid: Option<u32>,
    /// Whether its socket was created in the proxy's cgroup, the only cgroup that rules name.
    pub proxy: bool,
    /// Its mark.
    pub mark: u32,
}

fn holds<T>(is: &Option<Is<T>>, test: impl Fn(&T) -> bool) -> bool {
    is.as_ref().is_none_or(|is| test(&is.value) != is.not)
}

fn covers(net: &IpNet, addr: IpAddr) -> bool {
    net.contains(&addr)
}

impl Spec {
    /// Whether the rule matches the packet. Its connection is new and has mark 0.
    pub fn matches(&self, p: &Packet<'_>) -> bool {
        holds(&self.source, |net| covers(net, p.source))
            && holds(&self.destination, |net| covers(net, p.destination))
            && holds(&self.input, |name| p.input == Some(name))
            && holds(&self.output, |name| p.output == Some(name))
            && self.protocol.is_none_or(|protocol| protocol == p.protocol)
            && self.source_port.is_none()
            && holds(&self.ports, |ports| ports.contains(&p.port))
            && holds(&self.cgroup, |_| p.proxy)
            && holds(&self.uid, |uid| p.uid == Some(*uid))
            && self.gids.iter().all(|is| (p.gid == Some(is.value)) != is.not)
            && holds(&self.mark, |mark| p.mark == *mark)
            && holds(&self.connection_mark, |mark| *mark == 0)
            && (self.states.is_empty() || self.states.iter().any(|state| state == "NEW"))
    }
}
