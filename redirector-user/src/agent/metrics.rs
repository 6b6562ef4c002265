//! `/metrics`; the table is in docs/agent.md.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use redirector_common::abi::{ABI_VERSION, ListenerRole};
use redirector_common::rule::Counter;

use super::sync::lock;
use crate::base::error::Result;
use crate::health::{Health, Level};
use crate::instance::directory::Directory;
use crate::instance::maps::Instance;
use crate::instance::phase::Phase;
use crate::instance::{listeners, record};
use crate::policy::Dns;
use crate::programs::object;

/// A node that is wrong as a whole must not make a series for each of its pods.
const MAX_NAMED_FAULTS: usize = 100;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The label `reason` of `redirector_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Api,
    Config,
    Pods,
    Target,
    Attach,
    Detach,
    Upgrade,
    Refresh,
    Follow,
    Cni,
    Peer,
    Request,
    Install,
    Socket,
}

impl Reason {
    const ALL: [Self; 14] = [
        Self::Api,
        Self::Config,
        Self::Pods,
        Self::Target,
        Self::Attach,
        Self::Detach,
        Self::Upgrade,
        Self::Refresh,
        Self::Follow,
        Self::Cni,
        Self::Peer,
        Self::Request,
        Self::Install,
        Self::Socket,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Config => "config",
            Self::Pods => "pods",
            Self::Target => "target",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Upgrade => "upgrade",
            Self::Refresh => "refresh",
            Self::Follow => "follow",
            Self::Cni => "cni",
            Self::Peer => "peer",
            Self::Request => "request",
            Self::Install => "install",
            Self::Socket => "socket",
        }
    }
}

/// Every metric.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    connections: Family<Labels<2>, Count>,
    open_connections: Gauge,
    instances: Family<Labels<1>, Gauge>,
    listeners: Family<Labels<2>, Gauge>,
    without_listener: Family<Labels<1>, Gauge>,
    pub attach_seconds: AttachSeconds,
    steps: Family<Labels<1>, Count>,
    errors: Family<Labels<1>, Count>,
    cni: Family<Labels<2>, Count>,
    targets: Family<Labels<1>, Gauge>,
    findings: Family<Labels<2>, Gauge>,
    pod_faults: Family<Vec<(&'static str, String)>, Gauge>,
    pod_faults_unnamed: Gauge,
    plugin_installed: Gauge,
    events: Family<Labels<2>, Count>,
    /// Held while the findings are replaced.
    replacing: Mutex<()>,
    last_counts: Mutex<LastCounts>,
}

/// Counters of each instance as they were when they were last read, by cookie of its namespace.
type LastCounts = HashMap<u64, Vec<u64>>;

#[derive(Clone, Debug)]
pub struct AttachSeconds(Histogram);

impl Default for AttachSeconds {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.005, 2.0, 11)))
    }
}

impl AttachSeconds {
    pub fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

impl Metrics {
    /// All at zero; one about the plugin only where the agent keeps it installed.
    pub fn new(keeps_plugin: bool) -> Self {
        let mut this = Self { registry: Registry::with_prefix("redirector"), ..Self::default() };
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("programs", object::ID.to_owned()),
            ("abi", ABI_VERSION.to_string()),
        ]);
        let r = &mut this.registry;
        r.register("build", "What this agent is", build);
        let help = "Connections by verdict and by the rule that decided, over all instances";
        r.register("connections", help, this.connections.clone());
        r.register(
            "connections_open",
            "Redirected connections that are alive, of those whose destination has no address of its own",
            this.open_connections.clone(),
        );
        r.register("instances", "Instances on this node by state", this.instances.clone());
        r.register("listeners", "Listeners of the proxies that are registered", this.listeners.clone());
        let help = "Instances whose proxy listens on no port for this traffic, which is refused";
        r.register("instances_without_listener", help, this.without_listener.clone());
        r.register("attach_seconds", "Time an attach took", this.attach_seconds.0.clone());
        r.register("steps", "What the agent has done to instances", this.steps.clone());
        r.register("errors", "What went wrong, by reason", this.errors.clone());
        r.register("cni_requests", "Requests of the CNI plugin by operation and outcome", this.cni.clone());
        r.register("targets", "Targets that are wanted, by whether they are there", this.targets.clone());
        let help = "What `redirector status` finds of the instances, by kind and level";
        r.register("findings", help, this.findings.clone());
        let help = "Faults of pods, by name: up to 100 of them";
        r.register("pod_faults", help, this.pod_faults.clone());
        let help = "Faults of pods that are more than are named";
        r.register("pod_faults_unnamed", help, this.pod_faults_unnamed.clone());
        let help = "Whether the CNI plugin is installed: executed, and in the network's list";
        if keeps_plugin {
            r.register("plugin_installed", help, this.plugin_installed.clone());
        }
        r.register("events", "Events about pods, by reason and what became of them", this.events.clone());
        // An alert on a rate misses the first error of a series that does not exist yet.
        for reason in Reason::ALL {
            drop(this.errors.get_or_create(&[("reason", reason.name())]));
        }
        this
    }

    pub fn error(&self, reason: Reason) {
        self.errors.get_or_create(&[("reason", reason.name())]).inc();
    }

    /// Something was done to an instance.
    pub fn step(&self, step: &'static str) {
        self.steps.get_or_create(&[("step", step)]).inc();
    }

    /// The plugin has been answered.
    pub fn cni(&self, operation: &'static str, outcome: &'static str) {
        self.cni.get_or_create(&[("operation", operation), ("outcome", outcome)]).inc();
    }

    /// So many targets are desired, of which so many are present.
    pub fn targets(&self, desired: usize, present: usize) {
        self.targets.get_or_create(&[("state", "here")]).set(present as i64);
        self.targets.get_or_create(&[("state", "awaited")]).set((desired - present) as i64);
    }

    pub fn plugin_installed(&self, is_installed: bool) {
        self.plugin_installed.set(is_installed.into());
    }

    /// An Event was written, or was one too many.
    pub fn event(&self, reason: &'static str, outcome: &'static str) {
        self.events.get_or_create(&[("reason", reason), ("outcome", outcome)]).inc();
    }

    /// Replaces what is known to be wrong. Pods are named only where something is, and not more than some.
    pub fn set_findings(&self, instances: &[Health]) {
        let _replacing = lock(&self.replacing);
        self.findings.clear();
        self.pod_faults.clear();
        let mut unnamed = 0;
        let mut named = HashSet::new();
        for health in instances {
            let (namespace, pod) = match &health.pod {
                Some(pod) => (pod.namespace.clone(), pod.name.clone()),
                None => (String::new(), health.name.clone()),
            };
            for finding in &health.findings {
                let labels = [("kind", finding.kind), ("level", finding.level.label())];
                self.findings.get_or_create(&labels).inc();
                if finding.level != Level::Fault || !named.insert((health.name.as_str(), finding.kind)) {
                    continue;
                }
                if named.len() > MAX_NAMED_FAULTS {
                    unnamed += 1;
                    continue;
                }
                let kind = finding.kind.to_owned();
                let labels = vec![("namespace", namespace.clone()), ("pod", pod.clone()), ("kind", kind)];
                self.pod_faults.get_or_create(&labels).set(1);
            }
        }
        self.pod_faults_unnamed.set(unnamed);
    }

    /// Everything, in the OpenMetrics text format.
    pub fn text(&self, root: &Directory) -> Result<String, std::fmt::Error> {
        self.update(root);
        let _replacing = lock(&self.replacing);
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }

    /// Adds what an instance has counted since it was last read; to be called before it is detached.
    pub fn count_last(&self, root: &Directory, name: &str) {
        let mut last = lock(&self.last_counts);
        let _ = Instance::open(root, name).and_then(|instance| self.count(&instance, &mut last).map(drop));
    }

    fn update(&self, root: &Directory) {
        let mut totals = Totals::default();
        let mut last = lock(&self.last_counts);
        let names = root.names();
        let (mut counted, mut all_read) = (HashSet::new(), names.is_ok());
        for name in names.unwrap_or_default() {
            let read = Instance::open(root, &name).and_then(|instance| {
                counted.insert(self.count(&instance, &mut last)?);
                totals.add(&instance)
            });
            all_read &= read.is_ok();
            if let Err(e) = read
                && root.instance(&name).exists()
            {
                // An error while reading is no verdict.
                let state = if e.is_no_verdict() { "unreadable" } else { "damaged" };
                *totals.states.entry(state).or_default() += 1;
            }
        }
        // An instance that could not be read keeps its last counts, or they would be added twice.
        if all_read {
            last.retain(|cookie, _| counted.contains(cookie));
        }
        drop(last);
        self.set_totals(&totals);
    }

    fn set_totals(&self, totals: &Totals) {
        for state in ["active", "draining", "inert", "damaged", "unreadable"] {
            let n = totals.states.get(state).copied().unwrap_or_default();
            self.instances.get_or_create(&[("state", state)]).set(n);
        }
        self.open_connections.set(totals.open_connections);
        for traffic in ListenerRole::ALL.map(ListenerRole::name) {
            for family in ["ipv4", "ipv6"] {
                let n = totals.listeners.get(&(traffic, family)).copied().unwrap_or_default();
                self.listeners.get_or_create(&[("traffic", traffic), ("family", family)]).set(n);
            }
            let without = totals.without_listener.get(traffic).copied().unwrap_or_default();
            self.without_listener.get_or_create(&[("traffic", traffic)]).set(without);
        }
    }

    /// Returns the cookie of the instance's namespace.
    fn count(&self, instance: &Instance, all: &mut LastCounts) -> Result<u64> {
        let cookie = instance.meta()?.netns_cookie;
        let now = instance.counters()?;
        let last = all.entry(cookie).or_insert_with(|| vec![0; now.len()]);
        for ((counter, now), before) in Counter::ALL.into_iter().zip(now).zip(last) {
            // Fewer than before: it was detached and attached again, and counts from zero.
            let more = if now >= *before { now - *before } else { now };
            *before = now;
            let labels = [("verdict", counter.outcome().name()), ("rule", counter.name())];
            self.connections.get_or_create(&labels).inc_by(more);
        }
        Ok(cookie)
    }
}

#[derive(Default)]
struct Totals {
    states: HashMap<&'static str, i64>,
    open_connections: i64,
    listeners: HashMap<(&'static str, &'static str), i64>,
    without_listener: HashMap<&'static str, i64>,
}

impl Totals {
    fn add(&mut self, instance: &Instance) -> Result<()> {
        let phase = Phase::of(&instance.meta()?);
        self.open_connections += instance.live()?.cast_signed();
        let Phase::Active(slot) = phase else {
            *self.states.entry(phase.name()).or_default() += 1;
            return Ok(());
        };
        let dns = record::read(&instance.dir, slot).is_ok_and(|record| record.policy.dns != Dns::Off);
        for role in ListenerRole::ALL {
            let [v4, v6] = listeners::count(instance, slot, role)?;
            let traffic = role.name();
            *self.listeners.entry((traffic, "ipv4")).or_default() += i64::from(v4);
            *self.listeners.entry((traffic, "ipv6")).or_default() += i64::from(v6);
            if v4 + v6 == 0 && (role != ListenerRole::Dns || dns) {
                *self.without_listener.entry(traffic).or_default() += 1;
            }
        }
        *self.states.entry(phase.name()).or_default() += 1;
        Ok(())
    }
}
