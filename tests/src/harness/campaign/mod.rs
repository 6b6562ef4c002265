//! The fault campaign: an attached pod under load in both directions, while commands are killed or fail, programs and
//! policies are swapped, the proxy reloads and restarts, and addresses move.
//!
//! What must hold in each step: every connection that a server accepts is the proxy's and has the original destination
//! that its client asked for, and connections fail only in steps that [allow](plan::Step::allows) it.

pub mod plan;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use self::plan::{Step, steps};
use super::load::during;
use super::pair::fixture::Setup;
use super::pair::matrix::SERVED;
use super::probe::many::{Load, LoadReport};
use super::product::objects::Objects;
use super::product::older::Older;
use super::product::test_pod::{NAME, TestPod};
use super::product::{Run, exit};
use super::server::everywhere;
use super::strace::{At, Fault, with};
use super::world::{APP, at};

/// Connections of a load, in each direction.
const CONNECTIONS: u16 = 200;
/// The proxy's ports under the two policies.
const PROXY_PORTS: [u16; 4] = [15001, 15006, 16001, 16006];
/// The policies need different programs.
const POLICIES: [&[&str]; 2] =
    [&["-p", "15001", "-z", "15006"], &["-p", "16001", "-z", "16006", "-o", "9", "-x", "192.0.2.0/24"]];
/// An address that the pod has or has not.
const MOVING: &str = "10.77.0.99/24";

/// A fault that no step may have, made in place of the first step.
pub type Sabotage = fn(&TestPod) -> anyhow::Result<()>;

/// The figures of a campaign.
#[derive(Debug, Default)]
pub struct CampaignReport {
    pub steps: usize,
    pub connections: usize,
    /// Connections that failed where it is allowed.
    pub failed: usize,
    /// The step that broke an invariant, and how.
    pub violation: Option<String>,
}

impl fmt::Display for CampaignReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { steps, connections, failed, violation } = self;
        writeln!(
            f,
            "{steps} steps, {connections} connections, of which {failed} failed where it is allowed"
        )?;
        match violation {
            None => write!(f, "0 wrong, 0 past the proxy, 0 failed elsewhere, 0 objects left"),
            Some(violation) => write!(f, "VIOLATED in {violation}"),
        }
    }
}

/// A pod in the middle of a campaign.
struct Campaign {
    tested: TestPod,
    older: Older,
    /// The policy that was attached last.
    policy: usize,
    is_older: bool,
    has_moving: bool,
    /// The index of the proxy's oldest open listener.
    oldest_listener: usize,
}

/// Runs a campaign until the time is up or an invariant is broken.
pub fn run(seed: u64, limit: Duration, sabotage: Option<Sabotage>) -> anyhow::Result<CampaignReport> {
    let begun = Instant::now();
    let mut campaign = Campaign::new()?;
    let mut report = CampaignReport::default();
    for (number, step) in steps(seed).enumerate() {
        if begun.elapsed() > limit || report.violation.is_some() {
            break;
        }
        let sabotage = sabotage.filter(|_| number == 0);
        let loads =
            campaign.under_load(step, sabotage).with_context(|| format!("step {number}, {step:?}"))?;
        report.steps += 1;
        for load in &loads {
            let failed: usize = load.failed.values().sum();
            report.connections += load.right + load.wrong + failed;
            report.failed += failed;
            if let Some(how) = violation(step, load) {
                report.violation = Some(format!("step {number}, {step:?}: {how}"));
            }
        }
    }
    if report.violation.is_none() {
        campaign.end()?;
    }
    Ok(report)
}

/// How a load breaks the invariants.
fn violation(step: Step, load: &LoadReport) -> Option<String> {
    let escaped: BTreeMap<_, _> =
        load.reached.iter().filter(|(server, _)| !server.starts_with("proxy:")).collect();
    let failed: BTreeMap<_, _> = load.failed.iter().filter(|(failure, _)| !step.allows(failure)).collect();
    if !escaped.is_empty() {
        Some(format!("past the proxy: {escaped:?}"))
    } else if load.wrong > 0 {
        Some(format!("{} wrong: {:#?}", load.wrong, load.examples))
    } else if !failed.is_empty() {
        Some(format!("failed: {failed:?}"))
    } else {
        None
    }
}

