//! TPROXY mode and virtual interfaces change rules, routes and kernel parameters of the pod: these come and go with
//! them, however it ends.

use std::process::Command;

use anyhow::{Context, ensure};

use redirector_tests::harness::command::run;
use redirector_tests::harness::kernel;
use redirector_tests::harness::product::bpffs::{Node, has_or_refuses};
use redirector_tests::harness::product::objects::{has_lo6, links_of};
use redirector_tests::harness::product::{Run, exit};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::share;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};
use redirector_tests::harness::world::World;
use redirector_tests::harness::world::netns::Netns;

const NAME: &str = "pod";
const REDIRECT: [&str; 2] = ["-o", "81"];
/// Neither mark nor table are the usual ones.
const TPROXY: [&str; 6] = ["-m", "TPROXY", "-t", "7", "-r", "77"];
/// The interface need not be there.
const VIRTUAL: [&str; 2] = ["-k", "vnet0"];
/// Steps of each test at most, beside the last ten.
const FEW: usize = 14;
/// Rules, routes and the parameters of TPROXY mode; rules and routes of a virtual interface.
type Changes = [usize; 11];
const ALL: Changes = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0];
const OF_VIRTUAL: Changes = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1];
const NONE: Changes = [0; 11];

/// A kind of policy that changes something: its flags, what they change, its table and what to do about routes in that.
type Kind = (&'static [&'static str], Changes, [&'static str; 2]);

/// All that this kernel has.
fn kinds() -> anyhow::Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = vec![(&TPROXY, ALL, ["77", "-r"])];
    if has_or_refuses(kernel::TELLS_INTERFACES, &VIRTUAL)? {
        kinds.push((&VIRTUAL, OF_VIRTUAL, ["15001", "remove"]));
    }
    Ok(kinds)
}

struct Bench {
    node: Node,
    world: World,
}

impl Bench {
    fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() || ["strace", "bpftool"].iter().any(|name| require_program(name).is_none()) {
            return Ok(None);
        }
        Ok(Some(Self { node: Node::new()?, world: World::new()? }))
    }

    fn netns(&self) -> &Netns {
        &self.world.pod().netns
    }

    fn attach_by(&self, by: &[&str], flags: &[&str]) -> anyhow::Result<Run> {
        self.node.attach_by(by, self.world.pod(), NAME, flags)
    }

    fn attach(&self, flags: &[&str]) -> anyhow::Result<()> {
        self.attach_by(&[], flags)?.expect(exit::OK).map(drop)
    }

    fn detach(&self) -> anyhow::Result<()> {
        self.node.run(&["detach", "--name", NAME, "--ignore-missing"])?.expect(exit::OK)?;
        self.expect_nothing()
    }

    /// How many rules and routes there are, of both families, and what the parameters are.
    fn changes(&self) -> anyhow::Result<Changes> {
        let ask = |arguments: &str, word: &str| -> anyhow::Result<usize> {
            let words = arguments.split(' ');
            // A table that was never used is an error.
            let text =
                run(Command::new("ip").args(["-n", self.netns().name()]).args(words), "").unwrap_or_default();
            // Without /etc/protocols, which minimal systems have not.
            Ok(text.replace("ipproto-6", "tcp").matches(word).count())
        };
        let parameter = |path: &str| -> anyhow::Result<usize> {
            let path = format!("/proc/sys/net/{path}");
            Ok(self.netns().enter(|| Ok(std::fs::read_to_string(path)?))?.trim().parse()?)
        };
        Ok([
            ask("-4 rule show", "fwmark 0x7 lookup 77")?,
            ask("-6 rule show", "fwmark 0x7 lookup 77")?,
            ask("-4 route show table 77", "local default dev lo")?,
            ask("-6 route show table 77", "local default dev lo")?,
            parameter("ipv4/tcp_fwmark_accept")?,
            parameter("ipv4/fwmark_reflect")?,
            parameter("ipv6/fwmark_reflect")?,
            ask(
                "-4 rule show",
                "2:\tfrom all fwmark 0/0x40000000 iif vnet0 [detached] ipproto tcp lookup 15001 proto 151",
            )?,
            ask(
                "-6 rule show",
                "2:\tfrom all fwmark 0/0x40000000 iif vnet0 [detached] ipproto tcp lookup 15001 proto 151",
            )?,
            ask("-4 route show table 15001", "local default dev lo proto 151")?,
            ask("-6 route show table 15001", "local default dev lo proto 151")?,
        ])
    }

    fn expect_nothing(&self) -> anyhow::Result<()> {
        self.node.expect_empty()?;
        ensure!(self.changes()? == NONE, "left in the namespace: {:?}", self.changes()?);
        ensure!(links_of(self.world.pod())? == [0, 0], "programs are attached");
        ensure!(!has_lo6(self.netns())?, "::6 is left on lo");
        Ok(())
    }

    /// The steps of a command that succeeds.
    fn steps(&self, flags: &[&str]) -> anyhow::Result<Vec<At>> {
        let (run, steps) = steps("bpf", |by| self.attach_by(by, flags))?;
        run.expect(exit::OK)?;
        Ok(chosen(&steps, FEW))
    }

    /// What the policy in force needs; all of it must be there.
    fn expect_consistent(&self) -> anyhow::Result<Changes> {
        let policy = &self.node.show(NAME)?["record"]["policy"];
        let needed = match (
            policy["mode"] == "tproxy",
            policy["virtual_interfaces"] == serde_json::json!(["vnet0"]),
        ) {
            (true, _) => ALL,
            (_, true) => OF_VIRTUAL,
            _ => NONE,
        };
        let there = self.changes()?;
        let lacks = needed.iter().zip(there).any(|(needed, there)| *needed > there);
        ensure!(!lacks, "{there:?}, but {needed:?} is needed");
        Ok(needed)
    }
}

