//! A step of `attach` that fails leaves nothing behind; one of a policy change leaves the old policy in force.

use anyhow::{Context, ensure};

use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::{SERVED, UNSERVED};
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::objects::{has_lo6, links_of, maps_with_cookie};
use redirector_tests::harness::product::{Run, exit};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::retry;
use redirector_tests::harness::share;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};
use redirector_tests::harness::world::{APP, VIP4, at};

const NAME: &str = "pod";
/// Steps of each test at most, beside the last ten.
const FEW: usize = 24;

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

    fn attach(&self, flags: &[&str]) -> anyhow::Result<()> {
        self.node.attach(self.side.pod(), NAME, flags)?.expect(exit::OK).map(drop)
    }

    fn attach_failing(&self, at: At, flags: &[&str]) -> anyhow::Result<Run> {
        with(Fault::Fail, at, |by| self.node.attach_by(by, self.side.pod(), NAME, flags))
    }

    /// The steps of an attach that succeeds.
    fn steps(&self, flags: &[&str]) -> anyhow::Result<Vec<At>> {
        let (run, steps) = steps("bpf", |by| self.node.attach_by(by, self.side.pod(), NAME, flags))?;
        run.expect(exit::OK)?;
        println!("{} steps of {:?} calls", steps.len(), steps.last());
        Ok(chosen(&steps, FEW))
    }

    fn detach(&self) -> anyhow::Result<()> {
        self.node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        self.expect_nothing()
    }

    fn connect(&self, port: u16) -> anyhow::Result<String> {
        let seen = self.side.pod().observe(APP, &[Scenario::to(at(VIP4, port))])?;
        Ok(seen.first().map(Observation::summary).unwrap_or_default())
    }

    /// Nothing in the bpffs, nothing attached, no `::6`.
    fn expect_nothing(&self) -> anyhow::Result<()> {
        self.node.expect_empty()?;
        ensure!(links_of(self.side.pod())? == [0, 0], "programs are attached");
        ensure!(!has_lo6(&self.side.pod().netns)?, "::6 is left on lo");
        Ok(())
    }

    /// What every failed command has to do: say so, and name what it failed at.
    fn expect_failed(run: &Run) -> anyhow::Result<()> {
        ensure!(run.code.is_some_and(|code| code == exit::FAILED || code == exit::CANNOT), "{run:?}");
        let error = run.error()?;
        let text = error["error"].as_str().with_context(|| format!("no message: {run:?}"))?;
        // An object: a path, a program, a map, a helper; and the reason.
        let objects = ["/", "rd_", "map", "bpf_", "META", "POLICIES", "LISTENERS", "interfaces", "addresses"];
        ensure!(objects.iter().any(|object| text.contains(object)), "names no object: {text}");
        // Not always EPERM: the loader takes a failure for an answer and then does something else that fails.
        ensure!(text.contains("os error"), "gives no reason: {text}");
        Ok(())
    }
}

/// The cookie of the pod's namespace: the default name has it.
fn cookie(bench: &Bench) -> anyhow::Result<u64> {
    let target = redirector_tests::harness::product::bpffs::target(bench.side.pod());
    let mut arguments = vec!["attach", "--dry-run"];
    arguments.extend(target.iter().map(String::as_str));
    let run = bench.node.run(&arguments)?.expect(exit::OK)?.json()?;
    let name = run["name"].as_str().and_then(|name| name.strip_prefix('n')).context("a default name")?;
    Ok(name.parse()?)
}

#[test]
fn a_failed_attach_leaves_nothing() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let cookie = cookie(&bench)?;
    bench.expect_nothing()?;
    let calls = bench.steps(&[])?;
    assert!(calls.len() > share::times(FEW, 2), "{} calls of bpf(2) are not an attach", calls.len());
    assert!(!maps_with_cookie(cookie)?.is_empty(), "the check sees nothing");
    bench.detach()?;

    let others = [("mkdir", 2), ("rename", 1), ("unlink", 1), ("sendto", 2)];
    let others = others.iter().flat_map(|&(call, times)| (1..=times).map(move |number| At { call, number }));
    let mut tolerated = Vec::new();
    for at in calls.into_iter().chain(others) {
        let run = bench.attach_failing(at, &[])?;
        if run.code == Some(exit::OK) {
            // The loader asks what the kernel can, and takes a no for an answer; but then all has to work.
            ensure!(
                bench.connect(SERVED)?.starts_with("proxy:15001"),
                "{at:?}: attached, and does not capture"
            );
            tolerated.push(at);
            bench.detach()?;
        } else {
            Bench::expect_failed(&run).with_context(|| format!("{at:?}"))?;
        }
        bench.expect_nothing().with_context(|| format!("{at:?}: {run:?}"))?;
    }
    println!("no failure: {tolerated:?}");
    ensure!(tolerated.len() < FEW * 2 / 3, "most failures went unnoticed: {tolerated:?}");
    retry::until("maps of failed attaches to be freed", || {
        maps_with_cookie(cookie).ok()?.is_empty().then_some(())
    })?;
    assert_eq!(bench.connect(SERVED)?, "remote:8080");
    Ok(())
}

#[test]
fn a_failed_change_leaves_the_old_policy() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let new = ["-o", "81", "-x", "192.0.2.0/24"];
    let captured = format!("proxy:15001 original {}", at(VIP4, UNSERVED));
    bench.attach(&[])?;
    let calls = bench.steps(&new)?;
    bench.detach()?;

    let mut refused = 0;
    for at in calls {
        // Anew each time: the first change replaces the programs, too.
        bench.attach(&[])?;
        let run = bench.attach_failing(at, &new)?;
        let show = bench.node.show(NAME)?;
        let policy = &show["record"]["policy"]["outbound_exclude_ports"];
        if run.code == Some(exit::OK) {
            // What fails once the new policy is in force is cleared away later.
            ensure!(bench.connect(UNSERVED)? == "ECONNREFUSED", "{at:?}: {run:?}");
            assert_eq!(policy, &serde_json::json!([81]), "{at:?}");
        } else {
            refused += 1;
            Bench::expect_failed(&run).with_context(|| format!("{at:?}"))?;
            ensure!(bench.connect(UNSERVED)? == captured, "{at:?}: {run:?}");
            assert_eq!(policy, &serde_json::json!([]), "{at:?}");
        }
        ensure!(show["effective"] == true, "{at:?}: {show:#}");
        // Whatever it was, the change can be made afterwards.
        bench.attach(&new)?;
        ensure!(bench.connect(UNSERVED)? == "ECONNREFUSED", "{at:?}");
        bench.detach()?;
    }
    // Of a share of them it may be none.
    ensure!(refused >= share::times(FEW, 0) / 4, "only {refused} failures came before the change");
    Ok(())
}
