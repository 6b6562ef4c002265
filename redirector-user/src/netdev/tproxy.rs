//! What TPROXY mode needs in the namespace: the app's answers to a connection that the proxy made
//! from the client's address must come back to the proxy, although the client's address is not
//! local. The proxy marks its socket, the app's accepted socket inherits the mark, and marked
//! packets are routed to lo. istio-iptables does the same with `ip rule` and `ip route`
//! (tools/common/tproxy); the mark reaches the app's socket by a sysctl instead of CONNMARK, and what the
//! kernel answers where nobody listens (a reset) by another.

use crate::base::error::{Context, Error, Result, chain};
use crate::netdev::routing_table;
use crate::netlink::{Message, Netlink};
use crate::policy::{Mode, Policy};
use crate::sys::netns::NetNs;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use redirector_common::abi::meta_flag;
use std::io;

/// Parameters of the kernel that are 1 in TPROXY mode.
const SYSCTLS: [(u32, &str); 3] = [
    (meta_flag::FWMARK_ACCEPT, "/proc/sys/net/ipv4/tcp_fwmark_accept"),
    (meta_flag::FWMARK_REFLECT4, "/proc/sys/net/ipv4/fwmark_reflect"),
    (meta_flag::FWMARK_REFLECT6, "/proc/sys/net/ipv6/fwmark_reflect"),
];

/// One change of the namespace and the flag that remembers it.
#[derive(Clone, Copy)]
enum Piece {
    Rule,
    Route,
}

const PIECES: [(u32, u8, Piece); 4] = [
    (meta_flag::TPROXY_RULE4, libc::AF_INET as u8, Piece::Rule),
    (meta_flag::TPROXY_ROUTE4, libc::AF_INET as u8, Piece::Route),
    (meta_flag::TPROXY_RULE6, libc::AF_INET6 as u8, Piece::Rule),
    (meta_flag::TPROXY_ROUTE6, libc::AF_INET6 as u8, Piece::Route),
];

/// Flags of everything this module may change, to be noted before it does.
pub const ALL_FLAGS: u32 = meta_flag::FWMARK_ACCEPT
    | meta_flag::FWMARK_REFLECT4
    | meta_flag::TPROXY_RULE4
    | meta_flag::TPROXY_ROUTE4
    | V6_FLAGS;

const V6_FLAGS: u32 = meta_flag::FWMARK_REFLECT6 | meta_flag::TPROXY_RULE6 | meta_flag::TPROXY_ROUTE6;

/// Flags of what a policy needs.
pub fn flags_of(policy: &Policy) -> u32 {
    match policy.mode {
        Mode::Tproxy if policy.ipv6 => ALL_FLAGS,
        Mode::Tproxy => ALL_FLAGS & !V6_FLAGS,
        Mode::Redirect => 0,
    }
}

/// Makes the changes of `flags` with a policy's mark and table; returns the flags of what was
/// really changed, that is, was not so already.
pub fn apply(netns: &NetNs, policy: &Policy, flags: u32) -> Result<u32> {
    let (mark, table) = (policy.tproxy_mark, policy.tproxy_table);
    netns
        .run(move || {
            let mut done = 0;
            let result = apply_here(mark, table, flags, &mut done);
            if result.is_err() {
                let _ = undo_here(mark, table, done);
            }
            result.map(|()| done)
        })
        .context(|| "enter the network namespace".into())?
}

/// Takes back what `flags` say was changed. No error if it is gone already.
pub fn undo(netns: &NetNs, policy: &Policy, flags: u32) -> Result<()> {
    if flags & ALL_FLAGS == 0 {
        return Ok(());
    }
    let (mark, table) = (policy.tproxy_mark, policy.tproxy_table);
    netns.run(move || undo_here(mark, table, flags)).context(|| "enter the network namespace".into())?
}

