//! TPROXY mode and virtual interfaces change rules, routes and kernel parameters of the pod, and every attach its bound on
//! TIME_WAIT sockets: these come and go with them, however it ends.

use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::strace::{At, Fault, chosen, steps, with};
use redirector_tests::harness::world::netns::Netns;

const REDIRECT: [&str; 2] = ["-o", "81"];
/// Neither mark nor table are the usual ones.
const TPROXY: [&str; 6] = ["-m", "TPROXY", "-t", "7", "-r", "77"];
/// The interface need not be there.
const VIRTUAL: [&str; 2] = ["-k", "vnet0"];
/// Steps of each test at most, beside the last ten.
const MAX_STEPS: usize = 14;
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

/// A pod with a `netns` that the product changes.
struct Changed(TestPod);

impl Changed {
    fn new() -> anyhow::Result<Option<Self>> {
        require_root!("strace", "bpftool");
        Ok(Some(Self(TestPod::new()?)))
    }

    fn netns(&self) -> &Netns {
        &self.0.pod().netns
    }

    fn attach_by(&self, by: &[&str], flags: &[&str]) -> anyhow::Result<Run> {
        self.0.attach_by(by, flags)
    }

    fn attach(&self, flags: &[&str]) -> anyhow::Result<()> {
        self.0.attach(flags).map(drop)
    }

