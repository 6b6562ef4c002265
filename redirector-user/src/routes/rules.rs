//! Policy rules that select by what a snapshot does not know of a connection.

use super::dump::dump;
use crate::base::error::Result;
use crate::netlink::{self, Netlink, NetlinkError, Payload, family, if_present};
use crate::sys::netns::NetNs;

/// Offset of `action` in struct fib_rule_hdr, and FR_ACT_BLACKHOLE, _UNREACHABLE, _PROHIBIT (uapi/linux/fib_rules.h).
const ACTION: usize = 7;
const FORBIDDING: [(u8, &str); 3] = [(6, "blackhole"), (7, "unreachable"), (8, "prohibit")];
/// Offset of its `tos`.
const TOS: usize = 3;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DSCP: u16 = 25;

/// An `ip rule` by user, port or type of service. Under iptables it decides on each connection before NAT; a connect hook
/// sees no route, and [`super::read`] asks for a socket of root's without ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownRule {
    /// `32765: uidrange 1000-1000 prohibit`.
    pub text: String,
    /// Connections that it selects are forbidden, whatever the routes say.
    pub forbids: bool,
}

/// Those that select TCP connections of the namespace itself.
///
/// # Errors
///
/// The kernel's.
pub fn unknown_to_snapshot(netns: &NetNs) -> Result<Vec<UnknownRule>> {
    netlink::within(netns, |netlink| Ok([list(netlink, false)?, list(netlink, true)?].concat()))
}

fn list(netlink: &mut Netlink, v6: bool) -> Result<Vec<UnknownRule>, NetlinkError> {
    // A kernel without CONFIG_IP_MULTIPLE_TABLES has no rules.
    if_present(dump(netlink, "the policy rules", libc::RTM_GETRULE, family(v6), |rule| decode(rule, v6)))
}

fn decode(rule: Payload<'_>, v6: bool) -> Option<UnknownRule> {
    let elsewhere = rule.get(FRA_IIFNAME).is_some_and(|name| name.strip_suffix(&[0]) != Some(b"lo"));
    let other_protocol = rule.get(FRA_IP_PROTO).is_some_and(|protocol| protocol != [libc::IPPROTO_TCP as u8]);
    if elsewhere || other_protocol {
        return None;
    }
    let mut selectors: Vec<String> = Vec::new();
    if let Some((first, last)) = range(rule.get(FRA_UID_RANGE), u32::from_ne_bytes) {
        selectors.push(format!("uidrange {first}-{last}"));
    }
    for (attribute, name) in [(FRA_SPORT_RANGE, "sport"), (FRA_DPORT_RANGE, "dport")] {
        if let Some((first, last)) = range(rule.get(attribute), u16::from_ne_bytes) {
            selectors.push(format!("{name} {first}-{last}"));
        }
    }
    if rule.byte(TOS) != 0 {
        selectors.push(format!("tos {:#04x}", rule.byte(TOS)));
    }
    if let Some([dscp]) = rule.get(FRA_DSCP) {
        selectors.push(format!("dscp {dscp}"));
    }
    if selectors.is_empty() {
        return None;
    }
    let forbidding = FORBIDDING.iter().find(|(action, _)| *action == rule.byte(ACTION));
    let action = match forbidding {
        Some((_, name)) => (*name).to_owned(),
        None => format!("lookup {}", rule.get_number(FRA_TABLE).unwrap_or_default()),
    };
    let family = if v6 { "ip -6 rule" } else { "ip rule" };
    let priority = rule.get_number(FRA_PRIORITY).unwrap_or_default();
    let text = format!("{family} {priority}: {} {action}", selectors.join(" "));
    Some(UnknownRule { text, forbids: forbidding.is_some() })
}

/// `struct fib_rule_uid_range`, `struct fib_rule_port_range`: both ends, in host byte order.
fn range<const N: usize, T>(bytes: Option<&[u8]>, number: fn([u8; N]) -> T) -> Option<(T, T)> {
    let (first, last) = bytes?.split_first_chunk::<N>()?;
    Some((number(*first), number(last.try_into().ok()?)))
}
