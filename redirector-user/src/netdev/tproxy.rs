//! What TPROXY mode needs in the namespace: the application's answers to a connection that the proxy made
//! from the client's address must come back to the proxy, although the client's address is not
//! local. The proxy marks its socket, the application's accepted socket inherits the mark, and marked
//! packets are routed to lo. istio-iptables does the same with `ip rule` and `ip route`
//! (tools/common/tproxy). It brings the mark to the application's socket by CONNMARK; here the sysctl
//! tcp_fwmark_accept does, and fwmark_reflect for what the kernel answers where nobody listens (a reset).

use redirector_common::abi::meta_flag;

use super::rules::{self, Change};
use super::sysctl;
use crate::base::error::{Context, Result};
use crate::netlink::{self, Netlink};
use crate::policy::{Mode, Policy};
use crate::sys::netns::NetNs;

/// Parameters of the kernel that are 1 in TPROXY mode.
const SYSCTLS: [(u32, &str); 3] = [
    (meta_flag::FWMARK_ACCEPT, "/proc/sys/net/ipv4/tcp_fwmark_accept"),
    (meta_flag::FWMARK_REFLECT4, "/proc/sys/net/ipv4/fwmark_reflect"),
    (meta_flag::FWMARK_REFLECT6, "/proc/sys/net/ipv6/fwmark_reflect"),
];

/// Flag, whether it is of IPv6, what.
const RULES_AND_ROUTES: [(u32, bool, &str); 4] = [
    (meta_flag::TPROXY_RULE4, false, "rule"),
    (meta_flag::TPROXY_ROUTE4, false, "route"),
    (meta_flag::TPROXY_RULE6, true, "rule"),
    (meta_flag::TPROXY_ROUTE6, true, "route"),
];

const V6_CHANGES: u32 = meta_flag::FWMARK_REFLECT6 | meta_flag::TPROXY_RULE6 | meta_flag::TPROXY_ROUTE6;

/// Everything this file may change.
pub(super) const ALL_CHANGES: u32 = meta_flag::FWMARK_ACCEPT
    | meta_flag::FWMARK_REFLECT4
    | meta_flag::TPROXY_RULE4
    | meta_flag::TPROXY_ROUTE4
    | V6_CHANGES;

const WHAT: &str = "a change of the rules and routes of TPROXY mode";
const RTPROT_BOOT: u8 = 3;

/// What a policy needs.
pub(super) fn changes_of(policy: &Policy) -> u32 {
    match policy.mode {
        Mode::Tproxy if policy.ipv6 => ALL_CHANGES,
        Mode::Tproxy => ALL_CHANGES & !V6_CHANGES,
        Mode::Redirect => 0,
    }
}

/// Makes changes with a policy's mark and table; returns what was really changed, that is, was not so already.
pub(super) fn apply(netns: &NetNs, policy: &Policy, changes: u32) -> Result<u32> {
    netlink::within(netns, |netlink| {
        let mut made = 0;
        let result = apply_here(netlink, policy, changes, &mut made);
        if result.is_err() {
            let _ = undo_here(netlink, policy, made);
        }
        result.map(|()| made)
    })
}

/// Of these changes, those that somebody has taken back, with words for each.
pub(super) fn gone(netns: &NetNs, policy: &Policy, changes: u32) -> Result<Vec<(u32, String)>> {
    let (mark, table) = (policy.tproxy_mark, policy.tproxy_table);
    netlink::within(netns, |netlink| {
        let mut gone = Vec::new();
        for (flag, path) in SYSCTLS.into_iter().filter(|(flag, _)| changes & flag != 0) {
            let value = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
            if value.trim() == "0" {
                let name = path.strip_prefix("/proc/sys/").unwrap_or(path).replace('/', ".");
                gone.push((flag, format!("{name} = 1")));
            }
        }
        for (flag, v6, what) in RULES_AND_ROUTES.into_iter().filter(|(flag, ..)| changes & flag != 0) {
            let is_there = match what {
                "rule" => rules::has_mark_rule(netlink, WHAT, v6, mark, table)?,
                _ => !rules::routes_in(netlink, WHAT, v6, table, RTPROT_BOOT)?.is_empty(),
            };
            if !is_there {
                let version = if v6 { "IPv6" } else { "IPv4" };
                gone.push((flag, format!("the {version} {what} of TPROXY mode (table {table})")));
            }
        }
        Ok(gone)
    })
}

/// Takes back what was changed. No error if it is gone already.
pub(super) fn undo(netns: &NetNs, policy: &Policy, changes: u32) -> Result<()> {
    if changes & ALL_CHANGES == 0 {
        return Ok(());
    }
    netlink::within(netns, |netlink| undo_here(netlink, policy, changes))
}

fn apply_here(netlink: &mut Netlink, policy: &Policy, changes: u32, made: &mut u32) -> Result<()> {
    rules::check_free(netlink, policy.tproxy_table, "choose another table (-r)")?;
    for (flag, path) in SYSCTLS.into_iter().filter(|(flag, _)| changes & flag != 0) {
        let value = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
        if value.trim() == "0" {
            sysctl::write(path, "1").context(|| format!("write 1 to {path}"))?;
            *made |= flag;
        }
    }
    // Never one that is ours already: the kernel takes an equal rule twice.
    for (flag, v6, what) in RULES_AND_ROUTES.into_iter().filter(|(flag, ..)| changes & flag != 0) {
        if change(netlink, Change::Add, v6, what, policy)? == 0 {
            *made |= flag;
        }
    }
    Ok(())
}

/// Takes back each change, also after one that could not be; the first error counts.
fn undo_here(netlink: &mut Netlink, policy: &Policy, changes: u32) -> Result<()> {
    let sysctls = SYSCTLS
        .into_iter()
        .filter(|(flag, _)| changes & flag != 0)
        .map(|(_, path)| sysctl::write(path, "0").context(|| format!("write 0 to {path}")));
    let result = sysctls.fold(Ok(()), Result::and);
    let removed = RULES_AND_ROUTES
        .into_iter()
        .filter(|(flag, ..)| changes & flag != 0)
        .map(|(_, v6, what)| change(netlink, Change::Remove, v6, what, policy).map(drop));
    removed.fold(result, Result::and)
}

/// The kernel's answer: 0, or that there was nothing to do.
fn change(netlink: &mut Netlink, change: Change, v6: bool, what: &str, policy: &Policy) -> Result<i32> {
    let table = policy.tproxy_table;
    let message = match what {
        "rule" => change.mark_rule(v6, policy.tproxy_mark, table),
        _ => change.local_route(rules::everything(v6), table, RTPROT_BOOT),
    };
    let errno = netlink.change(WHAT, vec![message])?.first().copied().unwrap_or_default();
    if change.is_done(errno) {
        return Ok(errno);
    }
    let (version, hint) = (if v6 { "IPv6" } else { "IPv4" }, rules::hint(v6, errno));
    let verb = change.verb();
    Err(rules::refused(format!("{verb} the {version} {what} of TPROXY mode (table {table}){hint}"), errno))
}
