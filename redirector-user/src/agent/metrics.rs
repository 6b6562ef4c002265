//! What `/metrics` tells; the table is in docs/agent.md.

use crate::base::error::Result;
use crate::instance::directory::Directory;
use crate::instance::maps::{Instance, Phase};
use crate::instance::{listeners, record};
use crate::policy::Dns;
use crate::programs::object;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter as Count;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use redirector_common::abi::ABI_VERSION;
use redirector_common::counter::Counter;
use redirector_common::decide::Verdict;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Every metric.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: Family<Labels<2>, Count>,
    alive: Gauge,
    instances: Family<Labels<1>, Gauge>,
    listeners: Family<Labels<2>, Gauge>,
    deaf: Family<Labels<1>, Gauge>,
    /// How long each attach took.
    pub attach_seconds: Histogram,
    steps: Family<Labels<1>, Count>,
    errors: Family<Labels<1>, Count>,
    cni: Family<Labels<2>, Count>,
    wanted: Family<Labels<1>, Gauge>,
    /// Counters of each instance as they were when it was last looked at, by cookie of its namespace.
    seen: Mutex<Seen>,
}

type Seen = HashMap<u64, Vec<u64>>;

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("redirector");
        let this = Self {
            registry: Registry::default(),
            connections: Family::default(),
            alive: Gauge::default(),
            instances: Family::default(),
            listeners: Family::default(),
            deaf: Family::default(),
            attach_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 11)),
            steps: Family::default(),
            errors: Family::default(),
            cni: Family::default(),
            wanted: Family::default(),
            seen: Mutex::default(),
        };
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("programs", object::ID.to_owned()),
            ("abi", ABI_VERSION.to_string()),
        ]);
        registry.register("build", "What this agent is", build);
        registry.register(
            "connections",
            "Connections by verdict and by the rule that decided, over all instances",
            this.connections.clone(),
        );
        registry.register("connections_open", "Redirected connections that are alive", this.alive.clone());
        registry.register("instances", "Instances on this node by state", this.instances.clone());
        registry.register(
            "listeners",
            "Listeners of the proxies that are registered",
            this.listeners.clone(),
        );
        registry.register(
            "instances_without_listener",
            "Instances whose proxy listens on no port for this traffic, which is refused",
            this.deaf.clone(),
        );
        registry.register("attach_seconds", "Time an attach took", this.attach_seconds.clone());
        registry.register("steps", "What the agent has done to instances", this.steps.clone());
        registry.register("errors", "What went wrong, by reason", this.errors.clone());
        registry.register(
            "cni_requests",
            "Requests of the CNI plugin by operation and outcome",
            this.cni.clone(),
        );
        registry.register(
            "targets",
            "Targets that are wanted, by whether they are there",
            this.wanted.clone(),
        );
        // So that an alert on a rate sees the first one.
        for reason in super::REASONS {
            drop(this.errors.get_or_create(&[("reason", reason)]));
        }
        Self { registry, ..this }
    }

    /// Something went wrong, for one of [`super::REASONS`].
    pub fn error(&self, reason: &'static str) {
        self.errors.get_or_create(&[("reason", reason)]).inc();
    }

    /// Something was done to an instance.
    pub fn step(&self, step: &'static str) {
        self.steps.get_or_create(&[("step", step)]).inc();
    }

    /// The plugin has been answered.
    pub fn cni(&self, operation: &'static str, outcome: &'static str) {
        self.cni.get_or_create(&[("operation", operation), ("outcome", outcome)]).inc();
    }

    /// So many targets are wanted, of which so many are there.
    pub fn wanted(&self, all: usize, here: usize) {
        self.wanted.get_or_create(&[("state", "here")]).set(here as i64);
        self.wanted.get_or_create(&[("state", "awaited")]).set((all - here) as i64);
    }

    /// Everything, in the OpenMetrics text format.
    pub fn text(&self, root: &Directory) -> Result<String, std::fmt::Error> {
        self.look(root);
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }

    /// Counts what an instance has counted since it was last looked at; to be called before one is detached.
    pub fn take(&self, root: &Directory, name: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = Instance::open(root, name).and_then(|instance| self.count(&instance, &mut seen).map(drop));
    }

    fn look(&self, root: &Directory) {
        let mut totals = Totals::default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let names = root.names();
        let (mut counted, mut whole) = (HashSet::new(), names.is_ok());
        for name in names.unwrap_or_default() {
            let looked = Instance::open(root, &name).and_then(|instance| {
                counted.insert(self.count(&instance, &mut seen)?);
                totals.add(&instance)
            });
            whole &= looked.is_ok();
            if looked.is_err() && root.instance(&name).exists() {
                *totals.states.entry("damaged").or_default() += 1;
            }
        }
        // Of one that could not be read what was seen stays, not to be counted twice.
        if whole {
            seen.retain(|cookie, _| counted.contains(cookie));
        }
        drop(seen);
        for state in ["active", "draining", "inert", "damaged"] {
            let n = totals.states.get(state).copied().unwrap_or_default();
            self.instances.get_or_create(&[("state", state)]).set(n);
        }
        self.alive.set(totals.alive);
        for (traffic, _) in TRAFFIC {
            for family in ["ipv4", "ipv6"] {
                let n = totals.listeners.get(&(traffic, family)).copied().unwrap_or_default();
                self.listeners.get_or_create(&[("traffic", traffic), ("family", family)]).set(n);
            }
            let deaf = totals.deaf.get(traffic).copied().unwrap_or_default();
            self.deaf.get_or_create(&[("traffic", traffic)]).set(deaf);
        }
    }

    /// Gives the cookie of its namespace.
    fn count(&self, instance: &Instance, all: &mut Seen) -> Result<u64> {
        let cookie = instance.meta()?.netns_cookie;
        let now = instance.counters()?;
        let seen = all.entry(cookie).or_insert_with(|| vec![0; now.len()]);
        for ((counter, now), before) in Counter::ALL.into_iter().zip(now).zip(seen) {
            // Fewer than before: it was detached and attached again, and counts from zero.
            let more = if now >= *before { now - *before } else { now };
            *before = now;
            let labels = [("verdict", verdict(counter)), ("rule", counter.name())];
            self.connections.get_or_create(&labels).inc_by(more);
        }
        Ok(cookie)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const TRAFFIC: [(&str, Verdict); 3] =
    [("outbound", Verdict::Outbound), ("inbound", Verdict::Inbound), ("dns", Verdict::Dns)];

#[derive(Default)]
struct Totals {
    states: HashMap<&'static str, i64>,
    alive: i64,
    listeners: HashMap<(&'static str, &'static str), i64>,
    deaf: HashMap<&'static str, i64>,
}

impl Totals {
    fn add(&mut self, instance: &Instance) -> Result<()> {
        let phase = Phase::of(&instance.meta()?);
        *self.states.entry(phase.name()).or_default() += 1;
        self.alive += instance.live()?.cast_signed();
        let Phase::Active(slot) = phase else { return Ok(()) };
        let dns = record::read(&instance.dir, slot).is_ok_and(|record| record.policy.dns != Dns::Off);
        for (traffic, kind) in TRAFFIC {
            let [v4, v6] = listeners::count(instance, slot, kind)?;
            *self.listeners.entry((traffic, "ipv4")).or_default() += i64::from(v4);
            *self.listeners.entry((traffic, "ipv6")).or_default() += i64::from(v6);
            if v4 + v6 == 0 && (traffic != "dns" || dns) {
                *self.deaf.entry(traffic).or_default() += 1;
            }
        }
        Ok(())
    }
}

/// What a rule makes of a connection; `other` counts something that is no connection.
fn verdict(counter: Counter) -> &'static str {
    use Counter::*;
    match counter {
        OutIncludedPort | OutAll | OutIncludedCidr | InVirtualCaptured => "outbound",
        OutProxyCgroupLoopback
        | OutProxyUidLoopback
        | OutProxyGidLoopback
        | OutTproxyLoopback
        | InAll
        | InListed => "inbound",
        OutDns => "dns",
        RefusedByRoute | RefusedFull | RefusedUnstored | RefusedNoListener => "refused",
        SourceNotBound | ListenerNotRegistered => "other",
        OutExcludedInterface
        | OutExcludedPort
        | OutPassthroughSource
        | OutNotProxyCgroupLoopback
        | OutProxyCgroup
        | OutNotProxyUidLoopback
        | OutProxyUid
        | OutNotProxyGidLoopback
        | OutProxyGid
        | OutOwnerGroupExcluded
        | OutOwnerGroupNotIncluded
        | OutLoopback
        | OutExcludedCidr
        | OutDefault
        | InVirtualPassed
        | InExcludedInterface
        | InTunnel
        | InExcludedPort
        | InDefault => "pass",
    }
}
