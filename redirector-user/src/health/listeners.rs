//! The proxy's listeners: whether what is captured reaches one.

use std::net::IpAddr;

use redirector_common::abi::LISTENER_SLOTS;

use super::captures;
use super::finding::{Finding, Level, some_of};
use crate::netlink::sock_diag::Socket;
use crate::policy::{Dns, Policy};

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Outbound,
    Inbound,
    Dns,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound connections",
            Self::Inbound => "inbound connections",
            Self::Dns => "DNS over TCP",
        }
    }

    /// Of all of them, or those `over` a family.
    fn refused(self, over: &str) -> String {
        let verb = if self == Self::Dns { "is" } else { "are" };
        format!("{}{over} {verb} refused", self.name())
    }

    pub(super) fn port(self, policy: &Policy) -> u16 {
        match self {
            Self::Outbound => policy.outbound_port,
            Self::Inbound => policy.inbound_port,
            Self::Dns => policy.dns_port,
        }
    }

    /// Those that a policy sends something to.
    pub(super) fn of(policy: &Policy) -> Vec<Self> {
        let wanted = |role: &Self| match role {
            Self::Outbound => captures::outbound(policy),
            Self::Inbound => captures::inbound(policy),
            Self::Dns => policy.dns != Dns::Off,
        };
        [Self::Outbound, Self::Inbound, Self::Dns].into_iter().filter(wanted).collect()
    }
}

/// A TCP listener on a port of the policy.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub socket: Socket,
    /// `pid 4711 envoy`, if that is known.
    pub owner: Option<String>,
    /// It was made in the cgroup that is captured; None: nobody told.
    pub inside: Option<bool>,
    /// It is in the instance's registry; None: nobody told.
    pub registered: Option<bool>,
}

/// What is known of the pod beside its listeners.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// Name of the instance.
    pub instance: String,
    /// Names of interfaces.
    pub interfaces: Vec<(u32, String)>,
    /// The pod has an address of IPv6 that others can reach.
    pub has_ipv6: bool,
    /// The proxy may still be about to start.
    pub young: bool,
}

/// Why a listener does not get what is captured.
struct Obstacle {
    kind: &'static str,
    /// After the address and port: `listens on 127.0.0.1 only`.
    what: String,
    remedy: String,
}

/// What is to be said of the listeners of each role.
pub(super) fn judge(policy: &Policy, listeners: &[Listener], around: &Surroundings) -> Vec<Finding> {
    Role::of(policy).into_iter().flat_map(|role| judge_role(role, policy, listeners, around)).collect()
}

fn judge_role(role: Role, policy: &Policy, all: &[Listener], around: &Surroundings) -> Vec<Finding> {
    let port = role.port(policy);
    let of_port: Vec<&Listener> = all.iter().filter(|l| l.socket.local.port() == port).collect();
    if of_port.is_empty() {
        return vec![nobody(role, port, around)];
    }
    let mut findings: Vec<Finding> = Vec::new();
    let families = if policy.ipv6 && around.has_ipv6 { vec![false, true] } else { vec![false] };
    for v6 in families {
        let takes: Vec<&&Listener> = of_port.iter().filter(|l| takes(&l.socket, v6)).collect();
        let family = if v6 { "IPv6" } else { "IPv4" };
        if takes.is_empty() {
            findings.push(Finding::fault(
                "no_listener_of_family",
                format!("no listener on port {port} takes {family}"),
                &role.refused(&format!(" over {family}")),
                format!(
                    "let the proxy listen on {} too{}",
                    if v6 { "[::]" } else { "0.0.0.0" },
                    if v6 { ", or attach with --ipv6 off" } else { "" }
                ),
            ));
            continue;
        }
        let obstacles: Vec<(&Listener, Obstacle)> =
            takes.iter().filter_map(|l| Some((**l, obstacle(role, l, around)?))).collect();
        // Another one gets what these do not; but not what the kernel gives to one of a group that no program knows.
        let others_get_it = obstacles.len() < takes.len();
        for (listener, obstacle) in obstacles {
            if others_get_it && obstacle.kind != "listener_outside" {
                continue;
            }
            findings.push(blocked(role, listener, obstacle));
        }
    }
    findings.extend(of_port.iter().filter_map(|listener| full(role, listener)));
    // One that takes both families is found twice.
    findings.dedup();
    findings.extend(beyond_the_registry(role, port, &of_port));
    findings
}

