//! What `-k` needs in the namespace: TCP that enters a virtual interface must be delivered here
//! although its destination is elsewhere; sk_lookup then gives it to the proxy. `ip rule iif IF
//! fwmark 0/0x40000000 ipproto tcp lookup 15001` (4.17) and, for each network of `-i`, `local NETWORK dev lo` in
//! that table. What [`crate::netdev::classifier`] has marked is none of ours, and routed as ever.
//! A network of `-i '*'` is everything; what no route covers is forwarded as ever.
//!
//! Of what is forwarded TO a guest, IPv4 looks up the way back (`__fib_validate_source`): as if it had entered the virtual
//! interface, and without a mark. A local route would be the end of it, so such a lookup ends in table 15002, in a route
//! that leads back to the guest. [`crate::netdev::classifier`] makes it for the interfaces it is attached to, and it goes with them:
//! packets without a mark are captured where there is no classifier, and never leave the pod where there was one.
//!
//! Rules and routes carry a protocol number of their own, so whoever cleans up can tell them from
//! those of others, and needs to know nothing else.

use crate::base::error::{Context, Error, Result, chain};
use crate::netdev::routing_table;
use crate::netlink::{Message, Netlink, Payload};
use crate::policy::{Mode, Policy, Selection};
use crate::routes::RouteError;
use crate::sys::netns::NetNs;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use redirector_common::abi::guest_mark;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The table of the routes; named after the port that everything in it goes to.
pub const TABLE: u32 = 15001;
/// The table in which the source of what is sent to a guest is validated.
pub const REVERSE: u32 = 15002;
/// Who made a route or rule (rtm_protocol, FRA_PROTOCOL). Of 5 to 255 the kernel lets anybody choose;
/// iproute2's list has nobody at this number.
pub(crate) const PROTOCOL: u8 = 151;
/// Right after the table `local` (0): netfilter would redirect before any routing.
const PRIORITY: u32 = 2;
const REVERSE_PRIORITY: u32 = 1;

/// sizeof of struct fib_rule_hdr and of struct rtmsg.
const HEADER: usize = 12;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const WHAT: &str = "the rules and routes of the virtual interfaces";

/// A rule or a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    /// What enters the interface is routed by the table, but for what is marked otherwise.
    Rule { v6: bool, interface: String, table: u32 },
    /// Destinations that are captured.
    Route(IpNet),
}

/// Refuses what cannot be: beside TPROXY the original's mangle rules come first.
pub fn check(policy: &Policy) -> Result<()> {
    if policy.virtual_interfaces.is_empty() || policy.mode == Mode::Redirect {
        return Ok(());
    }
    Err(Error::input(
        "-k (virtual interfaces) needs -m REDIRECT: beside TPROXY the original's rules give what enters them to the \
         inbound listener",
    ))
}

/// Makes what a policy needs and is not there. What an older policy needed stays.
pub fn add(netns: &NetNs, policy: &Policy) -> Result<()> {
    let pieces = of(policy);
    if pieces.is_empty() {
        return Ok(());
    }
    run(netns, || {
        let mut netlink = open()?;
        routing_table::check_free(&mut netlink, TABLE, "remove them, or attach without -k")?;
        change(&mut netlink, true, pieces)
    })
}

/// Takes away what is there and `policy` does not need; None needs nothing.
pub fn keep(netns: &NetNs, policy: Option<&Policy>) -> Result<()> {
    let needed = policy.map(of).unwrap_or_default();
    run(netns, || {
        let mut netlink = open()?;
        let mut there = list(&mut netlink)?;
        there.retain(|piece| !needed.contains(piece));
        // Rules first: without them nothing asks the table.
        change(&mut netlink, false, there)
    })
}

