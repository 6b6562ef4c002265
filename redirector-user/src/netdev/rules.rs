//! Rules and routes that lead to the proxy: `ip rule … lookup TABLE` and `ip route local NETWORK dev lo table TABLE`.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use redirector_common::abi::LOOPBACK_IFINDEX;

use crate::base::error::{Error, Result};
use crate::base::text::nul_terminated;
use crate::netlink::{Message, Netlink, Payload, family, family_header, if_present};

/// sizeof of struct rtmsg and of struct fib_rule_hdr; the first byte of each is the family.
pub(super) const HEADER: usize = 12;
/// Offset of rtm_type.
const RTM_TYPE: usize = 7;
/// Offset of rtm_protocol.
const RTM_PROTOCOL: usize = 5;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;

/// Whether something is added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Remove,
}

impl Change {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }

    fn flags(self) -> u16 {
        match self {
            Self::Add => NLM_F_CREATE | NLM_F_EXCL,
            Self::Remove => 0,
        }
    }

    /// Whether the kernel's answer says that it is done, or was so already.
    pub(super) fn is_done(self, errno: i32) -> bool {
        match self {
            Self::Add => matches!(errno, 0 | libc::EEXIST),
            Self::Remove => matches!(errno, 0 | libc::ENOENT | libc::ESRCH),
        }
    }

    /// `ip rule fwmark MARK lookup TABLE`.
    pub(super) fn mark_rule(self, v6: bool, mark: u32, table: u32) -> Message {
        let kind = if self == Self::Add { libc::RTM_NEWRULE } else { libc::RTM_DELRULE };
        // struct fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags.
        let header = [family(v6), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        Message::new(kind, self.flags(), &header)
            .attribute(FRA_FWMARK, &mark.to_ne_bytes())
            .attribute(FRA_TABLE, &table.to_ne_bytes())
    }

    /// `ip rule priority PRIORITY iif INTERFACE fwmark 0/MASK ipproto tcp protocol PROTOCOL lookup TABLE`.
    pub(super) fn interface_rule(
        self,
        v6: bool,
        interface: &str,
        (priority, mask): (u32, u32),
        table: u32,
        protocol: u8,
    ) -> Message {
        let mut name = interface.to_owned().into_bytes();
        name.push(0);
        self.mark_rule(v6, 0, table)
            .attribute(FRA_IIFNAME, &name)
            .attribute(FRA_PRIORITY, &priority.to_ne_bytes())
            .attribute(FRA_FWMASK, &mask.to_ne_bytes())
            .attribute(FRA_PROTOCOL, &[protocol])
            .attribute(FRA_IP_PROTO, &[libc::IPPROTO_TCP as u8])
    }

    /// `ip route local NETWORK dev lo table TABLE protocol PROTOCOL`.
    pub(super) fn local_route(self, network: IpNet, table: u32, protocol: u8) -> Message {
        let kind = if self == Self::Add { libc::RTM_NEWROUTE } else { libc::RTM_DELROUTE };
        let (family, bits) = (family(network.addr().is_ipv6()), network.prefix_len());
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
        let header = [family, bits, 0, 0, 0, protocol, libc::RT_SCOPE_HOST, libc::RTN_LOCAL, 0, 0, 0, 0];
        let message = Message::new(kind, self.flags(), &header)
            .attribute(libc::RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes())
            .attribute(libc::RTA_TABLE, &table.to_ne_bytes());
        if bits == 0 { message } else { message.address(libc::RTA_DST, network.addr()) }
    }
}

/// What the kernel said of a change, on which object.
pub(super) fn refused(what: String, errno: i32) -> Error {
    Error::os(what, io::Error::from_raw_os_error(errno))
}

