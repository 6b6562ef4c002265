//! `redirector trace`: what the programs decide, live; and the same in the agent's log.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::scenario::Udp;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::product::agent::{Agent, Home, target};
use redirector_tests::harness::server::any4;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[test]
fn decisions_are_told() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::new()?;
    let trace = ["trace", NAME];
    tested.attach(&[])?;
    swapped_for_a_while(&tested)?;
    let again = tested.attach(&["--trace"])?;
    assert!(again.stderr.contains("was attached without it"), "{again:?}");
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;

    tested.attach(&["--trace"])?;
    // Before anybody looks: not told later as if it were now.
    let before = Ipv4Addr::new(10, 96, 0, 77);
    tested.pod().observe(APP, &[Scenario::to(at(before, SERVED))])?;
    let tracer = Daemon::start("trace", &mut tested.bpffs.command(&[], &trace))?;
    tracer.wait_for(0, |line| line.contains("waiting").then_some(()))?;
    assert_eq!(tested.connect()?, captured(SERVICE));
    let to = format!("{VIP4}:{SERVED}");
    let event = tracer.wait_for(0, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["destination"] == to.as_str()).then_some(event)
    })?;
    assert!(!tracer.lines().iter().any(|line| line.contains(&before.to_string())), "{:?}", tracer.lines());
    assert_eq!((&event["verdict"], &event["rule"]), (&"outbound".into(), &"out_all".into()), "{event}");
    // With the programs it ends by itself.
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tracer.wait_for(0, |line| line.contains("are gone").then_some(()))?;

    // And with its reader, as `| head -1` is; or when it cannot be written any more, which is an error.
    tested.attach(&["--trace"])?;
    let full = File::options().write(true).open("/dev/full")?;
    for (to, code) in [(Stdio::piped(), exit::OK), (full.into(), exit::FAILED)] {
        let mut child = tested.bpffs.command(&[], &trace).stdout(to).stderr(Stdio::null()).spawn()?;
        drop(child.stdout.take());
        let ended = retry::until("the command to end", || {
            tested.connect().ok()?;
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            child.kill()?;
        }
        assert_eq!(ended.context("it goes on for nobody")?.code(), Some(code));
    }
    Ok(())
}

/// What troubles the programs is told, too: the kernel registers no listener of MPTCP.
#[test]
fn troubles_are_told() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::with(&Setup { proxy: Vec::new(), ..Setup::default() })?;
    tested.attach(&["--trace"])?;
    let tracer = Daemon::start("trace", &mut tested.bpffs.command(&[], &["trace", NAME]))?;
    tracer.wait_for(0, |line| line.contains("waiting").then_some(()))?;
    let listener = Listen { mptcp: true, ..Listen::on(any4(OUTBOUND)) };
    let _proxy = tested.pod().serve(PROXY, "proxy", vec![listener])?;
    tracer
        .wait_for(0, |line| line.contains("registers no listener of this kind (port 15001)").then_some(()))?;
    Ok(())
}

/// An instance that was attached without `--trace`: connections are made while programs are swapped, and each is captured.
fn swapped_for_a_while(tested: &TestPod) -> anyhow::Result<()> {
    let before = programs(tested)?;
    let arguments =
        ["trace", NAME, "--to", "10.96.0.0/16", "--port", &SERVED.to_string(), "--verdict", "outbound"];
    let tracer = Daemon::start("trace", &mut tested.bpffs.command(&[], &arguments))?;
    let is_waiting = || tracer.lines().iter().any(|line| line.contains("waiting"));
    retry::until("the programs to be swapped", || {
        assert_eq!(tested.connect().ok()?, captured(SERVICE));
        is_waiting().then_some(())
    })?;
    let other = at(Ipv4Addr::new(10, 99, 0, 1), SERVED);
    tested.pod().observe(APP, &[Scenario::to(other)])?;
    assert_eq!(tested.connect()?, captured(SERVICE));
    tracer.wait_for(0, |line| line.contains("out_all").then_some(()))?;
    assert!(!tracer.lines().iter().any(|line| line.contains("10.99.0.1")), "{:?}", tracer.lines());
    assert_ne!(programs(tested)?, before);
    let traced = programs(tested)?;
    kill(&tracer, Signal::TERM)?;
    retry::until("the programs to be swapped back", || {
        assert_eq!(tested.connect().ok()?, captured(SERVICE));
        let show = tested.show().ok()?;
        (programs(tested).ok()? != traced && show["effective"] == true).then_some(())
    })?;
    Ok(())
}

