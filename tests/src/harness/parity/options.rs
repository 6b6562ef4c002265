//! The options that are varied, and the values they take.
//!
//! The values are taken from the few addresses, ports and ids that the [arena](super::arena) has, so that options meet.

use super::random::Random;

/// Ports that the application and the services outside listen on.
pub const SERVED: [u16; 9] = [8080, 9000, 9001, 15008, 15009, 15020, 15021, 15090, 53];

/// A port nobody listens on.
pub const UNSERVED: u16 = 81;

/// An option of `istio-iptables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Choice {
    /// `-p`.
    EnvoyPort,
    /// `-z`.
    InboundCapturePort,
    /// `-e`.
    TunnelPort,
    /// `-u`.
    ProxyUids,
    /// `-g`.
    ProxyGids,
    /// `-m`.
    Mode,
    /// `-t`.
    Mark,
    /// `-r`.
    RouteTable,
    /// `-b`.
    InboundPorts,
    /// `-d`.
    InboundPortsExclude,
    /// `-c`.
    ExcludeInterfaces,
    /// `-k`.
    VirtualInterfaces,
    /// `-i`.
    Cidrs,
    /// `-x`.
    CidrsExclude,
    /// `-q`.
    OutboundPorts,
    /// `-o`.
    OutboundPortsExclude,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`.
    OwnerGroups,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`.
    OwnerGroupsExclude,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    Loopback,
    /// `--redirect-dns` and `--capture-all-dns`.
    Dns,
    /// `--ipv6` and `--dual-stack`.
    Ipv6,
}

/// All of them.
pub const ALL: [Choice; 21] = [
    Choice::EnvoyPort,
    Choice::InboundCapturePort,
    Choice::TunnelPort,
    Choice::ProxyUids,
    Choice::ProxyGids,
    Choice::Mode,
    Choice::Mark,
    Choice::RouteTable,
    Choice::InboundPorts,
    Choice::InboundPortsExclude,
    Choice::ExcludeInterfaces,
    Choice::VirtualInterfaces,
    Choice::Cidrs,
    Choice::CidrsExclude,
    Choice::OutboundPorts,
    Choice::OutboundPortsExclude,
    Choice::OwnerGroups,
    Choice::OwnerGroupsExclude,
    Choice::Loopback,
    Choice::Dns,
    Choice::Ipv6,
];

const PORTS: &[&str] = &["8080", "9000", "9001", "15008", "15020", "53", "81"];
const IDS: &[&str] = &["1337", "1338", "1000", "0", "2000"];
const CIDRS: &[&str] = &[
    "10.96.0.0/16",
    "10.96.0.0/24",
    "10.96.0.10/32",
    "10.96.1.10/16",
    "10.94.0.0/16",
    "10.77.0.0/16",
    "10.77.0.2/32",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "127.0.0.1/32",
    "127.0.0.2/32",
    "fd00:96::/64",
    "fd00:96::10/128",
    "fd00::/16",
    "fd00:77::2/64",
    "::/0",
    "::1/128",
];

impl Choice {
    /// The way it is given: the flag or variable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EnvoyPort => "-p",
            Self::InboundCapturePort => "-z",
            Self::TunnelPort => "-e",
            Self::ProxyUids => "-u",
            Self::ProxyGids => "-g",
            Self::Mode => "-m",
            Self::Mark => "-t",
            Self::RouteTable => "-r",
            Self::InboundPorts => "-b",
            Self::InboundPortsExclude => "-d",
            Self::ExcludeInterfaces => "-c",
            Self::VirtualInterfaces => "-k",
            Self::Cidrs => "-i",
            Self::CidrsExclude => "-x",
            Self::OutboundPorts => "-q",
            Self::OutboundPortsExclude => "-o",
            Self::OwnerGroups => "ISTIO_OUTBOUND_OWNER_GROUPS",
            Self::OwnerGroupsExclude => "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
            Self::Loopback => "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
            Self::Dns => "dns",
            Self::Ipv6 => "ipv6",
        }
    }

    /// Whether it comes from the environment.
    #[must_use]
    pub fn is_variable(self) -> bool {
        self.name().starts_with("ISTIO_")
    }

    /// Values that are no lists, and what lists are made of.
    fn values(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::EnvoyPort => (&["15001", "16001", "16099"], &[]),
            Self::InboundCapturePort => (&["15006", "16006", "16099"], &[]),
            Self::TunnelPort => (&["15008", "15009", "8080", "9000", "53"], &[]),
            Self::ProxyUids | Self::ProxyGids => (&[""], IDS),
            Self::Mode => (&["TPROXY", "TPROXY", "TPROXY", "REDIRECT"], &[]),
            Self::Mark => (&["1337", "7", "65536"], &[]),
            Self::RouteTable => (&["133", "77"], &[]),
            Self::InboundPorts => (&["*", "*", ""], PORTS),
            Self::InboundPortsExclude | Self::OutboundPorts | Self::OutboundPortsExclude => (&[""], PORTS),
            Self::ExcludeInterfaces => (&[""], &["eth0", "eth1", "vnet0", "lo", "absent0"]),
            Self::VirtualInterfaces => (&["vnet0", "vnet0", ""], &["vnet0", "eth1", "absent0"]),
            Self::Cidrs => (&["*", "*", ""], CIDRS),
            Self::CidrsExclude => (&[""], CIDRS),
            Self::OwnerGroups => (&["*", ""], IDS),
            Self::OwnerGroupsExclude => (&[""], IDS),
            Self::Loopback => {
                (&["127.0.0.1/32", "127.0.0.0/8", "127.0.0.1/24", "127.0.0.2/32", "127.1.0.0/16"], &[])
            }
            Self::Dns => (&["servers", "all", "all", "all-alone"], &[]),
            Self::Ipv6 => (&["on", "on", "off", "auto", "dual-stack"], &[]),
        }
    }

    /// A value.
    pub fn value(self, random: &mut Random) -> String {
        let (whole, items) = self.values();
        if items.is_empty() || random.percent(if whole.len() > 1 { 40 } else { 5 }) {
            return (*random.pick(whole)).to_owned();
        }
        let mut list: Vec<&str> = items.to_vec();
        random.shuffle(&mut list);
        list.truncate(1 + random.below(3));
        // Empty items are legal.
        list.join(",") + if random.percent(15) { "," } else { "" }
    }
}
