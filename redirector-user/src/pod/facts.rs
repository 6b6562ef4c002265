//! What a policy may ask about its target.

use super::Target;
use crate::base::error::{Error, Result, chain};
use crate::policy::TargetFacts;
use crate::routes;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

const PASSTHROUGH_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// The target's root filesystem and addresses.
pub fn of(target: &Target) -> Result<TargetFacts> {
    let mirror = routes::read(target.netns.as_fd()).map_err(|e| Error::failed(chain(&e)))?;
    // Not our own ::6, or `--ipv6 auto` would find IPv6 in use because of an earlier attach.
    let ours = |i: &routes::Interface, ip: IpAddr| i.loopback && ip == PASSTHROUGH_V6;
    let all = mirror.interfaces.iter().flat_map(|i| i.addresses.iter().map(move |net| (i, net.addr())));
    let mut addresses: Vec<IpAddr> = all.filter(|(i, ip)| !ours(i, *ip)).map(|(_, ip)| ip).collect();
    // The kernel lists IPv4 before IPv6, whatever the interface (rtnl_dump_all).
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(TargetFacts {
        root: target.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/root"))),
        nameservers: None,
        addresses: Some(addresses),
    })
}
