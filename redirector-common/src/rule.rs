//! The counters: one for each rule that can decide, with its verdict, and one for each other outcome.

/// Where a connection goes.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// On its own way, untouched.
    Pass = 0,
    /// To the proxy's outbound listener (15001).
    Outbound = 1,
    /// To the proxy's inbound listener (15006).
    Inbound = 2,
    /// To the proxy's DNS listener (15053).
    Dns = 3,
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Connections about which a rule decided.
    Decided(Verdict),
    /// Connections that were refused.
    Refused,
    /// No connections.
    Other,
}

macro_rules! counters {
    ($($variant:ident $name:literal $outcome:ident: $help:literal)*) => {
        /// Index into the per-CPU `COUNTERS` map. The numbers are public (docs/abi.md).
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Counter {
            $(#[doc = $help] $variant,)*
        }

        impl Counter {
            /// All of them, by their numbers.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// What it counts.
            #[inline(always)]
            pub const fn outcome(self) -> Outcome {
                use Outcome::*;
                const PASS: Outcome = Decided(Verdict::Pass);
                const OUTBOUND: Outcome = Decided(Verdict::Outbound);
                const INBOUND: Outcome = Decided(Verdict::Inbound);
                const DNS: Outcome = Decided(Verdict::Dns);
                const REFUSED: Outcome = Refused;
                const OTHER: Outcome = Other;
                match self {
                    $(Self::$variant => $outcome,)*
                }
            }

            /// Stable name, as in `--output json` and the metric's label.
            #[cfg(feature = "user")]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What it counts, in words.
            #[cfg(feature = "user")]
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => $help,)*
                }
            }
        }
    };
}

counters! {
    OutExcludedInterface "out_excluded_interface" PASS: "what leaves on an excluded interface passes (-c)"
    OutExcludedPort "out_excluded_port" PASS: "an excluded destination port passes (-o)"
    OutPassthroughSource "out_passthrough_source" PASS:
        "what the proxy hands to the application passes: it comes from 127.0.0.6 or ::6 and stays in the pod"
    OutProxyUidLoopback "out_proxy_uid_loopback" INBOUND:
        "the proxy's user calls its own pod: its inbound listener gets that (-u)"
    OutNotProxyUidLoopback "out_not_proxy_uid_loopback" PASS:
        "what others than the proxy's user send within the pod passes (-u)"
    OutProxyUid "out_proxy_uid" PASS: "what the proxy's user sends passes (-u)"
    OutProxyGidLoopback "out_proxy_gid_loopback" INBOUND:
        "the proxy's group calls its own pod: its inbound listener gets that (-g)"
    OutNotProxyGidLoopback "out_not_proxy_gid_loopback" PASS:
        "what others than the proxy's group send within the pod passes (-g)"
    OutProxyGid "out_proxy_gid" PASS: "what the proxy's group sends passes (-g)"
    OutOwnerGroupExcluded "out_owner_group_excluded" PASS:
        "what an excluded group sends passes (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE)"
    OutOwnerGroupNotIncluded "out_owner_group_not_included" PASS:
        "what is of none of the included groups passes (ISTIO_OUTBOUND_OWNER_GROUPS)"
    OutDns "out_dns" DNS: "DNS goes to the agent (--redirect-dns)"
    OutLoopback "out_loopback" PASS:
        "the application's own loopback address passes (ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR)"
    OutExcludedCidr "out_excluded_cidr" PASS: "an excluded destination passes (-x)"
    OutIncludedPort "out_included_port" OUTBOUND:
        "a destination port that is captured whatever the address (-q)"
    OutAll "out_all" OUTBOUND: "every TCP destination is captured (-i '*')"
    OutIncludedCidr "out_included_cidr" OUTBOUND: "an included destination is captured (-i)"
    OutDefault "out_default" PASS: "no rule is about it, so it passes"
    OutTproxyLoopback "out_tproxy_loopback" INBOUND:
        "what the proxy's user or group sends to its own pod is marked, and captured inbound (-m TPROXY)"
    InVirtualCaptured "in_virtual_captured" OUTBOUND:
        "what comes from a virtual interface is treated as outbound (-k, -i)"
    InVirtualPassed "in_virtual_passed" PASS:
        "what comes from a virtual interface for another destination passes (-k, -i)"
    InExcludedInterface "in_excluded_interface" PASS: "what arrives on an excluded interface passes (-c)"
    InTunnel "in_tunnel" PASS: "the tunnel's port passes (-e)"
    InExcludedPort "in_excluded_port" PASS: "an excluded inbound port passes (-d)"
    InAll "in_all" INBOUND: "every inbound port is captured (-b '*')"
    InListed "in_listed" INBOUND: "a listed inbound port is captured (-b)"
    InDefault "in_default" PASS: "no rule is about it, so it passes"
    RefusedByRoute "refused_by_route" REFUSED: "connect() fails as it would under iptables: by the namespace's routes"
    RefusedFull "refused_full" REFUSED: "connect() fails: --max-connections are alive"
    RefusedUnstored "refused_unstored" REFUSED: "the connection fails: its original destination could not be stored"
    RefusedNoListener "refused_no_listener" REFUSED: "the connection fails: the proxy does not listen"
    SourceNotBound "source_not_bound" OTHER: "the source address is link-local: the proxy sees a loopback peer"
    ListenerNotRegistered "listener_not_registered" OTHER: "a listener of the proxy could not be registered"
    OutProxyCgroupLoopback "out_proxy_cgroup_loopback" INBOUND:
        "the proxy's container calls its own pod: its inbound listener gets that (--proxy-cgroup)"
    OutNotProxyCgroupLoopback "out_not_proxy_cgroup_loopback" PASS:
        "what others than the proxy's container send within the pod passes (--proxy-cgroup)"
    OutProxyCgroup "out_proxy_cgroup" PASS: "what the proxy's container sends passes (--proxy-cgroup)"
    DestinationsGiven "destinations_given" OTHER: "an original destination got an address of its own"
    DestinationsFull "destinations_full" OTHER:
        "the quota of destinations is used up: the original destination is handed over for the connection alone"
    OriginalDstUnknown "original_dst_unknown" OTHER: "SO_ORIGINAL_DST was asked and is not known: ENOENT"
    RefusedWithoutSource "refused_without_source" REFUSED:
        "connect() fails: the source address has left the namespace since the last refresh (EADDRNOTAVAIL)"
    RefusedSourceRoute "refused_source_route" REFUSED: "setsockopt() fails: it asks for source routing (EPERM)"
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(feature = "user")]
impl Verdict {
    /// All of them, by their numbers.
    pub const ALL: [Self; 4] = [Self::Pass, Self::Outbound, Self::Inbound, Self::Dns];

    /// Stable name, as in `--output json` and the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Dns => "dns",
        }
    }
}

#[cfg(feature = "user")]
impl Outcome {
    /// Stable name: the verdict's, `refused` or `other`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decided(verdict) => verdict.name(),
            Self::Refused => "refused",
            Self::Other => "other",
        }
    }
}
