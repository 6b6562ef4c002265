//! Routing tables to which redirector gives a meaning of its own (TPROXY's, and that of virtual interfaces): what is
//! looked up there must come here.

use crate::base::error::{Error, Result, chain};
use crate::netlink::{Message, Netlink, Payload};
use crate::routes::RouteError;

const WHAT: &str = "the routes of a table";
/// sizeof of struct rtmsg, and where it says the type.
const HEADER: usize = 12;
const TYPE: usize = 7;

/// Refuses a table with a route that leads elsewhere: what is captured would follow it, around the proxy.
pub(crate) fn check_free(netlink: &mut Netlink, table: u32, remedy: &str) -> Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; HEADER];
        header[0] = family as u8;
        let routes = Message::new(libc::RTM_GETROUTE, 0, &header);
        let found = match netlink.list(WHAT, &routes, |payload| elsewhere(payload, table)) {
            Err(e) if is_absent(&e) => Vec::new(),
            found => found.map_err(|e| Error::failed(chain(&e)))?,
        };
        if !found.is_empty() {
            return Err(Error::failed(format!(
                "routes of somebody else lead elsewhere from the routing table {table}, and captured \
                 traffic would follow them: {}",
                found.join(", ")
            ))
            .remedy(remedy));
        }
    }
    Ok(())
}

/// Whether a list failed because the kernel does not have the family: then nothing is in it.
pub(crate) fn is_absent(error: &RouteError) -> bool {
    matches!(error, RouteError::Dump { source, .. }
        if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)))
}

/// What to do about a route over lo that the kernel refuses, for the end of an error.
pub(crate) fn hint(v6: bool, errno: i32) -> &'static str {
    // `ip6_route_info_create`: "IPv6 is disabled on nexthop device".
    if v6 && errno == libc::EACCES {
        " (IPv6 is off on lo: set net.ipv6.conf.lo.disable_ipv6=0, or give --ipv6 off)"
    } else {
        ""
    }
}

/// The destination of a route of the table that is no local one.
fn elsewhere(payload: &[u8], table: u32) -> Option<String> {
    let route = Payload::split(payload, HEADER)?;
    if route.byte(TYPE) == libc::RTN_LOCAL || route.get_number(libc::RTA_TABLE) != Some(table) {
        return None;
    }
    let to = route.get_address(libc::RTA_DST).map(|to| format!("{to}/{}", route.byte(1)));
    Some(to.unwrap_or_else(|| "default".into()))
}
