//! What cannot be recorded is refused, never let through around the proxy or to it without its original destination;
//! and the exposed map holds an entry exactly as long as the client's connection lives.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use redirector_tests::harness::oracle::options::Tproxy;
use redirector_tests::harness::pair::fixture::{By, Setup, Side};
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::hold::Held;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::process::Daemon;
use redirector_tests::harness::product::bpffs::Node;
use redirector_tests::harness::product::exit;
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::retry;
use redirector_tests::harness::server::{INBOUND, OUTBOUND, everywhere};
use redirector_tests::harness::world::{APP, TRANSPARENT_PROXY, VIP4, at};
use redirector_tests::harness::{command, kernel};

const NAME: &str = "pod";

fn attached(arguments: &[&str]) -> anyhow::Result<Option<(Node, Side)>> {
    attached_with(arguments, &Setup::default())
}

fn attached_with(arguments: &[&str], setup: &Setup) -> anyhow::Result<Option<(Node, Side)>> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(None);
    }
    let (node, side) = (Node::new()?, Side::with(By::Nobody, setup)?);
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
    fill(&node)?;
    assert_eq!(connect(&side)?, "ECONNREFUSED");
    assert_eq!(counter(&node, "refused_unstored")?, 1);
    Ok(())
}

/// Fills the exposed map of an instance that has room for one connection.
fn fill(node: &Node) -> anyhow::Result<()> {
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
    command::run(Command::new("bpftool").args(["batch", "file"]).arg(file.path()), "").map(drop)
}

/// A pod in TPROXY mode whose proxy hands inbound connections on to the application from the client's address.
fn relayed(most: &str) -> anyhow::Result<Option<(Node, Side)>> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(None);
    }
    let tproxy = Tproxy::default();
    let mut proxy = everywhere(&[OUTBOUND, INBOUND]);
    for listen in proxy.iter_mut().filter(|listen| listen.address.port() == INBOUND) {
        (listen.transparent, listen.relay) = (true, Some(tproxy.mark));
    }
    let setup = Setup { proxy, proxy_owner: TRANSPARENT_PROXY, ..Setup::default() };
    let (node, side) = (Node::new()?, Side::with(By::Nobody, &setup)?);
    node.attach(side.pod(), NAME, &["-m", "TPROXY", "--max-connections", most])?.expect(exit::OK)?;
    Ok(Some((node, side)))
}

/// What a client outside is told by the proxy or by the application.
fn knock(side: &Side) -> anyhow::Result<String> {
    let seen = side.world.observe_from_outside(&[Scenario::to(at(side.pod().v4(), SERVED))])?;
    let seen = seen.first().context("an observation")?;
    Ok(seen.greeting.clone().filter(|_| seen.reached.is_none()).unwrap_or_else(|| seen.summary()))
}

fn accepted(side: &Side) -> usize {
    side.proxy.as_ref().map_or(0, |proxy| proxy.accepted().len())
}

/// The proxy's own connections to the application count, too: by their entries they are told from the network's.
#[test]
fn as_many_transparent_connections_as_allowed() -> anyhow::Result<()> {
    let Some((node, side)) = relayed("1")? else { return Ok(()) };
    let mut held = Held::start(&side.world.outside(), at(side.pod().v4(), SERVED))?;
    assert!(held.echo()?);
    let refused = kernel::refusal("ENOBUFS");
    assert_eq!(knock(&side)?, format!("the proxy's connection to the application: {refused}"));
    assert_eq!(counter(&node, "refused_full")?, 1);
    assert_eq!(accepted(&side), 2);
    drop(held);
    retry::until("the entry of the ended connection to go", || {
        flows(&node).is_ok_and(|flows| flows.is_empty()).then_some(())
    })?;
    assert_eq!(knock(&side)?, "app:8080");
    Ok(())
}

/// One that cannot be stored is refused; it looks as if it came from the network, and must not go to the proxy again.
#[test]
fn a_transparent_connection_that_cannot_be_stored() -> anyhow::Result<()> {
    let Some((node, side)) = relayed("1")? else { return Ok(()) };
    fill(&node)?;
    assert_eq!(knock(&side)?, "the proxy's connection to the application: ECONNREFUSED");
    assert_eq!((counter(&node, "refused_unstored")?, accepted(&side)), (1, 1));
    Ok(())
}

/// A connect that fails leaves the entry of another socket's connection alone, which has the same addresses and ports.
#[test]
fn a_failed_connect_removes_no_other_entry() -> anyhow::Result<()> {
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    let Some((node, side)) = attached_with(&[], &setup)? else { return Ok(()) };
    let to = at(VIP4, SERVED).to_string();
    let mut sequence =
        Daemon::start("sequence", &mut side.pod().place(APP)?.probe(&["sequence", "same-twice", &to]))?;
    sequence.wait_for(0, |line| (line == "connected").then_some(()))?;
    let live = flows(&node)?;
    assert!(live.len() == 1 && live[0]["original"] == to, "{live:?}");
    sequence.tell("")?;
    let again = sequence.wait_for(1, |line| line.starts_with("EADDR").then(|| line.to_owned()))?;
    assert_eq!(again, "EADDRNOTAVAIL");
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
