//! The packets of captured traffic: none of it leaves the pod, or is rewritten, so these are not those of iptables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::evaluate::{Fate, Ruleset};
use super::packet::{ACK, Device, ESTABLISHED, Hook, NEW, Packet, SYN, Value};
use super::rule::Rule;
use crate::health::captures;
use crate::health::processes::Process;
use crate::netlink::sock_diag::Socket;
use crate::policy::{Dns, Mode, Policy, Selection};
use crate::routes::{Outcome, RouteSnapshot};

/// What a pod is.
pub(super) struct Pod<'a> {
    pub policy: &'a Policy,
    pub now: &'a RouteSnapshot,
    pub processes: &'a [Process],
    /// TCP sockets that listen.
    pub listeners: Vec<Socket>,
}

/// Who sends.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub uid: Option<u32>,
    user: Value,
    group: Value,
}

impl Sender {
    fn known(uid: u32, gid: u32) -> Self {
        let (user, group) = (Value::known(&uid.to_ne_bytes()), Value::known(&gid.to_ne_bytes()));
        Self { uid: Some(uid), user, group }
    }

    /// Some user that is none of the proxy's.
    fn other(policy: &Policy) -> Self {
        let never = |ids: &[u32]| Value {
            never: ids.iter().map(|id| id.to_ne_bytes().to_vec()).collect(),
            ..Value::unknown(4)
        };
        Self { uid: None, user: never(&policy.proxy_uids), group: never(&policy.proxy_gids) }
    }

    fn proxy(policy: &Policy) -> Self {
        let one = |ids: &[u32]| match ids {
            [id] if policy.proxy_cgroup.is_none() => Value::known(&id.to_ne_bytes()),
            _ => Value::unknown(4),
        };
        Self { uid: None, user: one(&policy.proxy_uids), group: one(&policy.proxy_gids) }
    }

    fn anybody() -> Self {
        Self { uid: None, user: Value::unknown(4), group: Value::unknown(4) }
    }
}

fn address(ip: IpAddr) -> Value {
    match ip {
        IpAddr::V4(v4) => Value::known(&v4.octets()),
        IpAddr::V6(v6) => Value::known(&v6.octets()),
    }
}

fn port(port: u16) -> Value {
    Value::known(&port.to_be_bytes())
}

/// A packet on a path.
type Passage<'a> = (Packet, &'a [Hook], &'a Device);

const OUT: [Hook; 2] = [Hook::Output, Hook::PostRouting];
const IN: [Hook; 3] = [Hook::Ingress, Hook::PreRouting, Hook::Input];
/// Over lo.
const BOTH: [Hook; 5] = [Hook::Output, Hook::PostRouting, Hook::Ingress, Hook::PreRouting, Hook::Input];