impl Campaign {
    fn new() -> anyhow::Result<Self> {
        let mut proxy = everywhere(&PROXY_PORTS);
        // The old listeners and the new ones share a port.
        proxy.iter_mut().for_each(|listen| listen.sockets = 2);
        let tested = TestPod::attached_with(&Setup { proxy, ..Setup::default() }, POLICIES[0])?;
        let older = Older::make()?;
        Ok(Self { tested, older, policy: 0, is_older: false, has_moving: false, oldest_listener: 0 })
    }

    /// Makes a step while connections are made in both directions.
    fn under_load(&mut self, step: Step, sabotage: Option<Sabotage>) -> anyhow::Result<Vec<LoadReport>> {
        let pod = self.tested.pod();
        let (app, outside) = (pod.place(APP)?, self.tested.fixture.world.outside());
        let into = [at(pod.v4(), SERVED), at(pod.v6(), SERVED)].repeat(usize::from(CONNECTIONS / 2));
        let loads = [(&app, Load::services(CONNECTIONS)), (&outside, Load::to(into))];
        let reports = during(&loads, || match sabotage {
            Some(sabotage) => sabotage(&self.tested),
            None => self.make(step),
        })?;
        Ok(reports.into_iter().flatten().collect())
    }

    fn make(&mut self, step: Step) -> anyhow::Result<()> {
        let other = POLICIES[1 - self.policy];
        match step {
            Step::Change => {
                self.policy = 1 - self.policy;
                self.tested.attach(other).map(drop)
            }
            Step::Refresh => self.tested.refresh().map(drop),
            Step::Swap => {
                let mut command = if self.is_older {
                    self.tested.bpffs.command(&[], &["upgrade", NAME])
                } else {
                    self.tested.bpffs.command_of(&self.older.path(), &[], &["upgrade", NAME])
                };
                self.is_older = !self.is_older;
                Run::of(&mut command)?.expect(exit::OK).map(drop)
            }
            Step::KilledChange(number) => {
                self.disturbed(Fault::Kill, number, |by| self.tested.attach_by(by, other))
            }
            Step::FailedChange(number) => {
                self.disturbed(Fault::Fail, number, |by| self.tested.attach_by(by, other))
            }
            Step::KilledRefresh(number) => self.disturbed(Fault::Kill, number, |by| self.refresh_by(by)),
            Step::FailedRefresh(number) => self.disturbed(Fault::Fail, number, |by| self.refresh_by(by)),
            Step::MoveAddress => {
                let verb = if self.has_moving { "del" } else { "add" };
                self.has_moving = !self.has_moving;
                self.tested.pod().netns.ip(&format!("address {verb} {MOVING} dev eth0\n"))?;
                self.tested.refresh().map(drop)
            }
            Step::ReloadProxy => {
                self.open_listeners()?;
                self.close_oldest()
            }
            Step::RestartProxy => {
                self.close_oldest()?;
                self.open_listeners()
            }
        }
    }

    /// A command in which a call of bpf(2) fails, or kills it; then the policy is made certain.
    fn disturbed(
        &self,
        fault: Fault,
        number: usize,
        run: impl FnOnce(&[&str]) -> anyhow::Result<Run>,
    ) -> anyhow::Result<()> {
        let run = with(fault, At { call: "bpf", number }, run)?;
        ensure!(fault == Fault::Kill || run.code.is_some(), "it crashed: {run:?}");
        self.tested.attach(POLICIES[self.policy])?;
        let show = self.tested.show()?;
        ensure!(show["effective"] == true, "not effective after {}: {show:#}", run.command);
        Ok(())
    }

    fn refresh_by(&self, by: &[&str]) -> anyhow::Result<Run> {
        Run::of(&mut self.tested.bpffs.command(by, &["refresh", NAME]))
    }

    fn open_listeners(&mut self) -> anyhow::Result<()> {
        let proxy = self.tested.fixture.proxy.as_mut().context("a proxy")?;
        for mut listen in everywhere(&PROXY_PORTS) {
            listen.sockets = 2;
            proxy.open(listen)?;
        }
        Ok(())
    }

    fn close_oldest(&mut self) -> anyhow::Result<()> {
        let proxy = self.tested.fixture.proxy.as_mut().context("a proxy")?;
        let count = 2 * everywhere(&PROXY_PORTS).len();
        (self.oldest_listener..self.oldest_listener + count).try_for_each(|index| proxy.close(index))?;
        self.oldest_listener += count;
        Ok(())
    }

    /// Detaches; the kernel has nothing left of the instance.
    fn end(&self) -> anyhow::Result<()> {
        let objects = Objects::of(&self.tested.show()?)?;
        self.tested.detach()?;
        objects.expect_gone()
    }
}
