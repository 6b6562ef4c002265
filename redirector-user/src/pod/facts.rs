//! What a policy may ask about its target.

use std::net::IpAddr;
use std::path::PathBuf;

use redirector_common::Addr;

use super::Target;
use crate::base::error::Result;
use crate::policy::TargetDetails;
use crate::routes::{self, Interface};

/// The target's root filesystem and addresses.
pub fn of(target: &Target) -> Result<TargetDetails> {
    let interfaces = routes::interfaces(&target.netns)?;
    // Not our own ::6, or `--ipv6 auto` would find IPv6 in use because of an earlier attach.
    let ours = |i: &Interface, ip: IpAddr| i.loopback && ip == IpAddr::from(Addr::PASSTHROUGH_V6);
    let all = interfaces.iter().flat_map(|i| i.addresses.iter().map(move |net| (i, net.addr())));
    let mut addresses: Vec<IpAddr> = all.filter(|(i, ip)| !ours(i, *ip)).map(|(_, ip)| ip).collect();
    // The kernel lists IPv4 before IPv6, whatever the interface (rtnl_dump_all).
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(TargetDetails {
        root: target.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root"))),
        nameservers: None,
        addresses: Some(addresses),
    })
}