    fn detach(&self) -> anyhow::Result<()> {
        self.0.bpffs.run(&["detach", "--name", NAME, "--ignore-missing"])?.expect(exit::OK)?;
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

    /// Its bound on TIME_WAIT sockets, and that of a namespace that nobody has changed.
    fn time_wait_bounds(&self) -> anyhow::Result<[u32; 2]> {
        let read = |netns: &Netns| {
            netns.enter(|| {
                Ok(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_max_tw_buckets")?.trim().parse()?)
            })
        };
        Ok([read(self.netns())?, read(&self.0.fixture.world.client)?])
    }

    fn expect_nothing(&self) -> anyhow::Result<()> {
        let [bound, untouched] = self.time_wait_bounds()?;
        ensure!(bound == untouched, "tcp_max_tw_buckets is {bound}, was {untouched}");
        ensure!(self.changes()? == NONE, "left in the namespace: {:?}", self.changes()?);
        self.0.expect_nothing()
    }

    /// The steps of a command that succeeds.
    fn steps(&self, flags: &[&str]) -> anyhow::Result<Vec<At>> {
        let (run, steps) = steps("bpf", |by| self.attach_by(by, flags))?;
        run.expect(exit::OK)?;
        Ok(chosen(&steps, MAX_STEPS))
    }

    /// The changes that the policy in force needs. All must be there.
    fn expect_consistent(&self) -> anyhow::Result<Changes> {
        let policy = &self.0.show()?["record"]["policy"];
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
    let Some(changed) = Changed::new()? else { return Ok(()) };
    changed.attach(&TPROXY)?;
    assert_eq!(changed.changes()?, ALL);
    changed.0.refresh()?;
    assert_eq!(changed.changes()?, ALL);
    changed.detach()?;

    changed.attach(&REDIRECT)?;
    assert_eq!(changed.changes()?, NONE);
    changed.attach(&TPROXY)?;
    assert_eq!(changed.changes()?, ALL);
    let mark = changed.attach_by(&[], &["-m", "TPROXY", "-t", "8", "-r", "77"])?;
    mark.refused(exit::USAGE, &["-t", "-r", "detach"])?;
    changed.attach(&REDIRECT)?;
    assert_eq!(changed.changes()?, NONE);
    changed.attach(&TPROXY)?;
    changed.detach()?;

    // IPv6 comes later.
    let mut without_ipv6 = TPROXY.to_vec();
    without_ipv6.extend(["--ipv6", "off"]);
    changed.attach(&without_ipv6)?;
    assert_eq!(changed.changes()?, [1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0]);
    changed.attach(&TPROXY)?;
    assert_eq!(changed.changes()?, ALL);
    changed.detach()?;

    // Changes of others stay.
    let rule = "fwmark 0x7 lookup 77\n";
    changed.netns().ip(&format!("rule add {rule}"))?;
    changed.netns().sysctl(&[("ipv4/tcp_fwmark_accept", "1")])?;
    changed.attach(&TPROXY)?;
    changed.0.refresh()?;
    changed.0.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert_eq!(changed.changes()?, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    Ok(())
}

#[test]
fn time_wait_sockets_are_bounded() -> anyhow::Result<()> {
    let Some(changed) = Changed::new()? else { return Ok(()) };
    let set = |name: &str, value: &str| changed.netns().sysctl(&[(name, value)]);
    let expect = |bound: u32| -> anyhow::Result<()> {
        ensure!(changed.time_wait_bounds()?[0] == bound, "{:?}, not {bound}", changed.time_wait_bounds()?);
        Ok(())
    };
    set("ipv4/ip_local_port_range", "50000 50999")?;
    // Listed ports alone keep no port of the pod's choice, and a later policy may.
    changed.attach(&["-b", "8080"])?;
    expect(changed.time_wait_bounds()?[1])?;
    changed.attach(&[])?;
    expect(500)?;
    changed.0.refresh()?;
    changed.0.bpffs.run(&["upgrade", NAME])?.expect(exit::OK)?;
    changed.attach(&REDIRECT)?;
    expect(500)?;
    changed.detach()?;

    // Another's stays, and so does a lower one.
    changed.attach(&[])?;
    for bound in [600, 100] {
        set("ipv4/tcp_max_tw_buckets", &bound.to_string())?;
        changed.attach(&REDIRECT)?;
        changed.0.refresh()?;
        expect(bound)?;
        changed.0.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        expect(bound)?;
    }
    Ok(())
}

#[test]
fn routes_of_virtual_interfaces_are_those_of_the_policy() -> anyhow::Result<()> {
    if require_root() && kinds()?.len() == 1 {
        return Ok(());
    }
    let Some(changed) = Changed::new()? else { return Ok(()) };
    let routes = || -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("ip");
        command.args(["-n", changed.netns().name(), "route", "show", "table", "15001", "scope", "host"]);
        Ok(run(&mut command, "")?
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned())
            .collect())
    };
    changed.attach(&VIRTUAL)?;
    assert_eq!(changed.changes()?, OF_VIRTUAL);
    changed.0.refresh()?;
    assert_eq!(changed.changes()?, OF_VIRTUAL);
    changed.attach(&["-k", "vnet0", "-i", "10.96.0.0/16,10.94.0.0/16"])?;
    assert_eq!(routes()?, ["10.94.0.0/16", "10.96.0.0/16"]);
    // IPv6 has no network, and no rule.
    assert_eq!(changed.changes()?, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    changed.attach(&["-k", "vnet0", "-i", "10.96.0.0/16,10.95.0.0/16"])?;
    assert_eq!(routes()?, ["10.95.0.0/16", "10.96.0.0/16"]);
    changed.attach(&REDIRECT)?;
    assert_eq!(changed.changes()?, NONE);
    changed.attach(&VIRTUAL)?;
    // Somebody else's stay.
    changed.netns().ip("rule add iif vnet1 lookup 15001\nroute add local 10.1.2.3 dev lo table 15001\n")?;
    changed.detach()?;
    assert_eq!(routes()?, ["10.1.2.3"]);

    let both = changed.attach_by(&[], &["-k", "vnet0", "-m", "TPROXY"])?;
    both.refused(exit::USAGE, &["-k", "TPROXY"])?;
    let explained = ["explain", "--to", "192.0.2.1:80", "-k", "vnet0", "-m", "TPROXY"];
    changed.0.bpffs.run(&explained)?.refused(exit::USAGE, &["-k", "TPROXY"])?;
    changed.0.bpffs.expect_empty()
}

/// Where IPv6 is switched off, as container runtimes do in clusters without it, nothing is made for it until it comes.
#[test]
fn without_ipv6_in_the_pod() -> anyhow::Result<()> {
    let Some(changed) = Changed::new()? else { return Ok(()) };
    // With IPv6 anywhere but on lo, what must be routed over lo would go around the proxy.
    changed.netns().sysctl(&[("ipv6/conf/lo/disable_ipv6", "1")])?;
    let kinds = kinds()?;
    for (flags, ..) in &kinds {
        changed.attach_by(&[], flags)?.refused(exit::CANNOT, &["IPv6", "lo", "--ipv6 off"])?;
        changed.expect_nothing()?;
    }
    changed.netns().sysctl(&[("ipv6/conf/lo/disable_ipv6", "0")])?;

    let switch = |off: &str| changed.netns().sysctl(&[("ipv6/conf/all/disable_ipv6", off)]);
    // The rules and routes of IPv6, and its parameter.
    let without = |mut of: Changes| {
        [1, 3, 6, 8, 10].into_iter().for_each(|of_ipv6| of[of_ipv6] = 0);
        of
    };
    for (flags, all, _) in kinds {
        switch("1")?;
        let run = changed.attach_by(&[], flags)?.expect(exit::OK)?;
        ensure!(run.stderr.contains("IPv6") && run.stderr.contains("refresh"), "{}", run.stderr);
        assert_eq!(changed.changes()?, without(all));
        changed.0.refresh()?;
        switch("0")?;
        changed.0.refresh()?;
        assert_eq!(changed.changes()?, all);
        changed.detach()?;
    }
    Ok(())
}

/// A table that somebody else uses would lead captured traffic around the proxy.
#[test]
fn a_table_that_leads_elsewhere_is_refused() -> anyhow::Result<()> {
    let Some(changed) = Changed::new()? else { return Ok(()) };
    for (flags, _, [table, remedy]) in kinds()? {
        let routes = ["default via 10.77.0.1", "throw 10.96.0.0/16", "fd00:96::/64 via fd00:77:0::1"];
        for route in share::of(routes.into()) {
            let line = format!("{route} table {table}\n");
            changed.netns().ip(&format!("route add {line}"))?;
            let text = route.split(' ').find(|word| word.contains(['/', ':'])).unwrap_or("default");
            changed.attach_by(&[], flags)?.refused(exit::FAILED, &[table, text, remedy])?;
            changed.expect_nothing()?;
            // Nor does an instance change to such a policy.
            changed.attach(&REDIRECT)?;
            changed.attach_by(&[], flags)?.refused(exit::FAILED, &[table, text, remedy])?;
            ensure!(
                changed.expect_consistent()? == NONE && changed.changes()? == NONE,
                "{:?}",
                changed.changes()?
            );
            changed.netns().ip(&format!("route del {line}"))?;
            changed.attach(flags)?;
            changed.detach()?;
        }
    }
    Ok(())
}

#[test]
fn a_killed_attach() -> anyhow::Result<()> {
    let Some(changed) = Changed::new()? else { return Ok(()) };
    for (flags, ..) in share::of(kinds()?) {
        let calls = changed.steps(flags)?;
        changed.detach()?;
        for (turn, at) in calls.into_iter().enumerate() {
            with(Fault::Kill, at, |by| changed.attach_by(by, flags))?;
            if turn % 2 == 0 {
                changed.attach(flags).with_context(|| format!("{at:?}"))?;
                ensure!(changed.expect_consistent()? != NONE, "{at:?}");
            } else if changed.0.bpffs.list()?.is_empty() {
                changed.expect_nothing().with_context(|| format!("{at:?}"))?;
            }
            changed.detach().with_context(|| format!("{at:?}"))?;
        }
    }
    Ok(())
}

/// Killed, or failed, on the way to TPROXY mode or a virtual interface, and back.
#[test]
fn a_change_that_does_not_end() -> anyhow::Result<()> {
    let Some(changed) = Changed::new()? else { return Ok(()) };
    let changes: [(&[&str], &[&str]); 4] =
        [(&REDIRECT, &TPROXY), (&TPROXY, &REDIRECT), (&REDIRECT, &VIRTUAL), (&VIRTUAL, &TPROXY)];
    let possible = if kinds()?.len() == 1 { 2 } else { 4 };
    for (from, to) in share::of(changes[..possible].to_vec()) {
        changed.attach(from)?;
        let before = changed.changes()?;
        let calls = changed.steps(to)?;
        changed.detach()?;
        for (turn, at) in calls.into_iter().enumerate() {
            let fault = if turn % 2 == 0 { Fault::Kill } else { Fault::Fail };
            let what = || format!("{fault:?} {at:?} of {from:?} -> {to:?}");
            changed.attach(from).with_context(what)?;
            let run = with(fault, at, |by| changed.attach_by(by, to))?;
            let in_force = changed.expect_consistent().with_context(what)?;
            if fault == Fault::Fail && run.code != Some(exit::OK) {
                ensure!(in_force == before, "{}: another policy is in force", what());
                ensure!(changed.changes()? == before, "{}: left: {:?}", what(), changed.changes()?);
            }
            // The next command makes it good, whatever it is.
            match turn / 2 % 3 {
                0 => changed.attach(from).with_context(what)?,
                1 => changed.attach(to).with_context(what)?,
                _ => drop(changed.0.refresh().with_context(what)?),
            }
            let in_force = changed.expect_consistent().with_context(what)?;
            ensure!(changed.changes()? == in_force, "{}: left: {:?}", what(), changed.changes()?);
            changed.detach().with_context(what)?;
        }
    }
    Ok(())
}
