//! A policy as lists, its form for `decide`, and packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use redirector_common::Addr;
use redirector_common::abi::{List, Policy, flag};
use redirector_common::decision::{Incoming, Lists, Outgoing};
use redirector_common::routing::Owner;

/// `-t`.
pub const MARK: u32 = 1337;

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    pub addr: IpAddr,
    pub bits: u32,
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Net {
    /// Of a literal `address/bits`.
    pub fn of(text: &str) -> Self {
        let (addr, bits) = text.split_once('/').expect("network");
        Self { addr: addr.parse().expect("address"), bits: bits.parse().expect("prefix length") }
    }

    /// Of one address.
    pub fn host(text: &str) -> Self {
        let addr: IpAddr = text.parse().expect("address");
        Self { addr, bits: if addr.is_ipv4() { 32 } else { 128 } }
    }

    pub fn is_v4(&self) -> bool {
        self.addr.is_ipv4()
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        let differs = number(self.addr) ^ number(addr);
        self.is_v4() == addr.is_ipv4() && (self.bits == 0 || differs >> (128 - self.bits) == 0)
    }
}

/// All, or exactly these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<T> {
    All,
    Only(Vec<T>),
}

impl<T> Choice<T> {
    fn list(&self) -> &[T] {
        match self {
            Self::All => &[],
            Self::Only(list) => list,
        }
    }
}

/// Whose DNS is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    Off,
    Servers(Vec<Net>),
    All,
}

/// istio-iptables' options after parsing; interfaces by index.
#[derive(Clone, Debug)]
pub struct Setup {
    pub tunnel_port: u16,
    pub proxy_cgroup: bool,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    pub tproxy: bool,
    pub in_ports: Choice<u16>,
    pub exclude_in_ports: Vec<u16>,
    pub exclude_interfaces: Vec<u32>,
    pub virtual_interfaces: Vec<u32>,
    pub include_cidrs: Choice<Net>,
    pub exclude_cidrs: Vec<Net>,
    pub include_out_ports: Vec<u16>,
    pub exclude_out_ports: Vec<u16>,
    pub dns: Dns,
    pub owner_groups: Choice<u32>,
    pub owner_groups_exclude: Vec<u32>,
    pub loopback: Net,
}

impl Setup {
    /// `istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x "" -b '*' -d 15090,15021,15020`.
    pub fn sidecar() -> Self {
        Self {
            tunnel_port: 15008,
            proxy_cgroup: false,
            uids: vec![1337],
            gids: vec![1337],
            tproxy: false,
            in_ports: Choice::All,
            exclude_in_ports: vec![15090, 15021, 15020],
            exclude_interfaces: Vec::new(),
            virtual_interfaces: Vec::new(),
            include_cidrs: Choice::All,
            exclude_cidrs: Vec::new(),
            include_out_ports: Vec::new(),
            exclude_out_ports: Vec::new(),
            dns: Dns::Off,
            owner_groups: Choice::All,
            owner_groups_exclude: Vec::new(),
            loopback: Net::of("127.0.0.1/32"),
        }
    }

    pub fn includes_loopback(&self) -> bool {
        self.include_cidrs.list().iter().any(|net| net.addr.is_loopback())
    }

    /// The scalars for `decide`.
    pub fn policy(&self) -> Policy {
        let Net { addr: IpAddr::V4(loopback), bits } = self.loopback else {
            panic!("an IPv6 loopback range")
        };
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let flags = [
            (flag::IPV6, true),
            (flag::OUTBOUND_ALL, self.include_cidrs == Choice::All),
            (flag::INBOUND_ALL, self.in_ports == Choice::All),
            (flag::INBOUND_LIST, !self.in_ports.list().is_empty()),
            (flag::TPROXY, self.tproxy),
            (flag::DNS, self.dns != Dns::Off),
            (flag::DNS_ALL, self.dns == Dns::All),
            (flag::LOOPBACK_INCLUDED, self.includes_loopback()),
            (flag::OWNER_GROUPS_LIST, self.owner_groups != Choice::All),
            (flag::HAS_UIDS, !self.uids.is_empty()),
            (flag::HAS_GIDS, !self.gids.is_empty()),
            (flag::HAS_MORE_UIDS, self.uids.len() > 1),
            (flag::HAS_MORE_GIDS, self.gids.len() > 1),
            (flag::PROXY_CGROUP, self.proxy_cgroup),
            (flag::HAS_OWNER_GROUPS_EXCLUDE, !self.excluded_groups().is_empty()),
            (flag::HAS_EXCLUDE_INTERFACES, !self.exclude_interfaces.is_empty()),
            (flag::HAS_EXCLUDE_OUT_PORTS, !self.exclude_out_ports.is_empty()),
            (flag::HAS_INCLUDE_OUT_PORTS, !self.include_out_ports.is_empty()),
            (flag::HAS_EXCLUDE_CIDRS, !self.exclude_cidrs.is_empty()),
            (flag::HAS_INCLUDE_CIDRS, !self.include_cidrs.list().is_empty()),
            (flag::HAS_EXCLUDE_IN_PORTS, !self.exclude_in_ports.is_empty()),
            (flag::HAS_VIRTUAL_INTERFACES, !self.virtual_interfaces.is_empty()),
        ];
        Policy {
            flags: flags.iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum(),
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: self.tunnel_port,
            dns_port: 15053,
            first_uid: self.uids.first().copied().unwrap_or(Owner::NOBODY),
            first_gid: self.gids.first().copied().unwrap_or(Owner::NOBODY),
            loopback_net: (loopback.to_bits() & mask).to_be(),
            loopback_mask: mask.to_be(),
            capacity: 1,
            tproxy_mark: MARK,
            proxy_cgroup: u64::from(self.proxy_cgroup),
            destinations: 0,
        }
    }