/// Whether what is captured may go to a listener: one on another address of the pod is the application's own.
pub(super) fn may_be_the_proxys(policy: &Policy, listener: &Listener) -> bool {
    let local = listener.socket.local;
    let of_this_port = |role: &Role| role.port(policy) == local.port();
    local.ip().is_unspecified()
        || is_localhost(local.ip())
        || Role::of(policy).iter().filter(|role| of_this_port(role)).any(|role| *role == Role::Inbound)
}

/// The kernel drops the SYNs of further connections (`sk_acceptq_is_full`).
fn full(role: Role, listener: &Listener) -> Option<Finding> {
    let (waiting, most) = listener.socket.queue?;
    (waiting > most).then(|| {
        let port = listener.socket.local.port();
        let owner = listener.owner.as_deref().unwrap_or("process not told");
        Finding::fault(
            "listener_queue_full",
            format!("{waiting} connections wait for the listener on port {port} ({owner}) to accept them, and no more may"),
            &format!("{} time out", role.name()),
            "see what keeps the process from accepting: it is stopped, frozen, or busy".into(),
        )
    })
}

fn nobody(role: Role, port: u16, around: &Surroundings) -> Finding {
    let level = match role {
        // Resolvers ask over TCP only for long answers.
        Role::Dns => Level::Notice,
        _ if around.young => Level::Starting,
        _ => Level::Fault,
    };
    let flag = match role {
        Role::Outbound => "-p PORT",
        Role::Inbound => "-z PORT",
        Role::Dns => "ISTIO_AGENT_DNS_LISTENER_PORT",
    };
    let protocol = if role == Role::Dns { " (TCP)" } else { "" };
    Finding::new(
        level,
        "no_listener",
        format!("nobody listens on port {port}{protocol}"),
        &role.refused(""),
        format!("start the proxy; if it listens on another port, attach again with {flag}"),
    )
}

/// Whether it takes connections of a family.
fn takes(socket: &Socket, v6: bool) -> bool {
    match (v6, socket.v6) {
        (true, true) => socket.local.is_ipv6(),
        (true, false) => false,
        (false, false) => true,
        // An address of IPv4 in an IPv6 socket, or all of both.
        (false, true) => {
            socket.local.is_ipv4() || socket.local.ip().is_unspecified() && socket.v6_only != Some(true)
        }
    }
}

fn obstacle(role: Role, listener: &Listener, around: &Surroundings) -> Option<Obstacle> {
    const LO: u32 = 1;
    let socket = &listener.socket;
    let ip = socket.local.ip();
    let of = |kind, what: String, remedy: &str| Some(Obstacle { kind, what, remedy: remedy.into() });
    if listener.inside == Some(false) {
        // `refresh` looks for listeners wherever they are.
        let now = if role == Role::Inbound && listener.registered == Some(false) {
            format!("redirector refresh {} has it get connections; for good, ", around.instance)
        } else {
            String::new()
        };
        return of(
            "listener_outside",
            "was made outside the cgroup that is captured".into(),
            &format!("{now}attach with a cgroup that holds the proxy too, and start the proxy again in it"),
        );
    }
    let device = socket.device.filter(|device| *device != 0 && (*device != LO || role == Role::Inbound));
    if let Some(device) = device.filter(|_| role != Role::Inbound || socket.device == Some(LO)) {
        let name = around.interfaces.iter().find(|(index, _)| *index == device);
        let name = name.map_or_else(|| format!("interface {device}"), |(_, name)| name.clone());
        return of(
            "listener_bound_to_device",
            format!("is bound to {name} (SO_BINDTODEVICE)"),
            "let the proxy listen on every interface",
        );
    }
    if role == Role::Inbound && socket.v6 && ip.is_ipv4() && ip.is_unspecified() {
        return of(
            "listener_on_one_address",
            "listens on ::ffff:0.0.0.0, which is no wildcard to our programs".into(),
            "let the proxy listen on 0.0.0.0 or [::]",
        );
    }
    if role == Role::Inbound && ip.is_loopback() {
        return of(
            "listener_on_loopback",
            format!("listens on {ip} only"),
            "let the proxy listen on 0.0.0.0 (and [::])",
        );
    }
    if role != Role::Inbound && !ip.is_unspecified() && !is_localhost(ip) {
        return of(
            "listener_on_one_address",
            format!("listens on {ip} only, and captured connections go to loopback"),
            "let the proxy listen on 127.0.0.1 or 0.0.0.0 (and [::1] or [::])",
        );
    }
    if role != Role::Inbound {
        return None;
    }
    if socket.mptcp == Some(true) {
        return of(
            "listener_mptcp",
            "is an MPTCP listener, which sk_lookup cannot choose".into(),
            "let the proxy listen with plain TCP (of Go programs: GODEBUG=multipathtcp=0)",
        );
    }
    if listener.registered == Some(false) {
        let remedy = format!("redirector refresh {}", around.instance);
        return of("listener_not_registered", "is not in the instance's registry".into(), &remedy);
    }
    None
}

fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::from([127, 0, 0, 1]) || ip == IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
}

fn blocked(role: Role, listener: &Listener, obstacle: Obstacle) -> Finding {
    let owner = listener.owner.as_ref().map(|owner| format!(" ({owner})")).unwrap_or_default();
    let effect = match (role, obstacle.kind) {
        (Role::Inbound, "listener_outside") if listener.registered != Some(false) => {
            "the proxy is not told original destinations (SO_ORIGINAL_DST)"
        }
        (Role::Inbound, _) => "it gets nothing from the network: inbound connections are refused",
        (_, "listener_outside") => "the proxy is not told original destinations (SO_ORIGINAL_DST)",
        (Role::Outbound, _) => "outbound connections do not reach it",
        (Role::Dns, _) => "DNS over TCP does not reach it",
    };
    let port = listener.socket.local.port();
    Finding::fault(
        obstacle.kind,
        format!("the listener on port {port}{owner} {}", obstacle.what),
        effect,
        obstacle.remedy,
    )
}

/// The registry has room for so many of a family; any of a SO_REUSEPORT group leads to all of it.
fn beyond_the_registry(role: Role, port: u16, listeners: &[&Listener]) -> Option<Finding> {
    let of_family = |v6: bool| listeners.iter().filter(|l| l.socket.v6 == v6).count();
    let most = of_family(false).max(of_family(true));
    let left_out = listeners.iter().any(|l| l.registered == Some(false));
    (role == Role::Inbound && left_out && most > LISTENER_SLOTS as usize).then(|| {
        Finding::notice(
            "listeners_beyond_registry",
            format!(
                "port {port} has {most} listeners of one family, and the registry holds {LISTENER_SLOTS}"
            ),
            "those beyond get connections from the network only as members of a SO_REUSEPORT group",
            "let the proxy open its listeners with SO_REUSEPORT, or fewer of them".into(),
        )
    })
}

/// What is to be said of the DNS servers on UDP.
pub(super) fn judge_udp(policy: &Policy, servers: &[Socket], around: &Surroundings) -> Option<Finding> {
    let answers = |s: &Socket| s.local.port() == policy.dns_port && reaches(s);
    let level = if around.young { Level::Starting } else { Level::Fault };
    if policy.dns == Dns::Off {
        return None;
    }
    if servers.iter().any(answers) {
        // A server that answers over IPv4 alone is enough where nobody is asked over IPv6.
        let level = match &policy.dns {
            Dns::Servers(asked) if asked.iter().any(IpAddr::is_ipv6) => level,
            Dns::All => Level::Notice,
            _ => return None,
        };
        let some = policy.ipv6 && around.has_ipv6 && !servers.iter().any(|s| answers(s) && takes(s, true));
        return some.then(|| {
            Finding::new(
                level,
                "no_dns_server",
                format!("nobody answers on port {} (UDP) over IPv6", policy.dns_port),
                "DNS queries to IPv6 servers get no answer",
                "let the proxy's DNS server listen on ::1 too, or name IPv4 servers alone in resolv.conf"
                    .into(),
            )
        });
    }
    let elsewhere: Vec<String> = servers
        .iter()
        .filter(|s| s.local.port() == policy.dns_port)
        .map(|s| s.local.ip().to_string())
        .collect();
    let what = if elsewhere.is_empty() {
        format!("nobody answers on port {} (UDP)", policy.dns_port)
    } else {
        format!("port {} (UDP) answers on {} only", policy.dns_port, some_of(&elsewhere, 4))
    };
    Some(Finding::new(
        level,
        "no_dns_server",
        what,
        "DNS queries get no answer: names are not resolved",
        "start the proxy's DNS server on 127.0.0.1, or attach without --redirect-dns".into(),
    ))
}

fn reaches(socket: &Socket) -> bool {
    socket.local.ip().is_unspecified() || is_localhost(socket.local.ip())
}

#[cfg(test)]
#[path = "listeners_tests.rs"]
mod tests;
