//! `redirector trace`: what the programs decide, live, by aya-log; and the same in the agent's log.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home, target};

#[test]
fn decisions_are_told() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::new()?;
    let trace = ["trace", NAME];
    tested.attach(&[])?;
    tested.bpffs.run(&trace)?.refused(exit::USAGE, &["attached without --trace"])?;
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
