//! `redirector trace`: what the programs decide, live, by aya-log; and the same in the agent's log.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::Context;
use serde_json::Value;

use redirector_tests::harness::pair::fixture::{By, Side};
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::process::Daemon;
use redirector_tests::harness::product::agent::{Agent, Home, target};
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::exit;
use redirector_tests::harness::requirements::require_root;
use redirector_tests::harness::retry;
use redirector_tests::harness::world::{APP, VIP4, at};

const NAME: &str = "pod";

fn connect(side: &Side) -> anyhow::Result<()> {
    let seen = side.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
    assert!(seen[0].summary().starts_with("proxy:15001"), "{seen:?}");
    Ok(())
}

#[test]
fn decisions_are_told() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    let trace = ["trace", NAME];
    node.attach(side.pod(), NAME, &[])?.expect(exit::OK)?;
    node.run(&trace)?.refused(exit::USAGE, &["attached without --trace"])?;
    let again = node.attach(side.pod(), NAME, &["--trace"])?.expect(exit::OK)?;
    assert!(again.stderr.contains("was attached without it"), "{again:?}");
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;

    node.attach(side.pod(), NAME, &["--trace"])?.expect(exit::OK)?;
    // Before anybody looks: not told later as if it were now.
    let before = Ipv4Addr::new(10, 96, 0, 77);
    side.pod().observe(APP, &[Scenario::to(at(before, SERVED))])?;
    let tracer = Daemon::start("trace", &mut node.command(&[], &trace))?;
    tracer.wait_for(0, |line| line.contains("waiting").then_some(()))?;
    connect(&side)?;
    let to = format!("{VIP4}:{SERVED}");
    let event = tracer.wait_for(0, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["destination"] == to.as_str()).then_some(event)
    })?;
    assert!(!tracer.lines().iter().any(|line| line.contains(&before.to_string())), "{:?}", tracer.lines());
    assert_eq!((&event["verdict"], &event["rule"]), (&"outbound".into(), &"out_all".into()), "{event}");
    // With the programs it ends by itself.
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    tracer.wait_for(0, |line| line.contains("are gone").then_some(()))?;

    // And with its reader, as `| head -1` is; or when it cannot be written any more, which is an error.
    node.attach(side.pod(), NAME, &["--trace"])?.expect(exit::OK)?;
    let full = File::options().write(true).open("/dev/full")?;
    for (to, code) in [(Stdio::piped(), exit::OK), (full.into(), exit::FAILED)] {
        let mut child = node.command(&[], &trace).stdout(to).stderr(Stdio::null()).spawn()?;
        drop(child.stdout.take());
        let ended = retry::until("the command to end", || {
            connect(&side).ok()?;
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
    if !require_root() {
        return Ok(());
    }
    let (node, home, side) = (Node::new()?, Home::new()?, Side::new(By::Nobody)?);
    home.write("shop", &target(side.pod(), ""))?;
    // Agents under test log at debug.
    let agent = Agent::start(&node, &home)?;
    agent.wait_for(0, "attach done")?;
    connect(&side)?;
    agent.wait_for(0, "decided")?;
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("decided")).context("a line")?;
    assert!(line.contains("out_all") && line.contains(&format!("{VIP4}:{SERVED}")), "{line}");
    Ok(())
}