fn of(policy: &Policy) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::new();
    if policy.virtual_interfaces.is_empty() {
        return pieces;
    }
    let everything: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let everything = everything.map(|addr| IpNet::new_assert(addr, 0));
    let captured = match &policy.outbound_cidrs {
        Selection::All => &everything[..],
        some => some.items(),
    };
    for v6 in [false, true].into_iter().take(1 + usize::from(policy.ipv6)) {
        let nets =
            captured.iter().filter(|net| net.addr().is_ipv6() == v6).map(|net| Piece::Route(net.trunc()));
        let before = pieces.len();
        pieces.extend(nets);
        if pieces.len() > before {
            let tables = if v6 { &[TABLE][..] } else { &[TABLE, REVERSE] };
            for table in tables {
                let interfaces = policy.virtual_interfaces.iter().cloned();
                pieces.extend(interfaces.map(|interface| Piece::Rule { v6, interface, table: *table }));
            }
        }
    }
    pieces
}

/// In the order of the pieces, rules before routes; reversed when adding, so that no rule leads to half a table.
fn change(netlink: &mut Netlink, add: bool, pieces: BTreeSet<Piece>) -> Result<()> {
    let mut pieces: Vec<Piece> = pieces.into_iter().collect();
    if add {
        pieces.reverse();
    }
    let messages: Vec<Message> = pieces.iter().map(|piece| message(add, piece)).collect();
    let answers = netlink.ask::<()>(WHAT, messages.into_iter(), |_| None).map_err(failed)?;
    for (piece, answer) in pieces.iter().zip(answers) {
        match answer {
            Err(0) => {}
            Err(libc::EEXIST) if add => {}
            Err(libc::ENOENT | libc::ESRCH) if !add => {}
            Err(errno) => {
                let verb = if add { "add" } else { "remove" };
                let what = match piece {
                    Piece::Rule { v6, interface, .. } => {
                        format!("{verb} the IPv{} rule for what enters {interface}", if *v6 { 6 } else { 4 })
                    }
                    Piece::Route(net) => {
                        let hint = routing_table::hint(net.addr().is_ipv6(), errno);
                        format!("{verb} the route local {net} dev lo table {TABLE}{hint}")
                    }
                };
                return Err(Error::os(what, io::Error::from_raw_os_error(errno)));
            }
            Ok(()) => return Err(Error::failed(format!("the kernel's answer to {WHAT} cannot be read"))),
        }
    }
    Ok(())
}

