//! One side of the arena: a pod that stays while the rules in it change.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;

use super::addresses::{NAME_SERVER6, dns_listeners, outside_queries, pod_queries};
use super::configuration::NAME_SERVERS;
use super::options::SERVED;
use super::probes::{From, OWN_PORT, Probe};
use crate::harness::probe::observation::Observation;
use crate::harness::process::Daemon;
use crate::harness::server::{Server, everywhere};
use crate::harness::world::{PodOptions, ROOT, SECOND6, TRANSPARENT_PROXY, World};

/// Ports at which the proxy listens, whatever the configuration.
pub(super) const PROXY_PORTS: [u16; 4] = [15001, 15006, 16001, 16006];

/// Bound ports, of which each probe gets one of its own.
const OWN_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// One side. The fields are dropped in this order: first who uses the world, then the world.
pub(super) struct Half {
    inside: Daemon,
    outside: Daemon,
    guest: Daemon,
    /// A process that sees the pod's resolv.conf.
    container: Daemon,
    _servers: [Server; 3],
    /// The world.
    pub world: World,
    _resolv_conf: tempfile::NamedTempFile,
}

impl Half {
    /// A pod with two interfaces, its proxy, its application, and the world outside.
    pub fn new() -> anyhow::Result<Self> {
        // The address that capturing IPv6 adds: here it is always there, because nobody would take it away between
        // two configurations.
        let extra = "address add ::6/128 dev lo nodad\n".to_owned();
        let world = World::with(&[PodOptions {
            second_interface: true,
            guest: true,
            extra,
            ..PodOptions::default()
        }])?;
        // Connections reach them anyhow, but only addresses can be bound, and queries are answered from there.
        world.client.ip(&format!(
            "address add {NAME_SERVER6}/128 dev lo nodad\n\
             address add {SECOND6}/128 dev lo nodad\n"
        ))?;
        let pod = world.pod();
        let mut proxy = everywhere(&PROXY_PORTS);
        proxy.iter_mut().for_each(|listen| listen.transparent = true);
        proxy.extend(dns_listeners());
        let mut app = everywhere(&SERVED);
        app.extend(pod_queries());
        let mut remote = everywhere(&SERVED);
        remote.extend(outside_queries());
        let servers = [
            pod.serve(TRANSPARENT_PROXY, "proxy", proxy)?,
            // Root may bind port 53.
            pod.serve(ROOT, "app", app)?,
            world.serve_outside(remote)?,
        ];
        let mut resolv_conf = tempfile::NamedTempFile::new()?;
        for server in NAME_SERVERS {
            writeln!(resolv_conf, "nameserver {server}")?;
        }
        let path = resolv_conf.path().display().to_string();
        let script = "mount --bind \"$0\" /etc/resolv.conf && echo ready && exec cat";
        let mut command = pod.place(ROOT)?.program(Path::new("unshare"));
        command.args(["--mount", "sh", "-c", script, &path]);
        let container = Daemon::start("container", &mut command)?;
        container.wait_for(0, |line| (line == "ready").then_some(()))?;
        let inside = Daemon::start("probe in the pod", &mut pod.place(ROOT)?.probe(&["connect"]))?;
        let outside = Daemon::start("probe outside", &mut world.outside().probe(&["connect"]))?;
        let guest = Daemon::start("probe in the guest", &mut pod.in_guest()?.probe(&["connect"]))?;
        Ok(Self { inside, outside, guest, container, _servers: servers, world, _resolv_conf: resolv_conf })
    }

    /// A process of the pod that stays.
    pub fn pid(&self) -> u32 {
        self.container.pid()
    }

    /// Runs probes; the observations come in their order.
    pub fn observe(&mut self, probes: &[Probe], own_port: &mut u16) -> anyhow::Result<Vec<Observation>> {
        let starts = [&self.inside, &self.outside, &self.guest].map(Daemon::line_count);
        for probe in probes {
            let mut scenario = probe.scenario.clone();
            if let Some(bind) = scenario.bind.as_mut().filter(|bind| bind.port() == OWN_PORT) {
                bind.set_port(*own_port);
                *own_port = if *own_port + 1 < OWN_PORTS.end { *own_port + 1 } else { OWN_PORTS.start };
            }
            let to = match probe.from {
                From::Pod => &mut self.inside,
                From::Network => &mut self.outside,
                From::Guest => &mut self.guest,
            };
            to.tell(&serde_json::to_string(&scenario)?)?;
        }
        let count = |from| probes.iter().filter(|probe| probe.from == from).count();
        let mut seen = [
            answers(&self.inside, starts[0], count(From::Pod))?.into_iter(),
            answers(&self.outside, starts[1], count(From::Network))?.into_iter(),
            answers(&self.guest, starts[2], count(From::Guest))?.into_iter(),
        ];
        let in_order = probes.iter().map(|probe| seen[probe.from as usize].next());
        in_order.collect::<Option<_>>().context("a probe lost an observation")
    }
}

/// The first bound port.
pub(super) const FIRST_OWN_PORT: u16 = OWN_PORTS.start;

/// Waits for that many observations.
fn answers(prober: &Daemon, start: usize, count: usize) -> anyhow::Result<Vec<Observation>> {
    let mut answers = Vec::with_capacity(count);
    while answers.len() < count {
        let line = prober.wait_for(start + answers.len(), |line| Some(line.to_owned()))?;
        answers.push(serde_json::from_str(&line).with_context(|| line.clone())?);
    }
    Ok(answers)
}
