//! `redirector trace`: what the programs decide, live, by aya-log; and the same in the agent's log.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home, target};
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

/// An instance that was attached without `--trace`: connections are made while programs are swapped, and each is captured.
fn swapped_for_a_while(tested: &TestPod) -> anyhow::Result<()> {
    let programs = |tested: &TestPod| -> anyhow::Result<Vec<Value>> {
        let hooks = tested.show()?["hooks"].as_array().cloned().context("hooks")?;
        Ok(hooks.iter().map(|hook| hook["program"].clone()).collect())
    };
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
    let pid = rustix::process::Pid::from_raw(tracer.pid().cast_signed()).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    retry::until("the programs to be swapped back", || {
        assert_eq!(tested.connect().ok()?, captured(SERVICE));
        let show = tested.show().ok()?;
        (programs(tested).ok()? != traced && show["effective"] == true).then_some(())
    })?;
    Ok(())
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