/// The rules of a protocol number: of which interface, to which table.
pub(super) fn interface_rules(
    netlink: &mut Netlink,
    what: &'static str,
    v6: bool,
    protocol: u8,
) -> Result<Vec<(String, u32)>> {
    let request = Message::new(libc::RTM_GETRULE, 0, &family_header::<HEADER>(family(v6)));
    Ok(if_present(netlink.list(what, &request, |payload| {
        let rule = Payload::split(payload, HEADER)?;
        let name = nul_terminated(rule.get(FRA_IIFNAME)?);
        let ours = rule.byte(0) == family(v6) && rule.get(FRA_PROTOCOL) == Some(&[protocol]);
        ours.then_some((name, rule.get_number(FRA_TABLE)?))
    }))?)
}

/// Whether there is a rule like [`Change::mark_rule`].
pub(super) fn has_mark_rule(
    netlink: &mut Netlink,
    what: &'static str,
    v6: bool,
    mark: u32,
    table: u32,
) -> Result<bool> {
    let request = Message::new(libc::RTM_GETRULE, 0, &family_header::<HEADER>(family(v6)));
    let found = if_present(netlink.list(what, &request, |payload| {
        let rule = Payload::split(payload, HEADER)?;
        let same = (rule.get_number(FRA_FWMARK), rule.get_number(FRA_TABLE)) == (Some(mark), Some(table));
        (same && rule.byte(0) == family(v6)).then_some(())
    }))?;
    Ok(!found.is_empty())
}

/// Networks of the routes in a table that have a protocol number.
pub(super) fn routes_in(
    netlink: &mut Netlink,
    what: &'static str,
    v6: bool,
    table: u32,
    protocol: u8,
) -> Result<Vec<IpNet>> {
    let request = Message::new(libc::RTM_GETROUTE, 0, &family_header::<HEADER>(family(v6)));
    Ok(if_present(netlink.list(what, &request, |payload| {
        let route = Payload::split(payload, HEADER)?;
        let ours = route.byte(0) == family(v6)
            && route.byte(RTM_PROTOCOL) == protocol
            && route.get_number(libc::RTA_TABLE) == Some(table);
        let net = match route.get_address(libc::RTA_DST) {
            Some(address) => IpNet::new(address, route.byte(1)).ok()?,
            None => everything(v6),
        };
        ours.then_some(net)
    }))?)
}

/// Every destination of a family.
pub(super) fn everything(v6: bool) -> IpNet {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

/// Refuses a table with a route that leads elsewhere: what is captured would follow it, around the proxy.
pub(super) fn check_free(netlink: &mut Netlink, table: u32, remedy: &str) -> Result<()> {
    for v6 in [false, true] {
        let request = Message::new(libc::RTM_GETROUTE, 0, &family_header::<HEADER>(family(v6)));
        let found = if_present(netlink.list("the routes of a table", &request, |p| elsewhere(p, table)))?;
        if !found.is_empty() {
            return Err(Error::failed(format!(
                "routes of somebody else lead elsewhere from the routing table {table}, and captured traffic would follow \
                 them: {}",
                found.join(", ")
            ))
            .remedy(remedy));
        }
    }
    Ok(())
}

/// The destination of a route of the table that is no local one.
fn elsewhere(payload: &[u8], table: u32) -> Option<String> {
    let route = Payload::split(payload, HEADER)?;
    if route.byte(RTM_TYPE) == libc::RTN_LOCAL || route.get_number(libc::RTA_TABLE) != Some(table) {
        return None;
    }
    let to = route.get_address(libc::RTA_DST).map(|to| format!("{to}/{}", route.byte(1)));
    Some(to.unwrap_or_else(|| "default".into()))
}

/// What to do about a route over lo that the kernel refuses, for the end of an error.
pub(super) fn hint(v6: bool, errno: i32) -> &'static str {
    // `ip6_route_info_create`: "IPv6 is disabled on nexthop device".
    if v6 && errno == libc::EACCES {
        " (IPv6 is off on lo: set net.ipv6.conf.lo.disable_ipv6=0, or give --ipv6 off)"
    } else {
        ""
    }
}