/// The packets of a connection, up to the first that does not pass; those after a translation are not known.
fn follow(rules: &Ruleset, passages: &[Passage<'_>]) -> Fate {
    let mut all = Fate::default();
    for (packet, hooks, device) in passages {
        let path: Vec<(Hook, &Device)> = hooks.iter().map(|hook| (*hook, *device)).collect();
        let fate = rules.follow(packet, &path);
        all.doubtful.extend(fate.doubtful);
        all.stopped = fate.stopped;
        if all.stopped.is_some() || fate.is_translated {
            break;
        }
    }
    all
}

/// A connection: who, from where, to where.
struct Ends {
    protocol: i32,
    from: (Value, Value),
    to: (Value, Value),
}

impl Ends {
    fn packet(&self, sender: &Sender, flags: u8, state: u32) -> Packet {
        Packet {
            v6: self.from.0.bits.len() == 16,
            protocol: self.protocol as u8,
            source: self.from.0.clone(),
            destination: self.to.0.clone(),
            ports: [self.from.1.clone(), self.to.1.clone()],
            flags,
            state: Some(state),
            user: sender.user.clone(),
            group: sender.group.clone(),
            mark: Some(0),
        }
    }

    fn first(&self, sender: &Sender) -> Packet {
        self.packet(sender, SYN, NEW)
    }

    fn later(&self, sender: &Sender) -> Packet {
        self.packet(sender, ACK, ESTABLISHED)
    }

    fn answer(&self, sender: &Sender) -> Packet {
        let (from, to) = (self.to.clone(), self.from.clone());
        let answer = Self { protocol: self.protocol, from, to };
        // Marks of a listener pass to what it accepts; nobody knows them.
        Packet { mark: None, ..answer.packet(sender, SYN | ACK, ESTABLISHED) }
    }
}

impl Pod<'_> {
    /// Who may send what is captured.
    pub(super) fn apps(&self) -> Vec<Sender> {
        let policy = self.policy;
        let in_proxy = |process: &&Process| {
            let own = process.cgroup.strip_prefix("/").unwrap_or(&process.cgroup);
            let is_root = own.as_os_str().is_empty();
            policy.proxy_cgroup.as_ref().is_some_and(|proxy| !is_root && proxy.ends_with(own))
        };
        let is_app = |process: &&Process| {
            !policy.proxy_uids.contains(&process.uid)
                && !policy.proxy_gids.contains(&process.gid)
                && !in_proxy(process)
                // The sandbox's, which sends nothing.
                && process.name != "pause"
        };
        let apps = self.processes.iter().filter(is_app);
        let mut apps: Vec<(u32, u32)> = apps.map(|process| (process.uid, process.gid)).collect();
        apps.sort_unstable();
        apps.dedup();
        apps.into_iter().map(|(uid, gid)| Sender::known(uid, gid)).collect()
    }

    pub(super) fn some_app(&self) -> Sender {
        Sender::other(self.policy)
    }

    /// The families that are captured.
    pub(super) fn families(&self) -> Vec<bool> {
        let is_used = |v6: &bool| (!*v6 || self.policy.ipv6) && !self.sources(*v6).is_empty();
        [false, true].into_iter().filter(is_used).collect()
    }

    /// What connections of a family come from: the source of the default route, or of all others.
    fn sources(&self, v6: bool) -> Vec<IpAddr> {
        let source = |only_default: bool| {
            let all = self.now.routes.iter().filter(move |route| {
                route.prefix.addr().is_ipv6() == v6 && (!only_default || route.prefix.prefix_len() == 0)
            });
            all.filter_map(|route| match route.outcome {
                Outcome::Via { source, .. } => source.filter(|ip| !is_local(*ip)),
                _ => None,
            })
        };
        let mut sources: Vec<IpAddr> = source(true).collect();
        if sources.is_empty() {
            sources = source(false).collect();
            sources.sort();
            sources.dedup();
        }
        sources
    }

    /// The interfaces that lead to the network.
    fn devices(&self, v6: bool) -> Vec<Device> {
        let leads = |index: u32| {
            self.now.routes.iter().any(|route| {
                let via = matches!(route.outcome, Outcome::Via { oif, .. } if oif == index);
                via && route.prefix.addr().is_ipv6() == v6
            })
        };
        let policy = self.policy;
        let is_left_out = |name: &String| {
            policy.exclude_interfaces.contains(name) || policy.virtual_interfaces.contains(name)
        };
        let all = self.now.interfaces.iter().filter(|it| leads(it.index) && !is_left_out(&it.name));
        all.map(|it| Device { name: it.name.clone(), index: it.index, addresses: Vec::new() }).collect()
    }

    fn lo(&self) -> Device {
        let addresses = self.now.lo().map(|lo| lo.addresses.as_slice()).unwrap_or_default();
        let addresses = addresses.iter().map(|net| address(net.addr()).bits).collect();
        Device { name: "lo".into(), index: 1, addresses }
    }

    /// Where the application listens for what is captured.
    fn app_ports(&self, v6: bool) -> Vec<u16> {
        let policy = self.policy;
        let is_captured = |port: u16| match &policy.inbound_ports {
            Selection::All => !policy.inbound_exclude_ports.contains(&port),
            Selection::List(ports) => ports.contains(&port),
            Selection::None => false,
        };
        let own = [policy.outbound_port, policy.inbound_port, policy.tunnel_port, policy.dns_port];
        let is_app = |socket: &&Socket| {
            let serves = if socket.v6 { v6 || socket.v6_only != Some(true) } else { !v6 };
            let port = socket.local.port();
            serves
                && is_captured(port)
                && !own.contains(&port)
                && !policy.proxy_uids.contains(&socket.uid)
                && !socket.local.ip().is_loopback()
        };
        let mut ports: Vec<u16> = self.listeners.iter().filter(is_app).map(|it| it.local.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// What is captured of a family, and is sent to the proxy.
    fn captured(&self, v6: bool) -> Vec<Ends> {
        let policy = self.policy;
        let mut all = Vec::new();
        let asks = match &policy.dns {
            Dns::Off => false,
            Dns::All => true,
            Dns::Servers(servers) => servers.iter().any(|server| server.is_ipv6() == v6),
        };
        let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        for source in self.sources(v6) {
            let from = || (address(source), Value::unknown(2));
            let to = |mask: [u8; 4]| {
                if v6 { address(source) } else { Value::partly(&[127, 128, 0, 0], &mask) }
            };
            // 127.128.0.0/9 unless no destination has an address of its own.
            let own = if policy.max_destinations == 0 { to([255, 0, 0, 0]) } else { to([255, 128, 0, 0]) };
            if captures::outbound(policy) {
                let to = (own, port(policy.outbound_port));
                all.push(Ends { protocol: libc::IPPROTO_TCP, from: from(), to });
            }
            if asks {
                let to = (to([255, 0, 0, 0]), port(policy.dns_port));
                all.push(Ends { protocol: libc::IPPROTO_TCP, from: from(), to });
                let to = (address(loopback), port(policy.dns_port));
                all.push(Ends { protocol: libc::IPPROTO_UDP, from: from(), to });
            }
        }
        all
    }

    /// What becomes of what a sender has captured, one for each kind.
    pub(super) fn sent(&self, rules: &Ruleset, sender: &Sender) -> Vec<Fate> {
        let lo = self.lo();
        let families = self.families();
        let all = families.into_iter().flat_map(|v6| self.captured(v6));
        all.map(|ends| follow(rules, &[(ends.first(sender), &BOTH, &lo), (ends.later(sender), &BOTH, &lo)]))
            .collect()
    }

    /// What becomes of the answers.
    pub(super) fn answers(&self, rules: &Ruleset) -> Vec<Fate> {
        let lo = self.lo();
        let proxy = Sender::proxy(self.policy);
        let anybody = Sender::anybody();
        let all = self.families().into_iter().flat_map(|v6| self.captured(v6));
        all.filter_map(|ends| {
            // If it is translated, or does not arrive, nothing answers.
            let sent = follow(rules, &[(ends.first(&anybody), &BOTH, &lo)]);
            let is_dns = ends.to.1 == port(self.policy.dns_port);
            let answer = ends.answer(if is_dns { &anybody } else { &proxy });
            let is_translated = sent.is_translated;
            (sent.stopped.is_none() && !is_translated).then(|| follow(rules, &[(answer, &BOTH, &lo)]))
        })
        .collect()
    }

    /// What stops all that arrives from the network for the application; and whether it would have arrived at the proxy's
    /// port, which is what rules saw under iptables.
    pub(super) fn arrives(&self, rules: &Ruleset, v6: bool) -> Option<(Rule, bool)> {
        let devices = self.devices(v6);
        let proxy = Sender::proxy(self.policy);
        let sources = self.sources(v6);
        let fate = |to_port: u16| {
            let all = devices.iter().flat_map(|device| sources.iter().map(move |to| (device, *to)));
            let mut stopped = None;
            for (device, to) in all {
                let from = (Value::unknown(if v6 { 16 } else { 4 }), Value::unknown(2));
                let ends = Ends { protocol: libc::IPPROTO_TCP, from, to: (address(to), port(to_port)) };
                let anybody = Sender::anybody();
                let unmarked = |packet| Packet { mark: None, ..packet };
                stopped = Some(
                    follow(
                        rules,
                        &[
                            (unmarked(ends.first(&anybody)), &IN, device),
                            (ends.answer(&proxy), &OUT, device),
                            (unmarked(ends.later(&anybody)), &IN, device),
                        ],
                    )
                    .stopped?,
                );
            }
            stopped
        };
        let mut stopped = None;
        for port in self.app_ports(v6) {
            stopped = Some(fate(port)?);
        }
        stopped.map(|rule| (rule, fate(self.policy.inbound_port).is_none()))
    }

    /// What stops all calls of the proxy to the application.
    pub(super) fn calls(&self, rules: &Ruleset, v6: bool) -> Option<Rule> {
        let lo = self.lo();
        let proxy = Sender::proxy(self.policy);
        let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let len = if v6 { 16 } else { 4 };
        let own: IpAddr = if v6 { Ipv6Addr::from(6).into() } else { Ipv4Addr::new(127, 0, 0, 6).into() };
        let pod = *self.sources(v6).first()?;
        let from = if self.policy.mode == Mode::Tproxy {
            [Value::unknown(len), Value::unknown(len)]
        } else {
            [address(own), address(loopback)]
        };
        let mut stopped = None;
        for to_port in self.app_ports(v6) {
            for (from, to) in from.iter().zip([pod, loopback]) {
                let from = (from.clone(), Value::unknown(2));
                let ends = Ends { protocol: libc::IPPROTO_TCP, from, to: (address(to), port(to_port)) };
                let packet = Packet { mark: None, ..ends.first(&proxy) };
                stopped = Some(follow(rules, &[(packet, &BOTH, &lo)]).stopped?);
            }
        }
        stopped
    }

    /// What becomes of what the proxy sends to the network, and of the same from an application.
    pub(super) fn leaves(&self, rules: &Ruleset, v6: bool) -> Vec<(Fate, Fate)> {
        let len = if v6 { 16 } else { 4 };
        let of = |device: &Device, source: IpAddr| {
            let from = (address(source), Value::unknown(2));
            let ends =
                Ends { protocol: libc::IPPROTO_TCP, from, to: (Value::unknown(len), Value::unknown(2)) };
            let fate = |sender: &Sender| {
                let packet = Packet { mark: None, ..ends.first(sender) };
                follow(rules, &[(packet, &OUT, device)])
            };
            (fate(&Sender::proxy(self.policy)), fate(&self.some_app()))
        };
        let sources = self.sources(v6);
        let devices = self.devices(v6);
        devices.iter().flat_map(|device| sources.iter().map(move |source| of(device, *source))).collect()
    }
}

/// Of a link, or of lo.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
