//! verify: real connections through a target, beside what the policy says of them.
//!
//! Where the proxy listens it gets them, and what happened is read at the client, in the kernel's table of sockets, in
//! the exposed map and in the counters: a listener of ours would take connections that are meant for the proxy. Where it
//! does not, a helper listens in its place, as Istio's validation does, and sees what the proxy would see.

pub mod helper;
pub mod original;
mod plan;
mod seen;
mod sockets;
mod udp;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use helper::{Helper, Room};
use plan::{Attempt, Skipped, User};
use redirector_common::abi::Slot;
use redirector_common::rule::Counter;
use schemars::JsonSchema;
pub use seen::{Expected, Probe, Seen, Status};
use serde::Serialize;

use crate::base::error::{Context, Error, Result};
use crate::compile::id_map;
use crate::health::{self, Finding, Health, Level, NodeProcesses, has_fault};
use crate::instance::directory::Directory;
use crate::instance::maps::Instance;
use crate::instance::phase::Phase;
use crate::instance::{connections, find, record};
use crate::kernel::privileges;
use crate::netlink::sock_diag;
use crate::pod::{Target, listeners};
use crate::policy::{Dns, Policy};
use crate::programs::hooks;
use crate::routes;
use crate::rules::Protocol;
use crate::sys::netns::NetNs;
use crate::sys::{bpf, test_run};

/// So long the answer to a question over UDP is waited for.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

/// How to verify.
#[derive(Debug)]
pub struct Options {
    /// The port that istio-validation looks for.
    pub probe_port: u16,
    /// How long each connection may take.
    pub patience: Duration,
    /// A network namespace from which the inbound probe really connects.
    pub from: Option<NetNs>,
    /// What has to be right.
    pub scope: Scope,
}

/// What verify judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it: the probes, and what `redirector status` finds.
    Everything,
    /// The same but for the proxy, which has not started yet.
    Programs,
    /// The probes alone, as Istio's validation does.
    Probes,
}

/// What verify found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Name of the instance.
    pub name: String,
    /// Whether nothing of the scope is wrong: no probe has failed, at least one was made, and no finding is a fault.
    pub ok: bool,
    /// Whether no probe has failed, and at least one was made.
    pub probes_ok: bool,
    /// What `redirector status` says; absent where the probes alone count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Each connection.
    pub probes: Vec<Probe>,
}

/// Tries an instance.
///
/// # Errors
///
/// When it cannot be tried; a probe that fails is in the report.
pub fn verify(root: &Directory, name: &str, options: &Options) -> Result<Report> {
    let instance = Instance::open(root, name)?;
    let meta = instance.meta()?;
    let Phase::Active(slot) = Phase::of(&meta) else {
        return Err(
            Error::failed(format!("the instance {name} is not active")).usage("see `redirector list`")
        );
    };
    // First: helpers of ours in the pod would be among what is found.
    let mut health = match options.scope {
        Scope::Probes => None,
        _ => Some(health::instance(root, name, &NodeProcesses::read()?)?),
    };
    let probes = match (probes(root, name, options, instance, slot), &mut health) {
        (Ok(probes), _) => probes,
        // What is wrong may be why none can be tried.
        (Err(e), Some(health)) if has_fault(&health.findings) => {
            health.findings.push(Finding::unknown("connections of verify's own", &e));
            Vec::new()
        }
        (Err(e), _) => return Err(e),
    };
    let probes_ok = probes.iter().all(|probe| probe.status != Status::Failed)
        && probes.iter().any(|probe| probe.status == Status::Ok);
    let programs_only = options.scope == Scope::Programs;
    let counts =
        |finding: &Finding| finding.level == Level::Fault && !(programs_only && finding.is_about_the_proxy());
    let ok = probes_ok && !health.as_ref().is_some_and(|health| health.findings.iter().any(counts));
    Ok(Report { name: name.to_owned(), ok, probes_ok, health, probes })
}

