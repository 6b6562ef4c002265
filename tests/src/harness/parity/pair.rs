//! Two pods with the same addresses that stay while one configuration after the other is put in force in both.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use tempfile::NamedTempFile;

use super::addresses::{NAME_SERVER6, dns_listeners, outside_queries, pod_queries};
use super::configuration::{Configuration, NAME_SERVERS};
use super::options::SERVED;
use super::probes::{From, OWN_PORT, Probe};
use crate::harness::names;
use crate::harness::oracle;
use crate::harness::oracle::mangle;
use crate::harness::oracle::options::Options;
use crate::harness::pair::Pair;
use crate::harness::pair::compare::Difference;
use crate::harness::pair::fixture::{Fixture, Redirection, Setup};
use crate::harness::pair::matrix::{Caller, Part};
use crate::harness::probe::observation::Observation;
use crate::harness::probe::scenario::Owner;
use crate::harness::process::Daemon;
use crate::harness::product::bpffs::target;
use crate::harness::product::{Instance, Run, exit, redirector};
use crate::harness::server::{Server, everywhere};
use crate::harness::world::{PodOptions, ROOT, SECOND6, TRANSPARENT_PROXY};

/// Ports at which the proxy listens, whatever the configuration.
pub const PROXY_PORTS: [u16; 4] = [15001, 15006, 16001, 16006];

/// Bound ports, of which each probe gets one of its own.
const OWN_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Which of Istio's rules are the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rules {
    #[default]
    Iptables,
    Nft,
}

/// A mistake that a test plants in the oracle's rules.
pub type Mistake = fn(&str) -> String;

/// The comparison under one configuration.
pub struct Comparison {
    pub probes: usize,
    /// Differences that are meant.
    pub documented: usize,
    /// The others, with the probe that shows each.
    pub differences: Vec<(usize, Difference)>,
    pub ends: Ends,
}

/// Where probes ended under the oracle: a matrix in which nothing is captured would prove nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    pub proxy: usize,
    /// Where they were going.
    pub passed: usize,
    pub failed: usize,
}

/// The two pods. Fields are dropped in this order: first what runs in the worlds.
pub struct ParityPair {
    /// A process of the subject that sees the pod's resolv.conf.
    container: Daemon,
    _resolv_conf: NamedTempFile,
    /// The proxy's DNS servers, and their user.
    dns: Option<(Owner, [Server; 2])>,
    pair: Pair,
    own_port: u16,
    rules: Rules,
    mistake: Option<Mistake>,
}

impl ParityPair {
    /// Sets up both pods, with a mistake in the oracle's rules if the test wants one.
    pub fn new(rules: Rules, mistake: Option<Mistake>) -> anyhow::Result<Self> {
        let setup = setup();
        // Not in threads of their own: what runs in the pods dies with the thread that started it.
        let fixture = || Fixture::with(Redirection::None, &setup);
        let pair = Pair { reference: fixture()?, subject: fixture()? };
        let mut resolv_conf = NamedTempFile::new()?;
        NAME_SERVERS.iter().try_for_each(|server| writeln!(resolv_conf, "nameserver {server}"))?;
        let script = "mount --bind \"$0\" /etc/resolv.conf && echo ready && exec cat";
        let mut command = pair.subject.pod().place(ROOT)?.program(Path::new("unshare"));
        command.args(["--mount", "sh", "-c", script]).arg(resolv_conf.path());
        let container = Daemon::start("container", &mut command)?;
        container.wait_for(0, |line| (line == "ready").then_some(()))?;
        Ok(Self {
            container,
            _resolv_conf: resolv_conf,
            dns: None,
            pair,
            own_port: OWN_PORTS.start,
            rules,
            mistake,
        })
    }

