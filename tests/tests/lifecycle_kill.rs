//! Commands that are killed at any step: what they leave captures wholly or not at all, and the next command sweeps it.

use anyhow::{Context, ensure};

use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::{SERVED, UNSERVED};
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::objects::{has_lo6, links_of};
use redirector_tests::harness::product::older::Older;
use redirector_tests::harness::product::{Run, exit};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::retry;
use redirector_tests::harness::share;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};
use redirector_tests::harness::world::{APP, VIP4, at};

const NAME: &str = "pod";
/// Steps of each test at most, beside the last ten.
const FEW: usize = 20;
const NEW: [&str; 4] = ["-o", "81", "-x", "192.0.2.0/24"];

struct Bench {
    node: Node,
    side: Side,
}

impl Bench {
    fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() || ["strace", "bpftool"].iter().any(|name| require_program(name).is_none()) {
            return Ok(None);
        }
        Ok(Some(Self { node: Node::new()?, side: Side::new(By::Nobody)? }))
    }

    fn attach(&self, flags: &[&str]) -> anyhow::Result<Run> {
        self.node.attach(self.side.pod(), NAME, flags)?.expect(exit::OK)
    }

    fn attach_by(&self, by: &[&str], flags: &[&str]) -> anyhow::Result<Run> {
        self.node.attach_by(by, self.side.pod(), NAME, flags)
    }

    fn detach_by(&self, by: &[&str]) -> anyhow::Result<Run> {
        Run::of(&mut self.node.command(by, &["detach", "--name", NAME]))
    }

    /// The steps of a command that succeeds, and those of other kinds.
    fn steps(
        &self,
        others: &[(&'static str, usize)],
        run: impl FnOnce(&[&str]) -> anyhow::Result<Run>,
    ) -> anyhow::Result<Vec<At>> {
        let (run, steps) = steps("bpf", run)?;
        run.expect(exit::OK)?;
        let mut all = chosen(&steps, FEW);
        for &(call, times) in others {
            let steps: Vec<At> = (1..=times).map(|number| At { call, number }).collect();
            all.extend(chosen(&share::of(steps), FEW / 4));
        }
        Ok(all)
    }

    /// Where connections go: out to two ports, and in.
    fn connect(&self) -> anyhow::Result<[String; 3]> {
        let to = [SERVED, UNSERVED].map(|port| Scenario::to(at(VIP4, port)));
        let out = self.side.pod().observe(APP, &to)?;
        let into = self.side.world.observe_from_outside(&[Scenario::to(at(self.side.pod().v4(), SERVED))])?;
        let mut all = out.iter().chain(&into).map(Observation::summary);
        let mut next = || all.next().context("an observation is missing");
        Ok([next()?, next()?, next()?])
    }

    /// Nothing in the bpffs, nothing attached, no `::6`.
    fn expect_nothing(&self) -> anyhow::Result<()> {
        self.node.expect_empty()?;
        retry::until("links of a killed process to be freed", || {
            (links_of(self.side.pod()).ok()? == [0, 0]).then_some(())
        })?;
        ensure!(!has_lo6(&self.side.pod().netns)?, "::6 is left on lo");
        Ok(())
    }

    /// The next command, another one each time, and that it clears up.
    fn next_command(&self, turn: usize, active: bool) -> anyhow::Result<()> {
        match turn % 3 {
            0 => {
                let list = self.node.list()?;
                ensure!(list.len() == usize::from(active), "{list:?}");
                ensure!(list.iter().all(|line| line["state"] == "active"), "{list:?}");
                if !active {
                    self.expect_nothing()?;
                }
            }
            1 => {
                let attached = self.attach(&[])?.json()?;
                ensure!(attached["outcome"] == if active { "unchanged" } else { "attached" }, "{attached}");
                ensure!(self.connect()? == captured(), "attached again, and does not capture");
                ensure!(self.node.show(NAME)?["effective"] == true);
            }
            _ => {
                let code = if active { exit::OK } else { exit::NOTHING };
                let run = self.node.run(&["detach", "--name", NAME])?;
                // An instance that was never activated or not wholly removed may count as one.
                ensure!(run.code == Some(code) || !active && run.code == Some(exit::OK), "{run:?}");
                return self.expect_nothing();
            }
        }
        self.node.run(&["detach", "--name", NAME, "--ignore-missing"])?.expect(exit::OK)?;
        self.expect_nothing()
    }
}

fn captured() -> [String; 3] {
    let out = |port| format!("proxy:15001 original {}", at(VIP4, port));
    [out(SERVED), out(UNSERVED), "proxy:15006 original 10.77.0.2:8080".to_owned()]
}

fn straight() -> [String; 3] {
    ["remote:8080", "ECONNREFUSED", "app:8080"].map(str::to_owned)
}

/// Runs a command that is killed at a step; false if the step is not reached.
fn killed(at: At, run: impl FnOnce(&[&str]) -> anyhow::Result<Run>) -> anyhow::Result<bool> {
    let run = with(Fault::Kill, at, run)?;
    ensure!(run.code.is_none() || run.code == Some(exit::OK), "{at:?}: {run:?}");
    Ok(run.code.is_none())
}

#[test]
fn attach() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let calls = bench.steps(&[("mkdir", 2), ("rename", 1), ("sendto", 2)], |by| bench.attach_by(by, &[]))?;
    assert_eq!(bench.connect()?, captured());
    bench.detach_by(&[])?.expect(exit::OK)?;
    let mut kills = 0;
    for (turn, at) in calls.iter().enumerate() {
        kills += usize::from(killed(*at, |by| bench.attach_by(by, &[]))?);
        let seen = bench.connect()?;
        ensure!(seen == captured() || seen == straight(), "{at:?}: {seen:?}");
        bench.next_command(turn, seen == captured()).with_context(|| format!("{at:?}"))?;
    }
    println!("killed {kills} times, at {} steps", calls.len());
    assert!(2 * kills > calls.len());
    Ok(())
}

