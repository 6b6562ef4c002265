//! A world with redirection of one kind and the usual servers: one side of a comparison.

use anyhow::{anyhow, ensure};

use crate::harness::oracle;
use crate::harness::oracle::options::Options;
use crate::harness::pair::matrix::{Caller, Part, SERVED, SIDECAR_PORTS};
use crate::harness::probe::observation::Observation;
use crate::harness::probe::scenario::{Owner, Scenario};
use crate::harness::probe::serve::Listen;
use crate::harness::product::Instance;
use crate::harness::server::{Server, everywhere, proxy_listeners};
use crate::harness::world::{APP, PROXY, Pod, PodOptions, World, observe};

/// Processes for the scenarios of one caller. They mostly wait.
const PROCESSES: usize = 6;

/// Who redirects.
#[derive(Clone, Debug)]
pub enum By {
    /// Nobody.
    Nobody,
    /// Real iptables: the oracle.
    Iptables(Options),
    /// `redirector attach` without any option.
    Redirector,
    /// `redirector attach` with the options.
    RedirectorWith(Options),
    /// `redirector attach` with these arguments.
    RedirectorGiven(Vec<String>),
}

impl By {
    /// The oracle of an ordinary sidecar.
    #[must_use]
    pub fn iptables() -> Self {
        Self::Iptables(Options::sidecar())
    }

    /// The name of this side in tables.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Iptables(_) => "iptables",
            Self::Redirector | Self::RedirectorWith(_) | Self::RedirectorGiven(_) => "redirector",
        }
    }

    /// Starts redirecting in the pod.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(&self, pod: &Pod) -> anyhow::Result<Option<Instance>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Iptables(options) => oracle::install(&pod.netns, options).map(|()| None),
            Self::Redirector => Instance::attach_default(pod).map(Some),
            Self::RedirectorWith(options) => Instance::attach_options(pod, options).map(Some),
            Self::RedirectorGiven(arguments) => Instance::attach(pod, arguments, &[]).map(Some),
        }
    }
}

/// One side. The fields are dropped in this order: first who uses the world, then the world.
pub struct Side {
    /// Who redirects.
    pub by: By,
    /// The proxy's stand-in, if any.
    pub proxy: Option<Server>,
    /// The pod's application.
    pub app: Server,
    /// The services outside.
    pub remote: Server,
    /// The attached instance, if the product redirects.
    pub instance: Option<Instance>,
    /// The world.
    pub world: World,
}

/// How a side is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The pod.
    pub pod: PodOptions,
    /// The proxy's listeners; none: there is no proxy.
    pub proxy: Vec<Listen>,
    /// The proxy's user.
    pub proxy_owner: Owner,
    /// Start the proxy before redirection, as when redirecting a running pod.
    pub proxy_first: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { pod: PodOptions::default(), proxy: proxy_listeners(1), proxy_owner: PROXY, proxy_first: false }
    }
}

impl Side {
    /// An ordinary pod.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn new(by: By) -> anyhow::Result<Self> {
        Self::with(by, &Setup::default())
    }

    /// A pod as described.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn with(by: By, setup: &Setup) -> anyhow::Result<Self> {
        let world = World::with(std::slice::from_ref(&setup.pod))?;
        let pod = world.pod();
        let start_proxy = || -> anyhow::Result<Option<Server>> {
            let wanted = !setup.proxy.is_empty();
            wanted.then(|| pod.serve(setup.proxy_owner, "proxy", setup.proxy.clone())).transpose()
        };
        let early = if setup.proxy_first { start_proxy()? } else { None };
        let instance = by.start(pod)?;
        let proxy = if setup.proxy_first { early } else { start_proxy()? };
        let mut ports = vec![SERVED];
        ports.extend(SIDECAR_PORTS);
        let app = pod.serve(APP, "app", everywhere(&ports))?;
        ports.push(15001);
        let remote = world.serve_outside(everywhere(&ports))?;
        Ok(Self { by, proxy, app, remote, instance, world })
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        self.world.pod()
    }

    /// Runs scenarios of one caller, one after the other.
    ///
    /// # Errors
    /// When the probe fails.
    pub fn observe(&self, caller: Caller, scenarios: &[Scenario]) -> anyhow::Result<Vec<Observation>> {
        match caller {
            Caller::Pod(owner) => self.pod().observe(owner, scenarios),
            Caller::Outside => self.world.observe_from_outside(scenarios),
            Caller::Guest => observe(&self.pod().in_guest()?, scenarios),
        }
    }

    /// Runs independent scenarios of all callers at once, each in several processes, because some only wait for an
    /// answer that never comes. The observations come in the order of the scenarios.
    ///
    /// # Errors
    /// When the probe fails.
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
