//! The pods that are measured, each with a server and a client.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::oracle::{self, options::Options};
use redirector_tests::harness::pair::fixture::Redirection;
use redirector_tests::harness::process::{Daemon, Place};
use redirector_tests::harness::product::Instance;
use redirector_tests::harness::server::{INBOUND, OUTBOUND, any4, any6};
use redirector_tests::harness::world::{APP, PROXY, Pod, PodOptions, VIP4, VIP6, World, at};
use serde::Serialize;

use super::floor::EmptyHooks;
use super::worker::{ExpectingListener, Job, JobDone, READY, Role, WORKER};

/// Port of the service the app wants.
const SERVICE: u16 = 80;
/// Port of the app itself.
const APP_PORT: u16 = 8080;
/// More ports than connections in the ten seconds for which conntrack remembers one that was reset: under iptables a
/// port would otherwise come around to its own ghost.
const PORTS: &[(&str, &str)] = &[("ipv4/ip_local_port_range", "1024 65535")];

/// A way of getting to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Way {
    /// The app connects to the proxy's own port.
    Direct,
    /// The same with a program at each hook that only returns.
    Floor,
    IptablesNft,
    IptablesLegacy,
    Redirector,
}

/// The order of all results.
pub const WAYS: [Way; 5] = [Way::Direct, Way::Floor, Way::IptablesNft, Way::IptablesLegacy, Way::Redirector];

impl Way {
    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Floor => "empty hooks",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Redirector => "redirector",
        }
    }

    fn start(self, pod: &Pod) -> anyhow::Result<Attached> {
        let options = Options::sidecar();
        let load = |backend: &str| oracle::load_by(backend, &pod.netns, &oracle::rule_texts(&options));
        Ok(match self {
            Self::Direct => Attached::Nothing,
            Self::Floor => Attached::Empty { _hooks: EmptyHooks::attach(pod)? },
            Self::IptablesNft => load("nft").map(|()| Attached::Nothing)?,
            Self::IptablesLegacy => load("legacy").map(|()| Attached::Nothing)?,
            Self::Redirector => {
                Redirection::redirector().start(pod)?.map_or(Attached::Nothing, Attached::Instance)
            }
        })
    }
}

/// What ends with a pod.
pub enum Attached {
    Nothing,
    Empty { _hooks: EmptyHooks },
    Instance(Instance),
}

/// Where a connection begins and what it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    V4,
    V6,
    /// From outside the pod to the app.
    Inbound,
}

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
    pub attached: Attached,
    /// What a client connects to, in the order of [`Destination`].
    to: [SocketAddr; 3],
}

impl MeasuredPod {
    /// Starts a server in the proxy's place and a client in a pod; with a redirection both see through it.
    pub fn start(attached: Attached, redirects: bool, pod: &Pod, cpu: usize) -> anyhow::Result<Self> {
        pod.netns.sysctl(PORTS)?;
        let wanted = [at(VIP4, SERVICE), at(VIP6, SERVICE), at(pod.v4(), APP_PORT)];
        let proxy =
            [at(Ipv4Addr::LOCALHOST, OUTBOUND), at(Ipv6Addr::LOCALHOST, OUTBOUND), at(pod.v4(), INBOUND)];
        let listeners = [any4(OUTBOUND), any6(OUTBOUND), any4(INBOUND)].into_iter().zip(wanted).map(
            |(listener, original)| ExpectingListener {
                at: listener,
                original: redirects.then_some(original),
            },
        );
        let server = start("server", &pod.place(PROXY)?, &Role { cpu, listeners: listeners.collect() })?;
        server.wait_for(0, |line| (line == READY).then_some(()))?;
        let client = Client::start(&pod.place(APP)?, cpu)?;
        Ok(Self { client, _server: server, attached, to: if redirects { wanted } else { proxy } })
    }

    /// The address that a client connects to.
    pub fn to(&self, destination: Destination) -> SocketAddr {
        self.to[destination as usize]
    }

    /// What is attached, if it is the product.
    pub fn instance(&self) -> anyhow::Result<&Instance> {
        match &self.attached {
            Attached::Instance(instance) => Ok(instance),
            _ => anyhow::bail!("the product is not attached"),
        }
    }
}

/// All pods and the world they live in, which is dropped last.
pub struct MeasuredPods {
    /// In the order of [`WAYS`].
    pub all: Vec<MeasuredPod>,
    /// The client outside.
    pub outside: Client,
    _world: World,
}

impl MeasuredPods {
    /// Sets up the world and starts everybody.
    pub fn start(cpu: usize) -> anyhow::Result<Self> {
        let world = World::with(&vec![PodOptions::default(); WAYS.len()])?;
        let mut all = Vec::new();
        for (way, pod) in WAYS.into_iter().zip(&world.pods) {
            let start = || {
                let redirects = !matches!(way, Way::Direct | Way::Floor);
                MeasuredPod::start(way.start(pod)?, redirects, pod, cpu)
            };
            all.push(start().with_context(|| format!("the pod `{}`", way.label()))?);
        }
        Ok(Self { all, outside: Client::start(&world.outside(), cpu)?, _world: world })
    }

    /// Has the client for a destination do a job in the pod of one way.
    pub fn run(
        &mut self,
        way: usize,
        destination: Destination,
        job: impl FnOnce(SocketAddr) -> Job,
    ) -> anyhow::Result<JobDone> {
        let pod = &mut self.all[way];
        let job = job(pod.to(destination));
        let client = if destination == Destination::Inbound { &mut self.outside } else { &mut pod.client };
        client.run(job).with_context(|| format!("{destination:?} by {}", WAYS[way].label()))
    }
}

fn start(name: &str, place: &Place, role: &Role) -> anyhow::Result<Daemon> {
    // Not by our path, whose directories the app's user need not be able to enter.
    let mut command = place.program(Path::new("/proc/self/exe"));
    Daemon::start(name, command.args([WORKER, &serde_json::to_string(role)?]))
}