    /// The exclusions that a policy in normal form has: with a list of groups there are none.
    fn excluded_groups(&self) -> &[u32] {
        if self.owner_groups == Choice::All { &self.owner_groups_exclude } else { &[] }
    }
}

impl Lists for Setup {
    fn holds(&self, list: List, value: u32) -> bool {
        let port = |list: &[u16]| list.iter().any(|port| u32::from(*port) == value);
        match list {
            List::ExcludeOutPorts => port(&self.exclude_out_ports),
            List::IncludeOutPorts => port(&self.include_out_ports),
            List::ExcludeInPorts => port(&self.exclude_in_ports),
            List::IncludeInPorts => port(self.in_ports.list()),
            List::ExcludeInterfaces => self.exclude_interfaces.contains(&value),
            List::VirtualInterfaces => self.virtual_interfaces.contains(&value),
            List::ProxyUids => self.uids.contains(&value),
            List::ProxyGids => self.gids.contains(&value),
            List::OwnerGroups => self.owner_groups.list().contains(&value),
            List::OwnerGroupsExclude => self.excluded_groups().contains(&value),
            other => panic!("{other:?} holds no numbers"),
        }
    }

    fn covers(&self, list: List, addr: &Addr) -> bool {
        let addr = ip(addr);
        let nets = match (list, &self.dns) {
            (List::IncludeCidrs, _) => self.include_cidrs.list(),
            (List::ExcludeCidrs, _) => &self.exclude_cidrs,
            (List::DnsServers, Dns::Servers(servers)) => servers,
            (other, _) => panic!("{other:?} holds no networks"),
        };
        nets.iter().any(|net| net.contains(addr))
    }
}

/// The first packet of a connection. Outgoing: `interface` is the one it leaves on. Incoming: the one it arrived on.
#[derive(Clone, Debug)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub dport: u16,
    pub tcp: bool,
    pub lo: bool,
    pub interface: u32,
    /// `None`: a socket without a file.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Created in the proxy's cgroup.
    pub proxy: bool,
    /// SO_MARK of the socket.
    pub mark: u32,
}

impl Packet {
    pub fn outgoing(&self) -> Outgoing {
        Outgoing {
            dst: addr(self.dst),
            dport: self.dport,
            src: addr(self.src),
            tcp: self.tcp,
            lo: self.lo,
            oif: self.interface,
            uid: self.uid.unwrap_or(Owner::NOBODY),
            gid: self.gid.unwrap_or(Owner::NOBODY),
            proxy: self.proxy,
            mark: self.mark,
        }
    }

    pub fn incoming(&self) -> Incoming {
        Incoming { dst: addr(self.dst), dport: self.dport, iif: self.interface, local: true }
    }
}

/// As the kernel's contexts hold it.
fn addr(ip: IpAddr) -> Addr {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = |n: usize| u32::from_ne_bytes([octets[n], octets[n + 1], octets[n + 2], octets[n + 3]]);
    Addr::v6([word(0), word(4), word(8), word(12)])
}

fn ip(addr: &Addr) -> IpAddr {
    if addr.is_v4() {
        return Ipv4Addr::from_bits(u32::from_be(addr.v4_be())).into();
    }
    let words = addr.words.map(u32::from_be);
    Ipv6Addr::from_bits(words.iter().fold(0, |all, word| all << 32 | u128::from(*word))).into()
}
