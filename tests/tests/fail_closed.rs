//! What cannot be recorded is refused, never let through around the proxy or to it without its original destination;
//! and the exposed map holds an entry exactly as long as the client's connection lives.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use redirector_tests::matrix::SERVED;
use redirector_tests::node::Node;
use redirector_tests::pod::{APP, VIP4, at};
use redirector_tests::privileged::{require_program, require_root};
use redirector_tests::probe::hold::Held;
use redirector_tests::redirector::exit;
use redirector_tests::retry;
use redirector_tests::scenario::Scenario;
use redirector_tests::side::{By, Side};
use redirector_tests::{command, kernel};

const NAME: &str = "pod";

fn attached(arguments: &[&str]) -> anyhow::Result<Option<(Node, Side)>> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(None);
    }
    let (node, side) = (Node::new()?, Side::new(By::Nobody)?);
    node.attach(side.pod(), NAME, arguments)?.expect(exit::OK)?;
    Ok(Some((node, side)))
}

/// What connect() returned.
fn connect(side: &Side) -> anyhow::Result<String> {
    let seen = side.pod().observe(APP, &[Scenario::to(at(VIP4, SERVED))])?;
    let connect = seen.first().context("an observation")?.connect.as_ref().context("a connect()")?;
    Ok(connect.to_string())
}

fn counter(node: &Node, rule: &str) -> anyhow::Result<u64> {
    let show = node.show(NAME)?;
    let counters = show["counters"].as_array().context("counters")?;
    let found = counters.iter().find(|counter| counter["rule"] == rule).context("the counter")?;
    found["connections"].as_u64().context("a number")
}

/// The entries of the exposed map.
fn flows(node: &Node) -> anyhow::Result<Vec<Value>> {
    let run = node.run(&["original-dst", NAME])?.expect(exit::OK)?;
    serde_json::from_str(&run.stdout).context(run.stdout)
}

#[test]
fn as_many_connections_as_allowed_and_no_more() -> anyhow::Result<()> {
    let Some((node, side)) = attached(&["--max-connections", "2"])? else { return Ok(()) };
    let place = side.pod().place(APP)?;
    let first = Held::start(&place, at(VIP4, SERVED))?;
    let _second = Held::start(&place, at(VIP4, SERVED))?;
    assert_eq!(connect(&side)?, kernel::refusal("ENOBUFS"));
    assert_eq!(counter(&node, "refused_full")?, 1);
    drop(first);
    retry::until("the entry of the ended connection to go", || {
        flows(&node).is_ok_and(|flows| flows.len() == 1).then_some(())
    })?;
    assert_eq!(connect(&side)?, "ok");
    Ok(())
}

/// Room that the count says is there, and is not: the connection is refused on lo.
#[test]
fn an_original_destination_that_cannot_be_stored() -> anyhow::Result<()> {
    let Some((node, side)) = attached(&["--max-connections", "1"])? else { return Ok(()) };
    let map = node.instance(NAME).join("ORIGINAL_DST");
    let mut batch = String::new();
    for n in 0_u32..1025 {
        let key: Vec<String> =
            (0..36).map(|i| format!("{}", if i < 4 { n.to_ne_bytes()[i] } else { 255 })).collect();
        let value = ["0"; 24].join(" ");
        writeln!(batch, "map update pinned {} key {} value {value}", map.display(), key.join(" "))?;
    }
    let file = tempfile::Builder::new().prefix("redirtest-batch").tempfile()?;
    std::fs::write(file.path(), batch)?;
    command::run(Command::new("bpftool").args(["batch", "file"]).arg(file.path()), "")?;
    assert_eq!(connect(&side)?, "ECONNREFUSED");
    assert_eq!(counter(&node, "refused_unstored")?, 1);
    Ok(())
}

#[test]
fn an_entry_lives_as_long_as_its_connection() -> anyhow::Result<()> {
    let Some((node, side)) = attached(&[])? else { return Ok(()) };
    assert!(flows(&node)?.is_empty());
    let held = Held::start(&side.pod().place(APP)?, at(VIP4, SERVED))?;
    let live = flows(&node)?;
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0]["original"], format!("{VIP4}:{SERVED}"));
    assert_eq!((&live[0]["traffic"], &live[0]["rule"]), (&"outbound".into(), &"out_all".into()));
    let client = live[0]["client"].as_str().context("a client")?.to_owned();
    node.run(&["original-dst", NAME, "--client", &client])?.expect(exit::OK)?;
    drop(held);
    retry::until("the entry to go", || flows(&node).is_ok_and(|flows| flows.is_empty()).then_some(()))?;
    node.run(&["original-dst", NAME, "--client", &client])?.expect(exit::NOTHING)?;
    Ok(())
}
