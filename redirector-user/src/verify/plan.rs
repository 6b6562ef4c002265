//! Which connections to try under a policy: one of each kind that the policy captures, chosen so that whoever gets
//! it is not disturbed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use redirector_common::Addr;
use redirector_common::rule::{Outcome, Verdict};

use crate::explain::{self, Arriving, Explanation, Offline, Outgoing};
use crate::policy::{Dns, Policy, Selection};
use crate::routes::RouteSnapshot;
use crate::rules::Protocol;

/// The documentation's networks (RFC 5737, RFC 3849): nobody is there, should a connection escape.
const NOBODY4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODY6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// A proxy's user that no container is likely to have.
const APP: u32 = 65_530;
/// Who listens in the place of a proxy that no user stands for.
pub const ROOT: User = User { uid: 0, gid: 0, proxy_cgroup: false };
/// Networks of a list that are looked at.
const MAX_NETWORKS_TRIED: usize = 64;

/// Who makes a connection; ids as the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// In the proxy's cgroup.
    pub proxy_cgroup: bool,
}

/// A connection to try.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it is there to prove.
    pub kind: &'static str,
    /// Who makes it; None: it comes from the network.
    pub user: Option<User>,
    /// Address it is bound to; from the network: its sender.
    pub bind: Option<IpAddr>,
    /// By which protocol.
    pub protocol: Protocol,
    /// Destination.
    pub to: SocketAddr,
    /// What the policy says.
    pub expected: Explanation,
}

/// What there is to try, or why there is nothing.
pub type Plan = Vec<Result<Attempt, Skipped>>;

/// Something that cannot be tried.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// What it would have proved.
    pub kind: &'static str,
    /// By which family.
    pub v6: bool,
    /// Why not.
    pub why: String,
}

/// Everything that can be tried. `missing`: capabilities without which all connections are root's.
pub fn plan(policy: &Policy, snapshot: &RouteSnapshot, probe_port: u16, missing: &[&str]) -> Plan {
    let offline = Offline::of(policy, snapshot);
    let of = |v6| Family { policy, snapshot, offline: &offline, missing, v6 };
    let mut plan = of(false).all(probe_port);
    if policy.ipv6 {
        plan.extend(of(true).all(probe_port));
    }
    plan
}

/// The proxy: by its cgroup, if the policy has one, else the first of its users, for which the rule of the proxy's
/// calls to its own pod is.
pub fn proxy(policy: &Policy) -> Option<User> {
    let proxy_cgroup = policy.proxy_cgroup.is_some();
    let uid = policy.proxy_uids.first().copied().or(proxy_cgroup.then_some(APP))?;
    let gid = policy.proxy_gids.first().copied().unwrap_or(uid);
    Some(User { uid, gid, proxy_cgroup })
}

struct Family<'a> {
    policy: &'a Policy,
    snapshot: &'a RouteSnapshot,
    offline: &'a Offline,
    /// Capabilities that are missing to become another user than root.
    missing: &'a [&'a str],
    v6: bool,
}