/// Who, from where to where and where instead, by which rule; refusals and datagrams, too.
#[test]
fn what_an_event_tells() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&["--redirect-dns", "--capture-all-dns"])?;
    let tracer = tracer(&tested, &["trace", NAME])?;
    assert_eq!(tested.connect()?, captured(SERVICE));
    tested.fixture.world.connect_to_pod()?;
    tested.pod().connect(at([10, 98, 0, 1], SERVED))?;
    for udp in [Udp::Connect, Udp::SendTo] {
        let to = Scenario::to(at(VIP4, 53)).named(format!("{udp:?}"));
        tested.pod().observe(APP, &[Scenario { udp: Some(udp), ..to }])?;
    }
    let to_service = find(&tracer, |event| event["destination"] == format!("{VIP4}:{SERVED}").as_str())?;
    assert_eq!(
        (&to_service["event"], &to_service["uid"]),
        (&"connect".into(), &APP.uid.into()),
        "{to_service}"
    );
    assert!(to_service["pid"].as_u64().is_some_and(|pid| pid > 1), "{to_service}");
    assert!(to_service["comm"].as_str().is_some_and(|comm| !comm.is_empty()), "{to_service}");
    let cgroup = tested.pod().cgroup.directory().join("app");
    assert_eq!(to_service["cgroup"].as_str(), cgroup.to_str(), "{to_service}");
    let to = to_service["redirected"].as_str().context("redirected")?;
    assert!(to.starts_with("127.") && to.ends_with(&format!(":{OUTBOUND}")), "{to_service}");
    assert!(to_service["time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')));
    let arrived = find(&tracer, |event| event["event"] == "accept" && event["verdict"] == "inbound")?;
    assert!(arrived["pid"].is_null() && arrived["rule"] == "in_all", "{arrived}");
    assert!(
        arrived["redirected"].as_str().is_some_and(|to| to.ends_with(&format!(":{INBOUND}"))),
        "{arrived}"
    );
    let unreachable = find(&tracer, |event| event["destination"] == format!("10.98.0.1:{SERVED}").as_str())?;
    assert_eq!(
        (&unreachable["refused"], &unreachable["errno"]),
        (&"refused_by_route".into(), &"EHOSTUNREACH".into())
    );
    for event in ["connect", "send"] {
        let query = find(&tracer, |it| it["protocol"] == "udp" && it["event"] == event)?;
        assert_eq!((&query["verdict"], &query["rule"]), (&"dns".into(), &"out_dns".into()), "{query}");
        assert!(query["redirected"].as_str().is_some_and(|to| to.ends_with(":15053")), "{query}");
    }
    Ok(())
}

fn tracer(tested: &TestPod, arguments: &[&str]) -> anyhow::Result<Daemon> {
    let tracer = Daemon::start("trace", &mut tested.bpffs.command(&[], arguments))?;
    tracer.wait_for(0, |line| line.contains("waiting").then_some(()))?;
    Ok(tracer)
}

fn find(tracer: &Daemon, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    tracer.wait_for(0, |line| serde_json::from_str(line).ok().filter(|event| wanted(event)))
}

/// Killed, a trace leaves its programs in; status says so, and the next command puts the usual ones back.
#[test]
fn a_killed_trace_is_mended() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let findings = |tested: &TestPod| -> anyhow::Result<String> {
        Ok(tested.bpffs.run(&["status", NAME])?.looked()?.stdout)
    };
    let ours = programs(&tested)?;
    for mender in [["refresh", NAME], ["upgrade", NAME]] {
        let first = tracer(&tested, &["trace", NAME])?;
        let second = tracer(&tested, &["trace", NAME])?;
        kill(&first, Signal::KILL)?;
        // Somebody still reads.
        tested.bpffs.run(&["refresh", NAME])?.expect(exit::OK)?;
        assert!(!findings(&tested)?.contains("trace_killed"));
        assert_eq!(tested.connect()?, captured(SERVICE));
        second.wait_for(0, |line| line.contains("out_all").then_some(()))?;
        kill(&second, Signal::KILL)?;
        retry::until("the lock of the killed to end", || {
            findings(&tested).ok()?.contains("trace_killed").then_some(())
        })?;
        let telling = programs(&tested)?;
        tested.bpffs.run(&mender)?.expect(exit::OK)?;
        assert!(!findings(&tested)?.contains("trace_killed"), "{mender:?}");
        let mended = programs(&tested)?;
        assert_ne!(mended, telling, "{mender:?}");
        // The entry of the namespace is its own.
        let shared = mended.iter().filter(|program| ours.contains(program)).count();
        assert_eq!(shared, ours.len() - 1, "{mended:?} {ours:?}");
        assert_eq!(tested.connect()?, captured(SERVICE));
    }
    Ok(())
}

fn kill(tracer: &Daemon, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(tracer.pid().cast_signed()).context("a pid")?;
    Ok(kill_process(pid, signal)?)
}

fn programs(tested: &TestPod) -> anyhow::Result<Vec<Value>> {
    let hooks = tested.show()?["hooks"].as_array().cloned().context("hooks")?;
    Ok(hooks.iter().map(|hook| hook["program"].clone()).collect())
}

/// At debug the agent attaches so that decisions are told, and tells them.
#[test]
fn the_agent_tells_them_at_debug() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, fixture) = (Bpffs::new()?, Home::new()?, Fixture::new(Redirection::None)?);
    home.write("shop", &target(fixture.pod(), ""))?;
    // Agents under test log at debug.
    let agent = Agent::start(&bpffs, &home)?;
    agent.wait_for(0, "attach done")?;
    assert_eq!(fixture.pod().connect(SERVICE)?, captured(SERVICE));
    agent.wait_for(0, "decided")?;
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("decided")).context("a line")?;
    assert!(line.contains("out_all") && line.contains(&format!("{VIP4}:{SERVED}")), "{line}");
    Ok(())
}
