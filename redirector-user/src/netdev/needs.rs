//! What a policy needs of a namespace as it is.

use std::net::{IpAddr, Ipv6Addr};

use redirector_common::Addr;

use crate::policy::{Mode, Policy};
use crate::routes::RouteSnapshot;

/// What a policy needs of a namespace as it is.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// `::6` on lo.
    pub(super) lo6: bool,
    /// Rules and routes for IPv6. Where all of it is off, as container runtimes have it in clusters without
    /// IPv6, the kernel refuses routes over lo, and nothing could follow them.
    pub(super) ipv6: bool,
}

/// Finds what a policy needs, and adds `::6` to the snapshot, as it will be when the policy is in force.
pub fn foresee(policy: &Policy, snapshot: &mut RouteSnapshot) -> Needs {
    let passthrough = Addr::PASSTHROUGH_V6.into();
    let lo_has = |address: IpAddr| snapshot.lo().is_some_and(|lo| lo.has(address));
    // Not if it is there, nor if IPv6 is off on lo.
    let lo6 = policy.ipv6 && lo_has(Ipv6Addr::LOCALHOST.into()) && !lo_has(passthrough);
    if lo6 {
        snapshot.add_to_lo(passthrough);
    }
    Needs { lo6, ipv6: policy.ipv6 && snapshot.has_ipv6() }
}

/// What of a policy has no effect in a namespace as it is.
pub fn without_effect(policy: &Policy, snapshot: &RouteSnapshot) -> Vec<String> {
    let absent = |name: &&String| !snapshot.interfaces.iter().any(|it| it.name == **name);
    let excluded = policy.exclude_interfaces.iter().filter(absent).map(|name| {
        format!(
            "-c: there is no interface {name}; should it come, its traffic is captured until `redirector refresh`"
        )
    });
    let guests = policy.virtual_interfaces.iter().filter(absent);
    let guests = guests.map(|name| format!("-k: there is no interface {name} yet"));
    let routed = policy.mode == Mode::Tproxy || !policy.virtual_interfaces.is_empty();
    let ipv6 = (routed && policy.ipv6 && !snapshot.has_ipv6()).then(|| {
        "IPv6 is off in this network namespace, so no rules and routes were made for it; run `redirector refresh` when \
         it is on"
            .to_owned()
    });
    excluded.chain(guests).chain(ipv6).collect()
}