fn probes(
    root: &Directory,
    name: &str,
    options: &Options,
    instance: Instance,
    slot: Slot,
) -> Result<Vec<Probe>> {
    let meta = instance.meta()?;
    let record = record::read(&instance.dir, slot)?;
    let target = find::target_of(name, &record, &meta)?;
    let snapshot = routes::read(&target.netns)?;
    let room = Room::new(&target.cgroup.path)?;
    let proxys_room = record.policy.proxy_cgroup.as_deref().map(Room::new).transpose()?;
    let policy = id_map::as_the_kernel_counts(&record.policy, &target.netns)?;
    let ports = [policy.outbound_port, policy.inbound_port, policy.dns_port];
    let present = listeners::present(&target.netns, &ports)?;
    let servers = target.netns.run(|| sock_diag::list(sock_diag::Kind::UdpServers, None))?;
    let serves_dns = servers.list.iter().any(|socket| socket.local.port() == policy.dns_port);
    let mut run = Run {
        root,
        instance,
        target,
        options,
        present,
        serves_dns,
        proxy: None,
        users: HashMap::new(),
        room,
        proxys_room,
    };
    let missing = privileges::missing_to_verify();
    let proxy = plan::proxy(&policy).filter(|_| missing.is_empty());
    run.listen(&policy, proxy.unwrap_or(plan::ROOT))?;
    let mut probes = Vec::new();
    for attempt in plan::plan(&policy, &snapshot, options.probe_port, &missing) {
        probes.push(match attempt {
            Ok(attempt) => run.probe(&attempt).unwrap_or_else(|e| Probe::untried(&attempt, &e)),
            Err(Skipped { kind, v6, why }) => Probe::skipped(kind, v6, why),
        });
    }
    Ok(probes)
}

/// A run of verify. The helpers end before their room goes.
struct Run<'a> {
    root: &'a Directory,
    instance: Instance,
    target: Target,
    options: &'a Options,
    /// Port and family of the proxy's own listeners.
    present: Vec<(u16, bool)>,
    /// Somebody answers DNS over UDP.
    serves_dns: bool,
    /// Who listens in the proxy's place, where it does not.
    proxy: Option<Helper>,
    users: HashMap<User, Helper>,
    room: Room,
    /// Below the proxy's cgroup, if the policy has one.
    proxys_room: Option<Room>,
}

