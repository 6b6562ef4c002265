//! What the rules of a counter say, in words.

use redirector_common::counter::Counter;

use super::chains::{Chain, nat};

/// The rule of a counter in words; `None` for counters that count something else.
pub fn words(counter: Counter) -> Option<&'static str> {
    use Counter::*;
    let words = match counter {
        OutExcludedInterface => "what leaves on an excluded interface passes (-c)",
        OutExcludedPort => "an excluded destination port passes (-o)",
        OutPassthroughSource => {
            "what the proxy hands to the application passes: it comes from 127.0.0.6 or ::6 and stays in the pod"
        }
        OutProxyCgroupLoopback => {
            "the proxy's container calls its own pod: its inbound listener gets that (--proxy-cgroup)"
        }
        OutNotProxyCgroupLoopback => {
            "what others than the proxy's container send within the pod passes (--proxy-cgroup)"
        }
        OutProxyCgroup => "what the proxy's container sends passes (--proxy-cgroup)",
        OutProxyUidLoopback => "the proxy's user calls its own pod: its inbound listener gets that (-u)",
        OutNotProxyUidLoopback => "what others than the proxy's user send within the pod passes (-u)",
        OutProxyUid => "what the proxy's user sends passes (-u)",
        OutProxyGidLoopback => "the proxy's group calls its own pod: its inbound listener gets that (-g)",
        OutNotProxyGidLoopback => "what others than the proxy's group send within the pod passes (-g)",
        OutProxyGid => "what the proxy's group sends passes (-g)",
        OutOwnerGroupExcluded => "what an excluded group sends passes (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE)",
        OutOwnerGroupNotIncluded => {
            "what is of none of the included groups passes (ISTIO_OUTBOUND_OWNER_GROUPS)"
        }
        OutDns => "DNS goes to the agent (--redirect-dns)",
        OutLoopback => "the application's own loopback address passes (ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR)",
        OutExcludedCidr => "an excluded destination passes (-x)",
        OutIncludedPort => "a destination port that is captured whatever the address (-q)",
        OutAll => "every TCP destination is captured (-i '*')",
        OutIncludedCidr => "an included destination is captured (-i)",
        OutDefault => "no rule is about it, so it passes",
        OutTproxyLoopback => {
            "what the proxy's user or group sends to its own pod is marked, and captured inbound (-m TPROXY)"
        }
        InVirtualCaptured => "what comes from a virtual interface is treated as outbound (-k, -i)",
        InVirtualPassed => "what comes from a virtual interface for another destination passes (-k, -i)",
        InExcludedInterface => "what arrives on an excluded interface passes (-c)",
        InTunnel => "the tunnel's port passes (-e)",
        InExcludedPort => "an excluded inbound port passes (-d)",
        InAll => "every inbound port is captured (-b '*')",
        InListed => "a listed inbound port is captured (-b)",
        InDefault => "no rule is about it, so it passes",
        RefusedByRoute
        | RefusedFull
        | RefusedUnstored
        | RefusedNoListener
        | SourceNotBound
        | ListenerNotRegistered => return None,
    };
    Some(words)
}

/// The built-in chain whose end, the policy ACCEPT, a counter counts.
pub fn end(counter: Counter) -> Option<Chain> {
    match counter {
        Counter::OutDefault => Some(nat("OUTPUT")),
        Counter::InDefault => Some(nat("PREROUTING")),
        _ => None,
    }
}