#[test]
fn it_comes_and_goes() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    bench.attach(&TPROXY)?;
    assert_eq!(bench.changes()?, ALL);
    bench.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert_eq!(bench.changes()?, ALL);
    bench.detach()?;

    bench.attach(&REDIRECT)?;
    assert_eq!(bench.changes()?, NONE);
    bench.attach(&TPROXY)?;
    assert_eq!(bench.changes()?, ALL);
    let mark = bench.attach_by(&[], &["-m", "TPROXY", "-t", "8", "-r", "77"])?;
    mark.refused(exit::USAGE, &["-t", "-r", "detach"])?;
    bench.attach(&REDIRECT)?;
    assert_eq!(bench.changes()?, NONE);
    bench.attach(&TPROXY)?;
    bench.detach()?;

    // IPv6 comes later.
    let mut without_ipv6 = TPROXY.to_vec();
    without_ipv6.extend(["--ipv6", "off"]);
    bench.attach(&without_ipv6)?;
    assert_eq!(bench.changes()?, [1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0]);
    bench.attach(&TPROXY)?;
    assert_eq!(bench.changes()?, ALL);
    bench.detach()?;

    // What was there before stays.
    let rule = "fwmark 0x7 lookup 77\n";
    bench.netns().ip(&format!("rule add {rule}"))?;
    bench.netns().sysctl(&[("ipv4/tcp_fwmark_accept", "1")])?;
    bench.attach(&TPROXY)?;
    bench.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    bench.node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert_eq!(bench.changes()?, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    Ok(())
}

#[test]
fn routes_of_virtual_interfaces_are_those_of_the_policy() -> anyhow::Result<()> {
    if require_root() && kinds()?.len() == 1 {
        return Ok(());
    }
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let routes = || -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("ip");
        command.args(["-n", bench.netns().name(), "route", "show", "table", "15001", "scope", "host"]);
        Ok(run(&mut command, "")?
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned())
            .collect())
    };
    bench.attach(&VIRTUAL)?;
    assert_eq!(bench.changes()?, OF_VIRTUAL);
    bench.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert_eq!(bench.changes()?, OF_VIRTUAL);
    bench.attach(&["-k", "vnet0", "-i", "10.96.0.0/16,10.94.0.0/16"])?;
    assert_eq!(routes()?, ["10.94.0.0/16", "10.96.0.0/16"]);
    // IPv6 has no network, and no rule.
    assert_eq!(bench.changes()?, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    bench.attach(&["-k", "vnet0", "-i", "10.96.0.0/16,10.95.0.0/16"])?;
    assert_eq!(routes()?, ["10.95.0.0/16", "10.96.0.0/16"]);
    bench.attach(&REDIRECT)?;
    assert_eq!(bench.changes()?, NONE);
    bench.attach(&VIRTUAL)?;
    // Somebody else's stay.
    bench.netns().ip("rule add iif vnet1 lookup 15001\nroute add local 10.1.2.3 dev lo table 15001\n")?;
    bench.detach()?;
    assert_eq!(routes()?, ["10.1.2.3"]);

    let both = bench.attach_by(&[], &["-k", "vnet0", "-m", "TPROXY"])?;
    both.refused(exit::USAGE, &["-k", "TPROXY"])?;
    let explained = ["explain", "--to", "192.0.2.1:80", "-k", "vnet0", "-m", "TPROXY"];
    bench.node.run(&explained)?.refused(exit::USAGE, &["-k", "TPROXY"])?;
    bench.node.expect_empty()
}