fn message(add: bool, piece: &Piece) -> Message {
    const FR_ACT_TO_TBL: u8 = 1;
    const LOOPBACK_IFINDEX: u32 = 1;
    let flags = NLM_F_ACK | if add { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
    match piece {
        Piece::Rule { v6, interface, table } => {
            let (priority, mask) = match *table {
                REVERSE => (REVERSE_PRIORITY, guest_mark::BOTH),
                _ => (PRIORITY, guest_mark::FOREIGN),
            };
            // struct fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags.
            let header = [family(*v6), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
            let kind = if add { libc::RTM_NEWRULE } else { libc::RTM_DELRULE };
            let mut name = interface.clone().into_bytes();
            name.push(0);
            Message::new(kind, flags, &header)
                .attribute(FRA_IIFNAME, &name)
                .attribute(FRA_PRIORITY, &priority.to_ne_bytes())
                .attribute(FRA_FWMARK, &0_u32.to_ne_bytes())
                .attribute(FRA_FWMASK, &mask.to_ne_bytes())
                .attribute(FRA_TABLE, &table.to_ne_bytes())
                .attribute(FRA_PROTOCOL, &[PROTOCOL])
                .attribute(FRA_IP_PROTO, &[libc::IPPROTO_TCP as u8])
        }
        Piece::Route(net) => {
            // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
            let (family, bits) = (family(net.addr().is_ipv6()), net.prefix_len());
            let header = [family, bits, 0, 0, 0, PROTOCOL, libc::RT_SCOPE_HOST, libc::RTN_LOCAL, 0, 0, 0, 0];
            let kind = if add { libc::RTM_NEWROUTE } else { libc::RTM_DELROUTE };
            let message = Message::new(kind, flags, &header)
                .attribute(libc::RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes())
                .attribute(libc::RTA_TABLE, &TABLE.to_ne_bytes());
            if bits == 0 { message } else { message.address(libc::RTA_DST, net.addr()) }
        }
    }
}

/// Ours, of both families.
fn list(netlink: &mut Netlink) -> Result<BTreeSet<Piece>> {
    let mut pieces = BTreeSet::new();
    for v6 in [false, true] {
        let mut header = [0; HEADER];
        header[0] = family(v6);
        let rules = Message::new(libc::RTM_GETRULE, 0, &header);
        pieces.extend(listed(netlink.list(WHAT, &rules, |payload| rule(payload, v6)))?);
        let routes = Message::new(libc::RTM_GETROUTE, 0, &header);
        pieces.extend(listed(netlink.list(WHAT, &routes, |payload| route(payload, v6)))?);
    }
    Ok(pieces)
}

/// A kernel without a family lists nothing of it.
fn listed(list: std::result::Result<Vec<Piece>, RouteError>) -> Result<Vec<Piece>> {
    match list {
        Err(e) if routing_table::is_absent(&e) => Ok(Vec::new()),
        list => list.map_err(failed),
    }
}

fn rule(payload: &[u8], v6: bool) -> Option<Piece> {
    let rule = Payload::split(payload, HEADER)?;
    let table = rule.get_number(FRA_TABLE).filter(|table| matches!(*table, TABLE | REVERSE))?;
    let ours = rule.get(FRA_PROTOCOL) == Some(&[PROTOCOL]);
    let name = rule.get(FRA_IIFNAME)?.split(|byte| *byte == 0).next()?;
    let interface = String::from_utf8_lossy(name).into_owned();
    (ours && rule.byte(0) == family(v6)).then_some(Piece::Rule { v6, interface, table })
}

fn route(payload: &[u8], v6: bool) -> Option<Piece> {
    let route = Payload::split(payload, HEADER)?;
    let ours = route.byte(5) == PROTOCOL && route.get_number(libc::RTA_TABLE) == Some(TABLE);
    let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let net = IpNet::new(route.get_address(libc::RTA_DST).unwrap_or(any), route.byte(1)).ok()?;
    (ours && route.byte(0) == family(v6)).then_some(Piece::Route(net))
}

const fn family(v6: bool) -> u8 {
    if v6 { libc::AF_INET6 as u8 } else { libc::AF_INET as u8 }
}

fn run(netns: &NetNs, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    netns.run(work).context(|| "enter the network namespace".into())?
}

fn open() -> Result<Netlink> {
    Netlink::open().map_err(failed)
}

fn failed(e: RouteError) -> Error {
    Error::failed(chain(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(policy: &Policy) -> Vec<String> {
        let shown = |piece: &Piece| match piece {
            Piece::Rule { v6, interface, table } => format!("{interface} {v6} {table}"),
            Piece::Route(net) => net.to_string(),
        };
        of(policy).iter().map(shown).collect()
    }

    #[test]
    fn only_what_is_captured_is_delivered_here() {
        let mut policy = Policy { virtual_interfaces: vec!["vnet0".into()], ..Policy::default() };
        assert_eq!(
            text(&policy),
            ["vnet0 false 15001", "vnet0 false 15002", "vnet0 true 15001", "0.0.0.0/0", "::/0"]
        );
        policy.ipv6 = false;
        assert_eq!(text(&policy), ["vnet0 false 15001", "vnet0 false 15002", "0.0.0.0/0"]);
        policy.outbound_cidrs = Selection::of(vec!["10.1.2.3/8".parse().expect("net")]);
        policy.ipv6 = true;
        assert_eq!(text(&policy), ["vnet0 false 15001", "vnet0 false 15002", "10.0.0.0/8"]);
        policy.outbound_cidrs = Selection::None;
        assert!(text(&policy).is_empty());
        policy = Policy::default();
        assert!(text(&policy).is_empty());
    }
}
