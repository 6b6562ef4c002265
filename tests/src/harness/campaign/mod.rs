//! The fault campaign: an attached pod under load in both directions, while commands are killed or fail, programs and
//! policies are swapped, the proxy reloads and restarts, and addresses, routes and mounts move.
//!
//! What must hold in each step: every connection of the application, and every one from the network, is accepted by the proxy
//! and has the original destination that its client asked for; the proxy's own connections, and those of a process of the
//! same cgroup in another network namespace, go straight; connections fail only in steps that [allow](plan::Step::allows)
//! it. Meanwhile another pod (`comer`) comes and goes.

mod comer;
pub mod plan;
pub mod planted;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use self::plan::{STEPS_OF_A_ROUND, Step, Verb, steps};
use self::planted::{Moment, Planted};
use super::command;
use super::load::during;
use super::pair::fixture::{Fixture, Redirection, Setup};
use super::pair::matrix::SERVED;
use super::probe::many::{Load, LoadReport};
use super::process::Place;
use super::product::bpffs::Bpffs;
use super::product::objects::{Objects, set_meta};
use super::product::older::Older;
use super::product::test_pod::{NAME, TestPod};
use super::product::{Run, exit};
use super::server::{Server, everywhere, proxy_listeners};
use super::strace::{At, Fault, with};
use super::world::{APP, PROXY, PodOptions, VIP6, World, at};

/// Exit code of a Rust program that has panicked.
const PANICKED: i32 = 101;
/// Connections of a load, in each direction.
const CONNECTIONS: u16 = 200;
/// The proxy's ports under the two policies.
const PROXY_PORTS: [u16; 4] = [15001, 15006, 16001, 16006];
/// The policies need different programs.
const POLICIES: [&[&str]; 2] =
    [&["-p", "15001", "-z", "15006"], &["-p", "16001", "-z", "16006", "-o", "9", "-x", "192.0.2.0/24"]];
/// An address that the pod has or has not.
const MOVING: &str = "10.77.0.99/24";

/// Where packets on lo may be handled by another processor.
const RPS: &str = "mount -t sysfs sysfs /sys && echo \"$0\" > /sys/class/net/lo/queues/rx-0/rps_cpus";

/// The figures of a campaign.
#[derive(Debug, Default)]
pub struct CampaignReport {
    pub steps: usize,
    pub connections: usize,
    /// Connections that failed where it is allowed.
    pub failed: usize,
    /// KiB that the kernel holds for itself (slab, per processor) after the first round, and at the end.
    pub kernel_memory: [u64; 2],
    /// The step that broke an invariant, and how.
    pub violation: Option<String>,
}

impl fmt::Display for CampaignReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, connections, failed, kernel_memory: [first, last], violation } = self;
        writeln!(
            f,
            "{steps} steps, {connections} connections, of which {failed} failed where it is allowed; kernel memory {} MiB \
             after the first round, {} MiB at the end",
            first / 1024,
            last / 1024
        )?;
        match violation {
            None => write!(f, "0 wrong, 0 past the proxy, 0 failed elsewhere, 0 objects left"),
            Some(violation) => write!(f, "VIOLATED in {violation}"),
        }
    }
}

/// A pod in the middle of a campaign, and a pod in whose namespace a process of the same cgroup is not captured.
pub struct Campaign {
    tested: TestPod,
    /// Another bpffs.
    elsewhere: Bpffs,
    older: Older,
    /// The policy that was attached last.
    policy: usize,
    is_older: bool,
    has_moving: bool,
    has_route: bool,
    has_rps: bool,
    /// The index of the proxy's oldest open listener, and how many were opened at once, the oldest first.
    oldest_listener: usize,
    generations: VecDeque<usize>,
    /// The proxy of the pod that comes and goes.
    _other_proxy: Server,
    planted: Option<&'static Planted>,
}

/// What a load must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Captured,
    /// It is not redirected: the proxy's own, and a neighbour's.
    Straight,
}

