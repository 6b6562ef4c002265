//! The pods that are measured, each with a server and a client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;

use super::worker::{ExpectingListener, Job, JobDone, READY, Role, WORKER};
use redirector_tests::harness::pair::fixture::Redirection;
use redirector_tests::harness::process::{Daemon, Place};
use redirector_tests::harness::product::Instance;
use redirector_tests::harness::server::{INBOUND, OUTBOUND, any4, any6};
use redirector_tests::harness::world::{APP, PROXY, Pod, PodOptions, VIP4, VIP6, World, at};

/// Port of the service the app wants.
const SERVICE: u16 = 80;
/// Port of the app itself.
const APP_PORT: u16 = 8080;
/// More ports than connections in the ten seconds for which conntrack remembers one that was reset: under iptables a
/// port would otherwise come around to its own ghost.
const PORTS: &[(&str, &str)] = &[("ipv4/ip_local_port_range", "1024 65535")];

pub struct Client {
    daemon: Daemon,
}

impl Client {
    pub fn start(place: &Place, cpu: usize) -> anyhow::Result<Self> {
        Ok(Self { daemon: start("client", place, &Role { cpu, listeners: Vec::new() })? })
    }

    /// Has it do a job.
    pub fn run(&mut self, job: Job) -> anyhow::Result<JobDone> {
        let skip = self.daemon.line_count();
        self.daemon.tell(&serde_json::to_string(&job)?)?;
        self.daemon.wait_for(skip, |line| serde_json::from_str(line).ok())
    }
}

/// One way of getting to the server. The fields are dropped in this order: first who uses the redirection.
pub struct MeasuredPod {
    pub client: Client,
    _server: Daemon,
    /// The attached instance, if the product redirects.
    pub instance: Option<Instance>,
    /// The destination it connects to.
    pub to: SocketAddr,
}

impl MeasuredPod {
    /// Starts redirecting in a pod, a server there in the proxy's place, and a client.
    pub fn start(by: &Redirection, pod: &Pod, cpu: usize) -> anyhow::Result<Self> {
        pod.netns.sysctl(PORTS)?;
        let instance = by.start(pod)?;
        let (direct, service) = (matches!(by, Redirection::None), at(VIP4, SERVICE));
        let expect = |original| if direct { None } else { Some(original) };
        let listeners = vec![
            ExpectingListener { at: any4(OUTBOUND), original: expect(service) },
            ExpectingListener { at: any6(OUTBOUND), original: expect(at(VIP6, SERVICE)) },
            ExpectingListener { at: any4(INBOUND), original: expect(at(pod.v4(), APP_PORT)) },
        ];
        let server = start("server", &pod.place(PROXY)?, &Role { cpu, listeners })?;
        server.wait_for(0, |line| (line == READY).then_some(()))?;
        let client = Client::start(&pod.place(APP)?, cpu)?;
        let to = if direct { at(Ipv4Addr::LOCALHOST, OUTBOUND) } else { service };
        Ok(Self { client, _server: server, instance, to })
    }
}

/// All pods and the world they live in, which is dropped last.
pub struct MeasuredPods {
    /// Direct, iptables, redirector: the order of [`NAMES`].
    pub all: Vec<MeasuredPod>,
    world: World,
}

/// Names of the pods.
pub const NAMES: [&str; 3] = ["direct", "iptables", "redirector"];

impl MeasuredPods {
    /// Sets up the world and starts everybody.
    pub fn start(cpu: usize) -> anyhow::Result<Self> {
        let world = World::with(&vec![PodOptions::default(); NAMES.len()])?;
        let ways = [Redirection::None, Redirection::iptables(), Redirection::redirector()];
        let mut all = Vec::new();
        for ((name, by), pod) in NAMES.into_iter().zip(&ways).zip(&world.pods) {
            all.push(MeasuredPod::start(by, pod, cpu).with_context(|| format!("the pod `{name}`"))?);
        }
        Ok(Self { all, world })
    }

    /// The product's pod, and what the hooks see of the world: a service of each family, and the app from outside.
    pub fn redirector(&mut self) -> anyhow::Result<(&mut MeasuredPod, Place, [SocketAddr; 3])> {
        let place = self.world.outside();
        let (measured, pod) = self.all.last_mut().zip(self.world.pods.last()).context("no pod")?;
        Ok((measured, place, [at(VIP4, SERVICE), at(VIP6, SERVICE), at(pod.v4(), APP_PORT)]))
    }
}

fn start(name: &str, place: &Place, role: &Role) -> anyhow::Result<Daemon> {
    // Not by our path, whose directories the app's user need not be able to enter.
    let mut command = place.program(Path::new("/proc/self/exe"));
    Daemon::start(name, command.args([WORKER, &serde_json::to_string(role)?]))
}