fn apply_here(mark: u32, table: u32, flags: u32, done: &mut u32) -> Result<()> {
    let mut netlink = open()?;
    routing_table::check_free(&mut netlink, table, "choose another table (-r)")?;
    for (flag, path) in SYSCTLS.into_iter().filter(|(flag, _)| flags & flag != 0) {
        let value = std::fs::read_to_string(path).context(|| format!("read {path}"))?;
        if value.trim() == "0" {
            std::fs::write(path, "1").context(|| format!("write 1 to {path}"))?;
            *done |= flag;
        }
    }
    // Never one that is ours already: the kernel takes an equal rule twice.
    for (flag, family, piece) in PIECES.into_iter().filter(|(flag, ..)| flags & flag != 0) {
        let message = message(true, family, piece, mark, table);
        match ask(&mut netlink, message)? {
            0 => *done |= flag,
            libc::EEXIST => {}
            errno => return Err(failed("add", family, piece, table, errno)),
        }
    }
    Ok(())
}

/// Takes back every piece, also after one that could not be; the first error counts.
fn undo_here(mark: u32, table: u32, flags: u32) -> Result<()> {
    let sysctls = SYSCTLS
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, path)| std::fs::write(path, "0").context(|| format!("write 0 to {path}")));
    let result = sysctls.fold(Ok(()), Result::and);
    let mut netlink = open()?;
    let pieces =
        PIECES.into_iter().filter(|(flag, ..)| flags & flag != 0).map(|(_, family, piece)| {
            match ask(&mut netlink, message(false, family, piece, mark, table))? {
                0 | libc::ENOENT | libc::ESRCH => Ok(()),
                errno => Err(failed("remove", family, piece, table, errno)),
            }
        });
    pieces.fold(result, Result::and)
}

/// `ip rule fwmark MARK lookup TABLE`, or `ip route local default dev lo table TABLE`.
fn message(add: bool, family: u8, piece: Piece, mark: u32, table: u32) -> Message {
    const FR_ACT_TO_TBL: u8 = 1;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const RTPROT_BOOT: u8 = 3;
    const LOOPBACK_IFINDEX: u32 = 1;
    let flags = NLM_F_ACK | if add { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
    match piece {
        Piece::Rule => {
            // struct fib_rule_hdr: family, dst_len, src_len, tos, table, 2 reserved, action, flags.
            let header = [family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
            let kind = if add { libc::RTM_NEWRULE } else { libc::RTM_DELRULE };
            Message::new(kind, flags, &header)
                .attribute(FRA_FWMARK, &mark.to_ne_bytes())
                .attribute(FRA_TABLE, &table.to_ne_bytes())
        }
        Piece::Route => {
            // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
            let header = [family, 0, 0, 0, 0, RTPROT_BOOT, libc::RT_SCOPE_HOST, libc::RTN_LOCAL, 0, 0, 0, 0];
            let kind = if add { libc::RTM_NEWROUTE } else { libc::RTM_DELROUTE };
            Message::new(kind, flags, &header)
                .attribute(libc::RTA_OIF, &LOOPBACK_IFINDEX.to_ne_bytes())
                .attribute(libc::RTA_TABLE, &table.to_ne_bytes())
        }
    }
}

fn open() -> Result<Netlink> {
    Netlink::open().map_err(|e| Error::failed(chain(&e)))
}

/// The kernel's answer: 0 or a positive errno.
fn ask(netlink: &mut Netlink, message: Message) -> Result<i32> {
    const WHAT: &str = "a change of the rules and routes of TPROXY mode";
    let answers =
        netlink.ask::<()>(WHAT, [message].into_iter(), |_| None).map_err(|e| Error::failed(chain(&e)))?;
    match answers.into_iter().next() {
        Some(Err(errno)) => Ok(errno),
        _ => Err(Error::failed(format!("the kernel's answer to {WHAT} cannot be read"))),
    }
}

fn failed(verb: &str, family: u8, piece: Piece, table: u32, errno: i32) -> Error {
    let what = match piece {
        Piece::Rule => "rule",
        Piece::Route => "route",
    };
    let v6 = i32::from(family) == libc::AF_INET6;
    let (version, hint) = (if v6 { "IPv6" } else { "IPv4" }, routing_table::hint(v6, errno));
    Error::os(
        format!("{verb} the {version} {what} of TPROXY mode (table {table}){hint}"),
        io::Error::from_raw_os_error(errno),
    )
}