/// Runs a campaign until the time is up or an invariant is broken.
pub fn run(seed: u64, limit: Duration, planted: Option<&'static Planted>) -> anyhow::Result<CampaignReport> {
    let begun = Instant::now();
    let mut campaign = Campaign::new(planted)?;
    let mut report = CampaignReport::default();
    let planted_at = |moment| planted.filter(|planted| planted.moment == moment);
    let first = (seed % 3) as usize;
    // Of the steps that can find it, or that come after it.
    let last =
        |planted: &Planted| if planted.moment.is_of_the_comer() { STEPS_OF_A_ROUND } else { first + 3 };
    for (number, step) in steps(seed).enumerate() {
        let is_over = report.violation.is_some() || planted.is_some_and(|planted| number >= last(planted));
        if begun.elapsed() > limit || is_over {
            break;
        }
        // The other steps cannot find it.
        if planted.is_some_and(|planted| planted.moment.is_of_the_comer()) && !step.is_of_the_comer() {
            continue;
        }
        let planted = planted_at(Moment::Step).filter(|_| number == first);
        let found = campaign.under_load(step, planted, &mut report);
        let found = found.unwrap_or_else(|e| Some(format!("{e:#}")));
        report.violation = found.map(|how| format!("step {number}, {step:?}: {how}"));
        report.steps += 1;
        if report.steps <= STEPS_OF_A_ROUND {
            report.kernel_memory[0] = kernel_memory()?;
        }
    }
    if report.violation.is_none() {
        let end = campaign.end();
        report.violation = end.err().map(|e| format!("the end: {e:#}"));
    }
    report.kernel_memory[1] = kernel_memory()?;
    Ok(report)
}

/// KiB that the kernel holds for itself.
pub fn kernel_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(of("Slab:").context("Slab")? + of("Percpu:").unwrap_or_default())
}

/// How a load breaks the invariants.
fn violation(step: Step, expected: Expected, load: &LoadReport) -> Option<String> {
    let (role, wrong) = match expected {
        Expected::Captured => ("proxy:", load.wrong),
        // There is no original destination that could be right.
        Expected::Straight => ("remote:", 0),
    };
    let allows = |failure: &str| expected == Expected::Captured && step.allows(failure);
    let elsewhere: BTreeMap<_, _> =
        load.reached.iter().filter(|(server, _)| !server.starts_with(role)).collect();
    let failed: BTreeMap<_, _> = load.failed.iter().filter(|(failure, _)| !allows(failure)).collect();
    if !elsewhere.is_empty() {
        let how = if expected == Expected::Captured { "past the proxy" } else { "captured, and must not be" };
        Some(format!("{how}: {elsewhere:?}"))
    } else if wrong > 0 {
        Some(format!("{wrong} wrong: {:#?}", load.examples))
    } else if !failed.is_empty() {
        Some(format!("failed ({expected:?}): {failed:?}"))
    } else {
        None
    }
}

impl Campaign {
    fn new(planted: Option<&'static Planted>) -> anyhow::Result<Self> {
        let world = World::with(&[PodOptions::default(), PodOptions::default(), PodOptions::default()])?;
        let mut proxy = everywhere(&PROXY_PORTS);
        // The old listeners and the new ones share a port.
        proxy.iter_mut().for_each(|listen| listen.sockets = 2);
        let generations = VecDeque::from([2 * proxy.len()]);
        let setup = Setup { proxy, ..Setup::default() };
        let other_proxy = world.pods[2].serve(PROXY, "proxy", proxy_listeners(1))?;
        let tested =
            TestPod { bpffs: Bpffs::new()?, fixture: Fixture::in_world(Redirection::None, &setup, world)? };
        tested.attach(POLICIES[0])?;
        Ok(Self {
            tested,
            elsewhere: Bpffs::new()?,
            older: Older::make()?,
            policy: 0,
            is_older: false,
            has_moving: false,
            has_route: false,
            has_rps: false,
            oldest_listener: 0,
            generations,
            _other_proxy: other_proxy,
            planted,
        })
    }