impl Run<'_> {
    /// Listens on the ports of the proxy on which nobody does.
    fn listen(&mut self, policy: &Policy, user: User) -> Result<()> {
        let captures_dns = policy.dns != Dns::Off;
        let ports = [policy.outbound_port, policy.inbound_port, policy.dns_port];
        let ports = &ports[..if captures_dns { 3 } else { 2 }];
        let has_ipv6 = policy.ipv6 && self.target.netns.run(|| Ok(sockets::has_ipv6()))?;
        let at = |v4: Ipv4Addr, v6: Ipv6Addr, port: u16| {
            let v6 = has_ipv6.then(|| SocketAddr::from((v6, port)));
            std::iter::once(SocketAddr::from((v4, port))).chain(v6)
        };
        let free = ports.iter().filter(|port| !self.served(**port));
        let tcp =
            free.flat_map(|port| at(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, *port)).collect::<Vec<_>>();
        // Where questions are sent: an answer comes from the address that it is sent by.
        let udp = at(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, policy.dns_port);
        let udp: Vec<SocketAddr> = udp.filter(|_| captures_dns && !self.serves_dns).collect();
        if !(tcp.is_empty() && udp.is_empty()) {
            let mut helper = self.helper(user)?;
            helper.listen(tcp)?;
            helper.serve_udp(udp)?;
            self.proxy = Some(helper);
        }
        Ok(())
    }

    fn helper(&self, user: User) -> Result<Helper> {
        let room = self.proxys_room.as_ref().filter(|_| user.proxy_cgroup).unwrap_or(&self.room);
        Helper::start(&self.target, room, user.uid, user.gid)
    }

    /// Whether somebody else listens on a port of the proxy.
    fn served(&self, port: u16) -> bool {
        self.present.iter().any(|(other, _)| *other == port)
    }

    fn probe(&mut self, attempt: &Attempt) -> Result<Probe> {
        let mut probe = Probe::new(attempt);
        let port = attempt.expected.port;
        let is_udp = attempt.protocol == Protocol::Udp;
        let served = |port| if is_udp { self.serves_dns } else { self.served(port) };
        probe.listener = port.map(|port| if served(port) { "proxy" } else { "own" });
        let v6_missing = |port| self.served(port) && !self.present.contains(&(port, true));
        if !is_udp && attempt.to.is_ipv6() && port.is_some_and(v6_missing) {
            probe.skip("the proxy does not listen on IPv6 there, so such a connection is refused".into());
            return Ok(probe);
        }
        let before = self.instance.counters()?;
        match (attempt.user, &self.options.from) {
            (Some(user), _) if is_udp => self.question(attempt, user, &mut probe)?,
            (Some(user), _) => self.connect(attempt, user, &mut probe)?,
            (None, Some(_)) => self.arrive(attempt, &mut probe)?,
            (None, None) => self.ask_program(attempt, &mut probe)?,
        }
        let after = self.instance.counters()?;
        let rule = Counter::ALL.iter().position(|counter| Some(counter.name()) == attempt.expected.rule);
        if rule.is_some_and(|index| after[index] <= before[index]) {
            probe.fail_undecided();
        }
        Ok(probe)
    }

    fn client(&mut self, user: User) -> Result<&mut Helper> {
        if !self.users.contains_key(&user) {
            let helper = self.helper(user)?;
            self.users.insert(user, helper);
        }
        self.users.get_mut(&user).ok_or_else(|| Error::failed("there is no helper"))
    }

    /// A question over UDP from inside the pod.
    fn question(&mut self, attempt: &Attempt, user: User, probe: &mut Probe) -> Result<()> {
        let patience = self.options.patience;
        probe.how = "datagram";
        let sent = self.client(user)?.question(attempt.to)?;
        let mut came = None;
        if let (Some("own"), Some(proxy), Some(port)) = (probe.listener, &mut self.proxy, sent.port) {
            came = Some(proxy.answer(port, patience)?);
        }
        // A server of the proxy may ask others, which may not be there: whether it answers says nothing of the programs.
        let wait = if came == Some(false) { Duration::ZERO } else { patience.min(LONGEST_ANSWER) };
        let answered_by = self.client(user)?.answered_by(wait)?;
        probe.judge_question(attempt, sent.error, came, answered_by);
        Ok(())
    }

    /// From inside the pod.
    fn connect(&mut self, attempt: &Attempt, user: User, probe: &mut Probe) -> Result<()> {
        let patience = self.options.patience;
        let client = self.client(user)?;
        probe.how = "connection";
        let connected = client.connect(attempt.bind, attempt.to, patience)?;
        probe.seen.of_client(&connected);
        let flow = connected.local.and_then(|local| {
            let flows = connections::original_dst(self.root, &self.instance.name).ok()?;
            // Connections to several destinations share a port: it is told by both of its ends.
            let at = connected.arrived_at;
            flows.into_iter().find(|flow| flow.client == local && at.is_none_or(|at| flow.proxy == at))
        });
        probe.seen.of_flow(flow.as_ref());
        self.accepted(probe, connected.local)?;
        probe.judge_connection(attempt);
        Ok(())
    }

    /// What a listener of ours saw.
    fn accepted(&mut self, probe: &mut Probe, client: Option<SocketAddr>) -> Result<()> {
        if probe.listener == Some("own")
            && probe.seen.error.is_none()
            && let (Some(proxy), Some(client)) = (&mut self.proxy, client)
        {
            let accepted = proxy.accepted(client, self.options.patience)?;
            probe.seen.of_listener(accepted.as_ref());
        }
        Ok(())
    }

    /// From the network, out of another namespace.
    fn arrive(&mut self, attempt: &Attempt, probe: &mut Probe) -> Result<()> {
        let Some(from) = &self.options.from else { return Ok(()) };
        probe.how = "connection";
        probe.bind = None;
        let connect = || sockets::connect(None, attempt.to, self.options.patience);
        let (_open, connected) = from.run(|| connect().context(|| "make a socket in --from".into()))?;
        probe.seen.of_client(&connected);
        self.accepted(probe, connected.local)?;
        probe.judge_arrival(attempt);
        Ok(())
    }

    /// From the network, without one: the attached program says what it would do with the SYN.
    fn ask_program(&mut self, attempt: &Attempt, probe: &mut Probe) -> Result<()> {
        probe.how = "program";
        let hook = hooks::ALL.iter().find(|hook| hook.netns);
        let path = hook.map(|hook| self.instance.dir.join(hook.link_pin())).unwrap_or_default();
        let attached = bpf::Link::open(&path).and_then(|link| link.program());
        let Ok(program) = attached else {
            probe.fail(format!("no program is attached to the namespace ({})", path.display()));
            return Ok(());
        };
        let from = SocketAddr::new(attempt.bind.unwrap_or(attempt.to.ip()), 40_000);
        match self.target.netns.run(|| Ok(test_run::sk_lookup(program.as_fd(), from, attempt.to)))? {
            Ok(lookup) => probe.judge_lookup(lookup),
            // Before 5.14.
            Err(e) => probe
                .skip(format!("this kernel does not run sk_lookup programs on request ({e}); use --from")),
        }
        Ok(())
    }
}