    /// Detaches the product, so that the next configuration is not a change but an attachment.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        self.pair.subject.instance.take().map_or(Ok(()), Instance::detach)
    }

    /// Puts a configuration in force on both sides.
    pub fn configure(&mut self, configuration: &Configuration) -> anyhow::Result<()> {
        let options = configuration.options();
        let redirection = Redirection::Iptables(options.clone());
        let before = match std::mem::replace(&mut self.pair.reference.redirection, redirection) {
            Redirection::Iptables(before) => before,
            _ => Options::sidecar(),
        };
        self.serve_dns(&options)?;
        if before.tproxy.is_some() && options.tproxy.is_some() && before.tproxy != options.tproxy {
            // Mark and table cannot be exchanged.
            self.detach()?;
        }
        let netns = &self.pair.reference.pod().netns;
        std::thread::scope(|scope| {
            let reference = scope.spawn(|| {
                mangle::route(netns, "del", &before)?;
                mangle::route(netns, "add", &options)?;
                match (self.rules, self.mistake) {
                    (Rules::Nft, _) => oracle::nft::load(netns, &options),
                    (_, None) => oracle::load(netns, &oracle::rule_texts(&options)),
                    (_, Some(mistake)) => {
                        oracle::load(netns, &oracle::rule_texts(&options).map(|text| mistake(&text)))
                    }
                }
            });
            let subject = attach(&mut self.pair.subject, &self.container, configuration);
            reference.join().map_err(|_| anyhow!("a thread panicked"))??;
            subject
        })
        .with_context(|| format!("configuring {configuration}"))
    }

    /// Istio's rules put only the answers of the proxy's users into the conntrack zone of the queries.
    fn serve_dns(&mut self, options: &Options) -> anyhow::Result<()> {
        let first = |ids: &[u32], default| ids.first().copied().unwrap_or(default);
        let owner = Owner { uid: first(&options.proxy_uids, 0), gid: first(&options.proxy_gids, 1337) };
        if self.dns.as_ref().is_none_or(|(before, _)| *before != owner) {
            self.dns = None;
            let start = |fixture: &Fixture| fixture.pod().serve(owner, "proxy", dns_listeners());
            self.dns = Some((owner, [start(&self.pair.reference)?, start(&self.pair.subject)?]));
        }
        Ok(())
    }

    /// Gives the oracle the rules of another configuration, without TPROXY in either: what differs then shows what the
    /// one in force does.
    pub fn mislead_oracle(&self, configuration: &Configuration) -> anyhow::Result<()> {
        oracle::load(&self.pair.reference.pod().netns, &oracle::rule_texts(&configuration.options()))
    }

    /// Runs probes under the configuration in force.
    pub fn run(&mut self, probes: &[Probe]) -> anyhow::Result<Comparison> {
        let parts = self.parts(probes);
        let (observed, mut differences) = self.pair.run(&parts)?;
        let all = differences.len();
        differences.retain(|difference| !self.pair.is_documented(difference));
        let documented = all - differences.len();
        let name = |(index, probe): (usize, &Probe)| (probe.scenario.name.clone(), index);
        let indices: HashMap<String, usize> = probes.iter().enumerate().map(name).collect();
        let indexed = |difference: Difference| Some((*indices.get(&difference.scenario)?, difference));
        let differences = differences.into_iter().map(indexed).collect::<Option<Vec<_>>>();
        let mut ends = Ends::default();
        observed.iter().for_each(|observation| ends.count(observation));
        Ok(Comparison {
            probes: probes.len(),
            documented,
            differences: differences.context("an observation of no probe")?,
            ends,
        })
    }

    /// The scenarios by caller, each with a bound port of its own where it wants one.
    fn parts(&mut self, probes: &[Probe]) -> Vec<Part> {
        let callers =
            [(From::Pod, Caller::Pod(ROOT)), (From::Network, Caller::Outside), (From::Guest, Caller::Guest)];
        callers
            .map(|(from, caller)| {
                let ours = probes.iter().filter(|probe| probe.from == from);
                let mut scenarios: Vec<_> = ours.map(|probe| probe.scenario.clone()).collect();
                for bind in scenarios.iter_mut().filter_map(|scenario| scenario.bind.as_mut()) {
                    if bind.port() == OWN_PORT {
                        bind.set_port(self.own_port);
                        let next = self.own_port + 1;
                        self.own_port = if OWN_PORTS.contains(&next) { next } else { OWN_PORTS.start };
                    }
                }
                Part { caller, scenarios }
            })
            .into()
    }
}

impl Ends {
    fn count(&mut self, observation: &Observation) {
        match &observation.reached {
            Some(reached) if reached.role == "proxy" => self.proxy += 1,
            Some(_) => self.passed += 1,
            None => self.failed += 1,
        }
    }

    pub fn add(&mut self, other: Self) {
        self.proxy += other.proxy;
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// A pod with two interfaces and a guest, its proxy, its application, and the world outside.
fn setup() -> Setup {
    let mut proxy = everywhere(&PROXY_PORTS);
    proxy.iter_mut().for_each(|listen| listen.transparent = true);
    Setup {
        pod: PodOptions {
            second_interface: true,
            guest: true,
            // The address that capturing IPv6 adds: here it is always there, because nobody would take it away between
            // two configurations.
            extra: "address add ::6/128 dev lo nodad\n".to_owned(),
            ..PodOptions::default()
        },
        proxy,
        proxy_owner: TRANSPARENT_PROXY,
        app: everywhere(&SERVED).into_iter().chain(pod_queries()).collect(),
        // Root may bind port 53.
        app_owner: ROOT,
        remote: everywhere(&SERVED).into_iter().chain(outside_queries()).collect(),
        // Connections reach them anyhow, but only addresses can be bound, and queries are answered from there.
        outside: format!(
            "address add {NAME_SERVER6}/128 dev lo nodad\naddress add {SECOND6}/128 dev lo nodad\n"
        ),
        ..Setup::default()
    }
}

/// `redirector attach`: the first time it attaches, after that it changes the policy (or finds it equal).
fn attach(subject: &mut Fixture, container: &Daemon, configuration: &Configuration) -> anyhow::Result<()> {
    let known = subject.instance.is_some();
    let target = if configuration.needs_name_servers() {
        vec!["--pid".to_owned(), container.pid().to_string()]
    } else {
        target(subject.pod()).into()
    };
    let name = subject.instance.get_or_insert_with(|| Instance::named(names::unique())).name();
    let flags = configuration.flags();
    let words = ["attach", "--name", name].into_iter().chain(target.iter().chain(&flags).map(String::as_str));
    let run: Run = redirector(&words.collect::<Vec<_>>(), &configuration.environment())?.expect(exit::OK)?;
    match run.json()?["outcome"].as_str() {
        Some("attached") if !known => Ok(()),
        Some("changed" | "unchanged") if known => Ok(()),
        other => bail!("{} gave {other:?}", run.command),
    }
}
