//! The pods that are measured, each with a server and a client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;

use super::worker::{Done, Job, Listener, READY, Role, WORKER};
use redirector_tests::harness::pair::fixture::By;
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

/// A client, somewhere.
pub struct Client {
    daemon: Daemon,
}

impl Client {
    /// Starts a client.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: &Place, cpu: usize) -> anyhow::Result<Self> {
        Ok(Self { daemon: start("client", place, &Role { cpu, listeners: Vec::new() })? })
    }

    /// Has it do a job.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn run(&mut self, job: Job) -> anyhow::Result<Done> {
        let skip = self.daemon.line_count();
        self.daemon.tell(&serde_json::to_string(&job)?)?;
        self.daemon.wait_for(skip, |line| serde_json::from_str(line).ok())
    }
}

/// One way of getting to the server. The fields are dropped in this order: first who uses the redirection.
pub struct MeasuredPod {
    /// The app's stand-in.
    pub client: Client,
    _server: Daemon,
    /// The attached instance, if the product redirects.
    pub instance: Option<Instance>,
    /// The destination it connects to.
    pub to: SocketAddr,
}

impl MeasuredPod {
    /// Starts redirecting in a pod, a server there in the proxy's place, and a client.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn start(by: &By, pod: &Pod, cpu: usize) -> anyhow::Result<Self> {
        pod.netns.sysctl(PORTS)?;
        let instance = by.start(pod)?;
        let (direct, service) = (matches!(by, By::Nobody), at(VIP4, SERVICE));
        let expect = |original| if direct { None } else { Some(original) };
        let listeners = vec![
            Listener { at: any4(OUTBOUND), original: expect(service) },
            Listener { at: any6(OUTBOUND), original: expect(at(VIP6, SERVICE)) },
            Listener { at: any4(INBOUND), original: expect(at(pod.v4(), APP_PORT)) },
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
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn start(cpu: usize) -> anyhow::Result<Self> {
        let world = World::with(&vec![PodOptions::default(); NAMES.len()])?;
        let ways = [By::Nobody, By::iptables(), By::Redirector];
        let mut all = Vec::new();
        for ((name, by), pod) in NAMES.into_iter().zip(&ways).zip(&world.pods) {
            all.push(MeasuredPod::start(by, pod, cpu).with_context(|| format!("the pod `{name}`"))?);
        }
        Ok(Self { all, world })
    }

    /// The product's pod, and what the hooks see of the world: a service of each family, and the app from outside.
    ///
    /// # Errors
    /// When there is no such pod.
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