#[test]
fn detach() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    bench.attach(&[])?;
    let calls = bench.steps(&[("unlink", 30), ("rmdir", 2), ("sendto", 2)], |by| bench.detach_by(by))?;
    let (mut kills, mut stopped) = (0, 0);
    for (turn, at) in calls.iter().enumerate() {
        bench.attach(&[])?;
        kills += usize::from(killed(*at, |by| bench.detach_by(by))?);
        let seen = bench.connect()?;
        ensure!(seen == captured() || seen == straight(), "{at:?}: {seen:?}");
        stopped += usize::from(seen == straight());
        bench.next_command(turn, seen == captured()).with_context(|| format!("{at:?}"))?;
    }
    println!("killed {kills} times, at {} steps; {stopped} times capture had stopped", calls.len());
    assert!(3 * kills > calls.len() && stopped > 0 && stopped < calls.len());
    Ok(())
}

/// The instance captures all the time, under the old programs, the new ones, or some of both.
#[test]
fn upgrade() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let older = Older::make()?;
    let downgrade =
        || Run::of(&mut bench.node.command_of(&older.path(), &[], &["upgrade", NAME]))?.expect(exit::OK);
    let upgrade_by = |by: &[&str]| Run::of(&mut bench.node.command(by, &["upgrade", NAME]));
    bench.attach(&[])?;
    let id = bench.node.show(NAME)?["record"]["programs"].clone();
    downgrade()?;
    let calls = bench.steps(&[("rename", 14), ("unlink", 16)], upgrade_by)?;
    let (mut kills, mut done) = (0, 0);
    // Every other one: each takes five commands.
    let calls: Vec<At> = calls.into_iter().step_by(2).collect();
    for at in &calls {
        downgrade()?;
        kills += usize::from(killed(*at, upgrade_by)?);
        ensure!(bench.connect()? == captured(), "{at:?}");
        let show = bench.node.show(NAME)?;
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        done += usize::from(show["record"]["programs"] == id);
        // The next one completes it.
        upgrade_by(&[])?.expect(exit::OK)?;
        let show = bench.node.show(NAME)?;
        ensure!(show["effective"] == true && show["record"]["programs"] == id, "{at:?}: {show:#}");
    }
    println!("killed {kills} times; {done} times it was done");
    assert!(3 * kills > calls.len() && done < kills);
    ensure!(bench.connect()? == captured());
    bench.detach_by(&[])?.expect(exit::OK)?;
    bench.expect_nothing()
}

#[test]
fn a_policy_change() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [served, _, inbound] = captured();
    let changed = [served, "ECONNREFUSED".to_owned(), inbound];
    bench.attach(&[])?;
    let calls = bench.steps(&[("rename", 9), ("unlink", 12)], |by| bench.attach_by(by, &NEW))?;
    let (mut kills, mut new) = (0, 0);
    for (turn, at) in calls.iter().enumerate() {
        // The programs are replaced only by the first change: that one, and the ones after it.
        if turn % 2 == 0 {
            bench.node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        }
        bench.attach(&[])?;
        kills += usize::from(killed(*at, |by| bench.attach_by(by, &NEW))?);
        let seen = bench.connect()?;
        ensure!(seen == captured() || seen == changed, "{at:?}: {seen:?}");
        new += usize::from(seen == changed);
        let show = bench.node.show(NAME)?;
        let ports = &show["record"]["policy"]["outbound_exclude_ports"];
        ensure!(
            (*ports == serde_json::json!([81])) == (seen == changed),
            "{at:?}: shown is another policy: {show:#}"
        );
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        let again = bench.attach(&NEW)?.json()?;
        ensure!(again["outcome"] == if seen == changed { "unchanged" } else { "changed" }, "{at:?}: {again}");
        ensure!(bench.connect()? == changed, "{at:?}");
    }
    println!("killed {kills} times, at {} steps; {new} times the new policy was in force", calls.len());
    assert!(3 * kills > calls.len() && new > 0 && new < calls.len());
    bench.node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    bench.expect_nothing()
}
