//! Counters: one for each rule that can decide, and one for each other outcome.

/// Index into the per-CPU `COUNTERS` map. The order is the order in which the rules are asked.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say which rule; Counter::name lists them")]
pub enum Counter {
    OutExcludedInterface = 0,
    OutExcludedPort,
    OutPassthroughSource,
    OutProxyUidLoopback,
    OutNotProxyUidLoopback,
    OutProxyUid,
    OutProxyGidLoopback,
    OutNotProxyGidLoopback,
    OutProxyGid,
    OutOwnerGroupExcluded,
    OutOwnerGroupNotIncluded,
    OutDns,
    OutLoopback,
    OutExcludedCidr,
    OutIncludedPort,
    OutAll,
    OutIncludedCidr,
    OutDefault,
    OutTproxyLoopback,
    InVirtualCaptured,
    InVirtualPassed,
    InExcludedInterface,
    InTunnel,
    InExcludedPort,
    InAll,
    InListed,
    InDefault,
    /// Refused in connect: the destination has no route (errno of the route mirror).
    RefusedByRoute,
    /// Refused in connect: as many connections are alive as the policy allows.
    RefusedFull,
    /// Refused on lo: the original destination could not be stored.
    RefusedUnstored,
    /// Refused inbound: no listener of the proxy is registered.
    RefusedNoListener,
    /// The source address could not be bound; the proxy sees a loopback peer.
    SourceNotBound,
    /// A listener of the proxy could not be registered.
    ListenerNotRegistered,
    // Redirector's own rules, asked before those of users. At the end: the numbers above are public.
    OutProxyCgroupLoopback,
    OutNotProxyCgroupLoopback,
    OutProxyCgroup,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = Self::OutProxyCgroup as u32 + 1;
}

#[cfg(feature = "user")]
mod text {
    use super::Counter;

    impl Counter {
        /// All of them, in order.
        pub const ALL: [Self; Self::COUNT as usize] = {
            use Counter::*;
            [
                OutExcludedInterface,
                OutExcludedPort,
                OutPassthroughSource,
                OutProxyUidLoopback,
                OutNotProxyUidLoopback,
                OutProxyUid,
                OutProxyGidLoopback,
                OutNotProxyGidLoopback,
                OutProxyGid,
                OutOwnerGroupExcluded,
                OutOwnerGroupNotIncluded,
                OutDns,
                OutLoopback,
                OutExcludedCidr,
                OutIncludedPort,
                OutAll,
                OutIncludedCidr,
                OutDefault,
                OutTproxyLoopback,
                InVirtualCaptured,
                InVirtualPassed,
                InExcludedInterface,
                InTunnel,
                InExcludedPort,
                InAll,
                InListed,
                InDefault,
                RefusedByRoute,
                RefusedFull,
                RefusedUnstored,
                RefusedNoListener,
                SourceNotBound,
                ListenerNotRegistered,
                OutProxyCgroupLoopback,
                OutNotProxyCgroupLoopback,
                OutProxyCgroup,
            ]
        };

        /// Stable name, as in `--output json`.
        pub const fn name(self) -> &'static str {
            use Counter::*;
            match self {
                OutExcludedInterface => "out_excluded_interface",
                OutExcludedPort => "out_excluded_port",
                OutPassthroughSource => "out_passthrough_source",
                OutProxyCgroupLoopback => "out_proxy_cgroup_loopback",
                OutNotProxyCgroupLoopback => "out_not_proxy_cgroup_loopback",
                OutProxyCgroup => "out_proxy_cgroup",
                OutProxyUidLoopback => "out_proxy_uid_loopback",
                OutNotProxyUidLoopback => "out_not_proxy_uid_loopback",
                OutProxyUid => "out_proxy_uid",
                OutProxyGidLoopback => "out_proxy_gid_loopback",
                OutNotProxyGidLoopback => "out_not_proxy_gid_loopback",
                OutProxyGid => "out_proxy_gid",
                OutOwnerGroupExcluded => "out_owner_group_excluded",
                OutOwnerGroupNotIncluded => "out_owner_group_not_included",
                OutDns => "out_dns",
                OutLoopback => "out_loopback",
                OutExcludedCidr => "out_excluded_cidr",
                OutIncludedPort => "out_included_port",
                OutAll => "out_all",
                OutIncludedCidr => "out_included_cidr",
                OutDefault => "out_default",
                OutTproxyLoopback => "out_tproxy_loopback",
                InVirtualCaptured => "in_virtual_captured",
                InVirtualPassed => "in_virtual_passed",
                InExcludedInterface => "in_excluded_interface",
                InTunnel => "in_tunnel",
                InExcludedPort => "in_excluded_port",
                InAll => "in_all",
                InListed => "in_listed",
                InDefault => "in_default",
                RefusedByRoute => "refused_by_route",
                RefusedFull => "refused_full",
                RefusedUnstored => "refused_unstored",
                RefusedNoListener => "refused_no_listener",
                SourceNotBound => "source_not_bound",
                ListenerNotRegistered => "listener_not_registered",
            }
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::Counter;

    #[test]
    fn all_lists_every_counter_at_its_index() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(index, counter as usize, "{counter:?}");
        }
    }
}