/// Where IPv6 is switched off, as container runtimes do in clusters without it, nothing is made for it until it comes.
#[test]
fn without_ipv6_in_the_pod() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    // With IPv6 anywhere but on lo, what must be routed over lo would go around the proxy.
    bench.netns().sysctl(&[("ipv6/conf/lo/disable_ipv6", "1")])?;
    let kinds = kinds()?;
    for (flags, ..) in &kinds {
        bench.attach_by(&[], flags)?.refused(exit::CANNOT, &["IPv6", "lo", "--ipv6 off"])?;
        bench.expect_nothing()?;
    }
    bench.netns().sysctl(&[("ipv6/conf/lo/disable_ipv6", "0")])?;

    let switch = |off: &str| bench.netns().sysctl(&[("ipv6/conf/all/disable_ipv6", off)]);
    // The rules and routes of IPv6, and its parameter.
    let without = |mut of: Changes| {
        [1, 3, 6, 8, 10].into_iter().for_each(|of_ipv6| of[of_ipv6] = 0);
        of
    };
    for (flags, all, _) in kinds {
        switch("1")?;
        let run = bench.attach_by(&[], flags)?.expect(exit::OK)?;
        ensure!(run.stderr.contains("IPv6") && run.stderr.contains("refresh"), "{}", run.stderr);
        assert_eq!(bench.changes()?, without(all));
        bench.node.run(&["refresh", NAME])?.expect(exit::OK)?;
        switch("0")?;
        bench.node.run(&["refresh", NAME])?.expect(exit::OK)?;
        assert_eq!(bench.changes()?, all);
        bench.detach()?;
    }
    Ok(())
}

/// A table that somebody else uses would lead captured traffic around the proxy.
#[test]
fn a_table_that_leads_elsewhere_is_refused() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    for (flags, _, [table, remedy]) in kinds()? {
        let routes = ["default via 10.77.0.1", "throw 10.96.0.0/16", "fd00:96::/64 via fd00:77:0::1"];
        for route in share::of(routes.into()) {
            let line = format!("{route} table {table}\n");
            bench.netns().ip(&format!("route add {line}"))?;
            let text = route.split(' ').find(|word| word.contains(['/', ':'])).unwrap_or("default");
            bench.attach_by(&[], flags)?.refused(exit::FAILED, &[table, text, remedy])?;
            bench.expect_nothing()?;
            // Nor does an instance change to such a policy.
            bench.attach(&REDIRECT)?;
            bench.attach_by(&[], flags)?.refused(exit::FAILED, &[table, text, remedy])?;
            ensure!(bench.expect_consistent()? == NONE && bench.changes()? == NONE, "{:?}", bench.changes()?);
            bench.netns().ip(&format!("route del {line}"))?;
            bench.attach(flags)?;
            bench.detach()?;
        }
    }
    Ok(())
}

#[test]
fn a_killed_attach() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    for (flags, ..) in share::of(kinds()?) {
        let calls = bench.steps(flags)?;
        bench.detach()?;
        for (turn, at) in calls.into_iter().enumerate() {
            with(Fault::Kill, at, |by| bench.attach_by(by, flags))?;
            if turn % 2 == 0 {
                bench.attach(flags).with_context(|| format!("{at:?}"))?;
                ensure!(bench.expect_consistent()? != NONE, "{at:?}");
            } else if bench.node.list()?.is_empty() {
                bench.expect_nothing().with_context(|| format!("{at:?}"))?;
            }
            bench.detach().with_context(|| format!("{at:?}"))?;
        }
    }
    Ok(())
}

/// Killed, or failed, on the way to TPROXY mode or a virtual interface, and back.
#[test]
fn a_change_that_does_not_end() -> anyhow::Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let changes: [(&[&str], &[&str]); 4] =
        [(&REDIRECT, &TPROXY), (&TPROXY, &REDIRECT), (&REDIRECT, &VIRTUAL), (&VIRTUAL, &TPROXY)];
    let possible = if kinds()?.len() == 1 { 2 } else { 4 };
    for (from, to) in share::of(changes[..possible].to_vec()) {
        bench.attach(from)?;
        let before = bench.changes()?;
        let calls = bench.steps(to)?;
        bench.detach()?;
        for (turn, at) in calls.into_iter().enumerate() {
            let fault = if turn % 2 == 0 { Fault::Kill } else { Fault::Fail };
            let what = || format!("{fault:?} {at:?} of {from:?} -> {to:?}");
            bench.attach(from).with_context(what)?;
            let run = with(fault, at, |by| bench.attach_by(by, to))?;
            let in_force = bench.expect_consistent().with_context(what)?;
            if fault == Fault::Fail && run.code != Some(exit::OK) {
                ensure!(in_force == before, "{}: another policy is in force", what());
                ensure!(bench.changes()? == before, "{}: left: {:?}", what(), bench.changes()?);
            }
            // The next command makes it good, whatever it is.
            match turn / 2 % 3 {
                0 => bench.attach(from).with_context(what)?,
                1 => bench.attach(to).with_context(what)?,
                _ => drop(bench.node.run(&["refresh", NAME])?.expect(exit::OK).with_context(what)?),
            }
            let in_force = bench.expect_consistent().with_context(what)?;
            ensure!(bench.changes()? == in_force, "{}: left: {:?}", what(), bench.changes()?);
            bench.detach().with_context(what)?;
        }
    }
    Ok(())
}
