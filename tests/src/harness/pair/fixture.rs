//! A world with redirection of one kind and the usual servers: a reference or a subject.

use anyhow::{Context, anyhow, ensure};

use super::matrix::{Caller, Part, SERVED, SIDECAR_PORTS};
use crate::harness::oracle;
use crate::harness::oracle::options::Options;
use crate::harness::probe::observation::Observation;
use crate::harness::probe::scenario::{Owner, Scenario};
use crate::harness::probe::serve::Listen;
use crate::harness::product::Instance;
use crate::harness::server::{Server, everywhere, proxy_listeners};
use crate::harness::world::{APP, PROXY, Pod, PodOptions, World, observe};
use crate::require_root;

/// Processes for the scenarios of one caller. They mostly wait.
const PROCESSES: usize = 6;

/// The way in which a pod's connections are redirected.
#[derive(Clone, Debug)]
pub enum Redirection {
    None,
    /// Real iptables with the rules of `istio-iptables`.
    Iptables(Options),
    /// Real nftables with Istio's native rules.
    Nft(Options),
    /// `redirector attach`.
    Redirector {
        flags: Vec<String>,
        environment: Vec<(&'static str, String)>,
    },
}

impl Redirection {
    /// The rules of an ordinary sidecar.
    pub fn iptables() -> Self {
        Self::Iptables(Options::sidecar())
    }

    /// `redirector attach` with the product's own defaults.
    pub fn redirector() -> Self {
        Self::flags(Vec::new())
    }

    /// `redirector attach` with these flags.
    pub fn flags(flags: Vec<String>) -> Self {
        Self::Redirector { flags, environment: Vec::new() }
    }

    /// `redirector attach` with every option of `istio-iptables` given.
    pub fn with(options: &Options) -> Self {
        Self::Redirector { flags: options.flags(), environment: options.environment() }
    }

    /// Its name in tables.
    pub fn label(&self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Iptables(_) => "iptables",
            Self::Nft(_) => "nft",
            Self::Redirector { .. } => "redirector",
        }
    }

    /// Starts redirecting in the pod.
    pub fn start(&self, pod: &Pod) -> anyhow::Result<Option<Instance>> {
        match self {
            Self::None => Ok(None),
            Self::Iptables(options) => oracle::install(&pod.netns, options).map(|()| None),
            Self::Nft(options) => oracle::nft::install(&pod.netns, options).map(|()| None),
            Self::Redirector { flags, environment } => Instance::attach(pod, flags, environment).map(Some),
        }
    }
}

/// A pod in a world, redirected, with servers. Fields are dropped in this order: first what uses the world, then the
/// world.
pub struct Fixture {
    pub redirection: Redirection,
    /// The proxy's stand-in, if any.
    pub proxy: Option<Server>,
    pub app: Server,
    pub remote: Server,
    /// The attached instance, if the product redirects.
    pub instance: Option<Instance>,
    pub world: World,
}

/// How a fixture is set up.
pub struct Setup {
    pub pod: PodOptions,
    /// The proxy's listeners; none: there is no proxy.
    pub proxy: Vec<Listen>,
    pub proxy_owner: Owner,
    /// Start the proxy before redirection, as when redirecting a running pod.
    pub proxy_first: bool,
    pub app: Vec<Listen>,
    pub app_owner: Owner,
    /// The listeners of the services outside.
    pub remote: Vec<Listen>,
    /// More `ip` commands outside.
    pub outside: String,
}

impl Default for Setup {
    fn default() -> Self {
        let ports: Vec<u16> = [SERVED].into_iter().chain(SIDECAR_PORTS).collect();
        Self {
            pod: PodOptions::default(),
            proxy: proxy_listeners(1),
            proxy_owner: PROXY,
            proxy_first: false,
            app: everywhere(&ports),
            app_owner: APP,
            remote: everywhere(&[&ports[..], &[15001]].concat()),
            outside: String::new(),
        }
    }
}

impl Fixture {
    pub fn new(redirection: Redirection) -> anyhow::Result<Self> {
        Self::with(redirection, &Setup::default())
    }

    /// A pod as described.
    pub fn with(redirection: Redirection, setup: &Setup) -> anyhow::Result<Self> {
        Self::in_world(redirection, setup, World::with(std::slice::from_ref(&setup.pod))?)
    }

    /// In the first pod of a world.
    pub fn in_world(redirection: Redirection, setup: &Setup, world: World) -> anyhow::Result<Self> {
        world.client.ip(&setup.outside)?;
        let pod = world.pod();
        let start_proxy = || -> anyhow::Result<Option<Server>> {
            let wanted = !setup.proxy.is_empty();
            wanted.then(|| pod.serve(setup.proxy_owner, "proxy", setup.proxy.clone())).transpose()
        };
        let early = if setup.proxy_first { start_proxy()? } else { None };
        let instance = redirection.start(pod)?;
        let proxy = if setup.proxy_first { early } else { start_proxy()? };
        let app = pod.serve(setup.app_owner, "app", setup.app.clone())?;
        let remote = world.serve_outside(setup.remote.clone())?;
        Ok(Self { redirection, proxy, app, remote, instance, world })
    }

    pub fn pod(&self) -> &Pod {
        self.world.pod()
    }

    /// Runs scenarios of one caller, one after the other.
    pub fn observe(&self, caller: Caller, scenarios: &[Scenario]) -> anyhow::Result<Vec<Observation>> {
        match caller {
            Caller::Pod(owner) => self.pod().observe(owner, scenarios),
            Caller::Container(name, owner) => observe(&self.pod().container(name, owner)?, scenarios),
            Caller::Outside => self.world.observe_from_outside(scenarios),
            Caller::Guest => observe(&self.pod().in_guest()?, scenarios),
        }
    }

    /// Runs independent scenarios of all callers at once, each in several processes, because some only wait for an
    /// answer that never comes. The observations come in the order of the scenarios.
    pub fn observe_all(&self, parts: &[Part]) -> anyhow::Result<Vec<Observation>> {
        std::thread::scope(|scope| {
            let mut running = Vec::new();
            for part in parts {
                for hand in deal(&part.scenarios) {
                    running.push(scope.spawn(move || self.observe(part.caller, &hand)));
                }
            }
            let mut results = Vec::new();
            for thread in running {
                results.push(thread.join().map_err(|_| anyhow!("a thread panicked"))??.into_iter());
            }
            let mut all = Vec::new();
            for (part, hands) in parts.iter().zip(results.chunks_mut(PROCESSES)) {
                all.extend((0..part.scenarios.len()).filter_map(|index| hands[index % PROCESSES].next()));
            }
            let expected: usize = parts.iter().map(|part| part.scenarios.len()).sum();
            ensure!(all.len() == expected, "a probe lost an observation");
            Ok(all)
        })
    }
}

/// Deals scenarios out like cards, because those that wait stand together.
fn deal(scenarios: &[Scenario]) -> Vec<Vec<Scenario>> {
    let mut hands = vec![Vec::new(); PROCESSES];
    for (index, scenario) in scenarios.iter().enumerate() {
        hands[index % PROCESSES].push(scenario.clone());
    }
    hands
}

/// Runs the property with each way of redirecting. The oracle first: it must not be the property that is wrong.
pub fn under_each(
    setup: &Setup,
    property: impl Fn(&mut Fixture) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    require_root!();
    for redirection in [Redirection::iptables(), Redirection::redirector()] {
        let label = redirection.label();
        let mut fixture = Fixture::with(redirection, setup)?;
        property(&mut fixture).with_context(|| format!("redirected by {label}"))?;
    }
    Ok(())
}