    fn plant_at(&self, moment: Moment) {
        if let Some(planted) = self.planted.filter(|planted| planted.moment == moment) {
            planted.plant(self);
        }
    }

    /// A process of the captured cgroup in the network namespace of another pod.
    fn neighbour(&self) -> Place {
        let netns = self.tested.fixture.world.pods[1].netns.file().to_owned();
        Place { netns, cgroup: Some(self.tested.pod().cgroup.directory().to_owned()), owner: APP }
    }

    /// Makes a step while connections are made in both directions; how an invariant was broken.
    fn under_load(
        &mut self,
        step: Step,
        planted: Option<&Planted>,
        report: &mut CampaignReport,
    ) -> anyhow::Result<Option<String>> {
        let pod = self.tested.pod();
        let (app, proxy) = (pod.place(APP)?, pod.place(PROXY)?);
        let (outside, neighbour) = (self.tested.fixture.world.outside(), self.neighbour());
        let mut into = [at(pod.v4(), SERVED), at(pod.v6(), SERVED)].repeat(usize::from(CONNECTIONS / 2));
        if step == Step::Flood {
            into.extend((20_000..21_000).map(|port| at(pod.v4(), port)));
        }
        let v6 = (0..CONNECTIONS / 4).map(|_| at(VIP6, SERVED)).collect();
        let loads = [
            (Expected::Captured, (&app, Load::services(CONNECTIONS))),
            (Expected::Captured, (&app, Load::to(v6))),
            (Expected::Captured, (&outside, Load::to(into))),
            (Expected::Straight, (&proxy, Load::services(CONNECTIONS / 10))),
            (Expected::Straight, (&neighbour, Load::services(CONNECTIONS / 10))),
        ];
        let (expected, loads): (Vec<_>, Vec<_>) = loads.into_iter().unzip();
        let reports = during(&loads, || match planted {
            Some(planted) => {
                planted.plant(self);
                Ok(())
            }
            None => self.make(step),
        })?;
        let mut found = None;
        for (expected, loads) in expected.into_iter().zip(&reports) {
            for load in loads {
                let failed: usize = load.failed.values().sum();
                report.connections += load.right + load.wrong + failed;
                report.failed += failed;
                found = found.or_else(|| violation(step, expected, load));
            }
        }
        Ok(found)
    }