impl Family<'_> {
    fn all(&self, probe_port: u16) -> Plan {
        let mut plan = vec![self.own_pod(probe_port), self.outbound()];
        if self.policy.dns != Dns::Off {
            plan.push(self.dns("dns", Protocol::Tcp));
            plan.push(self.dns("dns_udp", Protocol::Udp));
        }
        plan.push(self.inbound());
        plan
    }

    fn skipped(&self, kind: &'static str, why: &str) -> Result<Attempt, Skipped> {
        Err(Skipped { kind, v6: self.v6, why: why.into() })
    }

    fn pick<T>(&self, v4: T, v6: T) -> T {
        if self.v6 { v6 } else { v4 }
    }

    /// What istio-validation does: the proxy's user from 127.0.0.1 to 127.0.0.6, `[::1]` to `[::6]`.
    fn own_pod(&self, port: u16) -> Result<Attempt, Skipped> {
        const KIND: &str = "proxy_to_own_pod";
        let Some(user) = proxy(self.policy) else {
            return self.skipped(KIND, "the policy names no user of the proxy");
        };
        if !self.missing.is_empty() {
            let why = format!(
                "{} missing: connections cannot be made as user {}",
                self.missing.join(" and "),
                user.uid
            );
            return self.skipped(KIND, &why);
        }
        let [passthrough4, passthrough6] = [Addr::PASSTHROUGH_V4, Addr::PASSTHROUGH_V6].map(IpAddr::from);
        if self.v6 && !self.snapshot.lo().is_some_and(|lo| lo.has(passthrough6)) {
            return self.skipped(KIND, "::6 is not on lo: IPv6 is off there");
        }
        let bind = self.pick(Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        let to = self.pick(passthrough4, passthrough6);
        Ok(self.attempt(KIND, user, Protocol::Tcp, Some(bind), SocketAddr::new(to, port)))
    }

    /// Somebody's connection to the outside, of those that are captured.
    fn outbound(&self) -> Result<Attempt, Skipped> {
        let kind = "outbound";
        let mut to: Vec<(IpAddr, u16)> = vec![(self.pick(NOBODY4.into(), NOBODY6.into()), 80)];
        if let Selection::List(nets) = &self.policy.outbound_cidrs {
            let of_family =
                nets.iter().filter(|net| net.addr().is_ipv6() == self.v6).take(MAX_NETWORKS_TRIED);
            to.extend(of_family.filter_map(|net| net.hosts().next()).map(|host| (host, 80)));
        }
        let ports: Vec<u16> = self.policy.outbound_ports.iter().copied().take(MAX_NETWORKS_TRIED).collect();
        let listed: Vec<_> = to.iter().flat_map(|(ip, _)| ports.iter().map(|port| (*ip, *port))).collect();
        to.extend(listed);
        self.captured(kind, Protocol::Tcp, Verdict::Outbound, &to)
    }

    fn dns(&self, kind: &'static str, protocol: Protocol) -> Result<Attempt, Skipped> {
        let to: Vec<IpAddr> = match &self.policy.dns {
            Dns::Servers(servers) => servers.iter().copied().filter(|ip| ip.is_ipv6() == self.v6).collect(),
            _ => vec![self.pick(NOBODY4.into(), NOBODY6.into())],
        };
        let to: Vec<_> = to.into_iter().map(|ip| (ip, 53)).collect();
        self.captured(kind, protocol, Verdict::Dns, &to)
    }

    /// The first destination that the policy and the routes let be captured.
    fn captured(
        &self,
        kind: &'static str,
        protocol: Protocol,
        verdict: Verdict,
        to: &[(IpAddr, u16)],
    ) -> Result<Attempt, Skipped> {
        let Some(user) = self.application() else {
            return self.skipped(kind, "the policy names every user or group that could be tried");
        };
        let mut refused = false;
        for &(ip, port) in to {
            let attempt = self.attempt(kind, user, protocol, None, SocketAddr::new(ip, port));
            if attempt.expected.verdict == Outcome::Decided(verdict) {
                return Ok(attempt);
            }
            refused |= attempt.expected.verdict == Outcome::Refused;
        }
        let why = if refused {
            "the namespace has no route to what could be tried"
        } else {
            "the policy captures nothing of the kind, or nothing that could be guessed from it"
        };
        self.skipped(kind, why)
    }

    /// A user and group whose connections are captured as an application's.
    fn application(&self) -> Option<User> {
        let policy = self.policy;
        if !self.missing.is_empty() {
            let includes = |groups: &Selection<u32>| match groups {
                Selection::List(groups) => groups.contains(&ROOT.gid),
                _ => true,
            };
            let is_named = policy.proxy_uids.contains(&ROOT.uid)
                || policy.proxy_gids.contains(&ROOT.gid)
                || policy.owner_groups_exclude.contains(&ROOT.gid);
            return (!is_named && includes(&policy.owner_groups)).then_some(ROOT);
        }
        let uid = (APP..APP + 64).find(|uid| !policy.proxy_uids.contains(uid))?;
        let free = |gid: &u32| !policy.proxy_gids.contains(gid) && !policy.owner_groups_exclude.contains(gid);
        let gid = match &policy.owner_groups {
            Selection::List(groups) => groups.iter().copied().find(free)?,
            _ => (APP..APP + 128).find(free)?,
        };
        Some(User { uid, gid, proxy_cgroup: false })
    }

    fn attempt(
        &self,
        kind: &'static str,
        user: User,
        protocol: Protocol,
        bind: Option<IpAddr>,
        to: SocketAddr,
    ) -> Attempt {
        let query = Outgoing {
            protocol,
            uid: Some(user.uid),
            gid: Some(user.gid),
            proxy: user.proxy_cgroup,
            source: bind,
            to,
        };
        let expected = explain::outgoing(self.policy, self.offline, &query);
        Attempt { kind, user: Some(user), bind, protocol, to, expected }
    }

    /// A connection from the network to the pod's own address.
    fn inbound(&self) -> Result<Attempt, Skipped> {
        let kind = "inbound";
        let usable = |ip: &IpAddr| match ip {
            IpAddr::V4(_) => !self.v6,
            IpAddr::V6(v6) => self.v6 && !v6.is_unicast_link_local(),
        };
        let named = |name| self.policy.exclude_interfaces.contains(name);
        let interfaces = self.snapshot.interfaces.iter().filter(|it| !it.loopback && !named(&it.name));
        let mut addresses = interfaces.flat_map(|it| &it.addresses).map(ipnet::IpNet::addr);
        let Some(own) = addresses.find(usable) else {
            let excluded = self.snapshot.interfaces.iter().any(|it| named(&it.name));
            let why = if excluded {
                "the interfaces with an address of their own are excluded (-c)"
            } else {
                "the namespace has no address of its own"
            };
            return self.skipped(kind, why);
        };
        let ports: Vec<u16> = match &self.policy.inbound_ports {
            Selection::List(ports) => ports.clone(),
            _ => vec![80, 8080, 65_000],
        };
        for port in ports {
            let to = SocketAddr::new(own, port);
            let query = Arriving { protocol: Protocol::Tcp, to, interface: None };
            let mut expected = explain::incoming(self.policy, self.offline, &query);
            expected.notes.clear();
            if expected.verdict == Outcome::Decided(Verdict::Inbound) {
                let sender = self.pick(NOBODY4.into(), NOBODY6.into());
                let (protocol, bind) = (Protocol::Tcp, Some(sender));
                return Ok(Attempt { kind, user: None, bind, protocol, to, expected });
            }
        }
        self.skipped(kind, "the policy captures nothing inbound, or nothing that could be guessed from it")
    }
}
