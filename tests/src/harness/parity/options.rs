//! The options that are varied, and the values they take.
//!
//! The values are taken from the few addresses, ports and ids that the [pair](super::pair) has, so that options meet.

use super::random::Random;

/// Ports that the application and the services outside listen on.
pub const SERVED: [u16; 9] = [8080, 9000, 9001, 15008, 15009, 15020, 15021, 15090, 53];

/// A port nobody listens on.
pub const UNSERVED: u16 = 81;

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

/// Makes the enumeration of the options: name in Rust, the flag or variable, values that are no lists, and what lists are
/// made of.
macro_rules! choices {
    ($($choice:ident $name:literal $whole:tt $items:expr;)*) => {
        /// An option of `istio-iptables`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Choice { $($choice,)* }

        pub const ALL: &[Choice] = &[$(Choice::$choice,)*];

        impl Choice {
            /// The way it is given: the flag or variable.
            pub fn name(self) -> &'static str {
                match self { $(Self::$choice => $name,)* }
            }

            /// Values that are no lists, and what lists are made of.
            fn values(self) -> (&'static [&'static str], &'static [&'static str]) {
                match self { $(Self::$choice => (&$whole, $items),)* }
            }
        }
    };
}

choices! {
    EnvoyPort "-p" ["15001", "16001", "16099"] &[];
    InboundCapturePort "-z" ["15006", "16006", "16099"] &[];
    TunnelPort "-e" ["15008", "15009", "8080", "9000", "53"] &[];
    ProxyUids "-u" [""] IDS;
    ProxyGids "-g" [""] IDS;
    Mode "-m" ["TPROXY", "TPROXY", "TPROXY", "REDIRECT"] &[];
    Mark "-t" ["1337", "7", "65536"] &[];
    RouteTable "-r" ["133", "77"] &[];
    InboundPorts "-b" ["*", "*", ""] PORTS;
    InboundPortsExclude "-d" [""] PORTS;
    ExcludeInterfaces "-c" [""] &["eth0", "eth1", "vnet0", "lo", "absent0"];
    VirtualInterfaces "-k" ["vnet0", "vnet0", ""] &["vnet0", "eth1", "absent0"];
    Cidrs "-i" ["*", "*", ""] CIDRS;
    CidrsExclude "-x" [""] CIDRS;
    OutboundPorts "-q" [""] PORTS;
    OutboundPortsExclude "-o" [""] PORTS;
    OwnerGroups "ISTIO_OUTBOUND_OWNER_GROUPS" ["*", ""] IDS;
    OwnerGroupsExclude "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE" [""] IDS;
    Loopback "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"
        ["127.0.0.1/32", "127.0.0.0/8", "127.0.0.1/24", "127.0.0.2/32", "127.1.0.0/16"] &[];
    Dns "dns" ["servers", "all", "all", "all-alone"] &[];
    Ipv6 "ipv6" ["on", "on", "off", "auto", "dual-stack"] &[];
}

impl Choice {
    /// Whether it comes from the environment.
    pub fn is_variable(self) -> bool {
        self.name().starts_with("ISTIO_")
    }

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
