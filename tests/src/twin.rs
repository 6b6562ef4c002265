//! A world with redirection of one kind and the usual servers: one side of a comparison.

use crate::iptables;
use crate::istio::Options;
use crate::matrix::{self, SERVED, SIDECAR_PORTS};
use crate::observation::Observation;
use crate::pod::{APP, PROXY, Pod, PodOptions, World};
use crate::probe::serve::Listen;
use crate::proxy::{Server, everywhere, proxy_listeners};
use crate::redirector::Instance;

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
            Self::Redirector | Self::RedirectorWith(_) => "redirector",
        }
    }

    /// Starts redirecting in the pod.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(&self, pod: &Pod) -> anyhow::Result<Option<Instance>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Iptables(options) => iptables::install(&pod.netns, options).map(|()| None),
            Self::Redirector => Instance::attach_default(pod).map(Some),
            Self::RedirectorWith(options) => Instance::attach_options(pod, options).map(Some),
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
    /// Start the proxy before redirection, as when redirecting a running pod.
    pub proxy_first: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { pod: PodOptions::default(), proxy: proxy_listeners(1), proxy_first: false }
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
            wanted.then(|| pod.serve(PROXY, "proxy", setup.proxy.clone())).transpose()
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

    /// Runs the whole matrix from within the pod.
    ///
    /// # Errors
    /// When the probe fails.
    pub fn observe_outbound(&self) -> anyhow::Result<Vec<Observation>> {
        let mut all = Vec::new();
        for part in matrix::outbound(self.pod()) {
            all.extend(self.pod().observe(part.owner, &part.scenarios)?);
        }
        Ok(all)
    }

    /// Runs the matrix of connections from outside.
    ///
    /// # Errors
    /// When the probe fails.
    pub fn observe_inbound(&self) -> anyhow::Result<Vec<Observation>> {
        self.world.observe_from_outside(&matrix::inbound(self.pod()))
    }
}