    fn make(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Change => {
                self.policy = 1 - self.policy;
                self.tested.attach(POLICIES[self.policy]).map(drop)
            }
            Step::Refresh => self.tested.refresh().map(drop),
            Step::Swap => {
                let run = self.upgrade_by(&[])?;
                self.is_older = !self.is_older;
                run.expect(exit::OK).map(drop)
            }
            Step::Disturbed(verb, fault, at) => self.disturbed(verb, fault, at),
            Step::MoveAddress => {
                let verb = if self.has_moving { "del" } else { "add" };
                self.has_moving = !self.has_moving;
                self.tested.pod().netns.ip(&format!("address {verb} {MOVING} dev eth0\n"))?;
                self.tested.refresh().map(drop)
            }
            Step::MoveRoute => {
                let verb = if self.has_route { "del" } else { "add" };
                self.has_route = !self.has_route;
                self.tested.pod().netns.ip(&format!("route {verb} unreachable 198.51.100.0/24\n"))?;
                self.tested.refresh().map(drop)
            }
            Step::ReloadProxy(sockets) => {
                self.open_listeners(sockets)?;
                self.close_oldest()
            }
            Step::RestartProxy => {
                self.close_oldest()?;
                self.open_listeners(2)
            }
            Step::MountOver => self.mount_over(),
            // The load itself.
            Step::Flood => Ok(()),
            Step::Rps => {
                self.has_rps = !self.has_rps;
                let processors = if self.has_rps { "3" } else { "0" };
                let mut set = self.tested.pod().netns.command("unshare");
                command::run(set.args(["--mount", "sh", "-c", RPS, processors]), "").map(drop)
            }
            Step::FirstAttach(fault, at) => self.first_attach(fault, at),
            Step::LastDetach(fault, at) => self.last_detach(fault, at),
            Step::AgentPasses(fault, at) => self.agent_passes(fault, at),
            Step::AgentRemount => self.agent_remount(),
            Step::Quotas => self.quotas(),
        }
    }

    /// A command in which a system call fails, or kills it; then the policy is made certain.
    fn disturbed(&self, verb: Verb, fault: Fault, at: At) -> anyhow::Result<()> {
        let run = with(fault, at, |by| match verb {
            Verb::Change => self.tested.attach_by(by, POLICIES[1 - self.policy]),
            Verb::Refresh => Run::of(&mut self.tested.bpffs.command(by, &["refresh", NAME])),
            Verb::Upgrade => self.upgrade_by(by),
        })?;
        let crashed = fault != Fault::Kill && run.code.is_none_or(|code| code == PANICKED);
        ensure!(!crashed, "it crashed: {run:?}");
        self.tested.attach(POLICIES[self.policy])?;
        let show = self.tested.show()?;
        ensure!(show["effective"] == true, "not effective after {}: {show:#}", run.command);
        Ok(())
    }

    /// To the other version.
    fn upgrade_by(&self, by: &[&str]) -> anyhow::Result<Run> {
        let arguments = ["upgrade", NAME];
        Run::of(&mut if self.is_older {
            self.tested.bpffs.command(by, &arguments)
        } else {
            self.tested.bpffs.command_of(&self.older.path(), by, &arguments)
        })
    }

    /// A bpffs over the one that holds the instance hides it; another one beside it is refused.
    fn mount_over(&self) -> anyhow::Result<()> {
        let path = self.tested.bpffs.path();
        mount("bpf", path, "bpf", MountFlags::empty(), None).context("mounting a bpffs over another")?;
        let refused = self.tested.attach_by(&[], POLICIES[self.policy]);
        unmount(path, UnmountFlags::DETACH).context("unmounting")?;
        refused?.refused(exit::USAGE, &["another instance of redirector"])?;
        self.tested.refresh().map(drop)
    }

    fn open_listeners(&mut self, sockets: usize) -> anyhow::Result<()> {
        let proxy = self.tested.fixture.proxy.as_mut().context("a proxy")?;
        let mut count = 0;
        for mut listen in everywhere(&PROXY_PORTS) {
            listen.sockets = sockets;
            count += sockets;
            proxy.open(listen)?;
        }
        self.generations.push_back(count);
        Ok(())
    }

    fn close_oldest(&mut self) -> anyhow::Result<()> {
        let proxy = self.tested.fixture.proxy.as_mut().context("a proxy")?;
        let count = self.generations.pop_front().context("listeners")?;
        (self.oldest_listener..self.oldest_listener + count).try_for_each(|index| proxy.close(index))?;
        self.oldest_listener += count;
        Ok(())
    }

    /// The number of the policy in force plus 1, as META has it.
    fn active_word(&self) -> anyhow::Result<u8> {
        const OFFSET: usize = 4;
        let directory = self.tested.bpffs.instance(NAME);
        let word = set_meta(&directory, OFFSET, 0)?;
        set_meta(&directory, OFFSET, word)?;
        Ok(word)
    }

    /// Detaches; the kernel has nothing left of the instance.
    fn end(&self) -> anyhow::Result<()> {
        let objects = Objects::of(&self.tested.bpffs, NAME)?;
        self.plant_at(Moment::BeforeDetach);
        let detach = ["detach", "--name", NAME];
        self.tested.bpffs.run(&detach)?.expect(exit::OK)?;
        self.plant_at(Moment::AfterDetach);
        self.tested.expect_nothing()?;
        objects.expect_gone()
    }
}
