//! What cannot be recorded is refused, never let through around the proxy or to it without its original destination;
//! and the exposed map holds an entry exactly as long as the client's connection lives.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::oracle::options::Tproxy;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::world::TRANSPARENT_PROXY;
use serde_json::Value;

/// The result of connect().
fn connect(tested: &TestPod) -> anyhow::Result<String> {
    let observed = observe_one(&tested.pod().place(APP)?, SERVICE)?;
    observed.connect.context("a connect()")
}

/// The entries of the exposed map.
fn flows(tested: &TestPod) -> anyhow::Result<Vec<Value>> {
    let run = tested.bpffs.run(&["original-dst", NAME])?.expect(exit::OK)?;
    serde_json::from_str(&run.stdout).context(run.stdout)
}

#[test]
fn as_many_connections_as_allowed_and_no_more() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&["--max-destinations", "0", "--max-connections", "2"])?;
    let place = tested.pod().place(APP)?;
    let first = Held::start(&place, SERVICE)?;
    let _second = Held::start(&place, SERVICE)?;
    assert_eq!(connect(&tested)?, kernel::refusal("ENOBUFS"));
    assert_eq!(tested.counter("refused_full")?, 1);
    drop(first);
    retry::until("the entry of the ended connection to go", || {
        flows(&tested).is_ok_and(|flows| flows.len() == 1).then_some(())
    })?;
    assert_eq!(connect(&tested)?, "ok");
    Ok(())
}

/// A connection that is refused is counted once, as refused, and not by the rule that would have captured it.
#[test]
fn the_rule_of_a_refused_connection_is_not_counted() -> anyhow::Result<()> {
    require_root!("bpftool");
    let mut tested = TestPod::attached(&[])?;
    tested.fixture.proxy = None;
    let pod = tested.pod();
    let seen = tested.fixture.world.observe_from_outside(&[Scenario::to(at(pod.v4(), SERVED))])?;
    assert_eq!(seen[0].summary(), "ECONNREFUSED");
    assert_eq!((tested.counter("refused_no_listener")?, tested.counter("in_all")?), (1, 0));
    Ok(())
}

/// Room that the count says is there, and is not: the connection is refused on lo.
#[test]
fn an_original_destination_that_cannot_be_stored() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&["--max-destinations", "0", "--max-connections", "1"])?;
    fill(&tested)?;
    assert_eq!(connect(&tested)?, "ECONNREFUSED");
    assert_eq!(tested.counter("refused_unstored")?, 1);
    Ok(())
}

/// A socket without memory for options has no room for what is kept of it: it reaches the proxy, and SO_ORIGINAL_DST tells where
/// it wanted to go, or it is refused.
#[test]
fn a_socket_without_option_memory() -> anyhow::Result<()> {
    require_root!("bpftool");
    let refused = kernel::refusal("ENOBUFS");
    for (flags, of_v4) in [(&[][..], captured(SERVICE)), (&["--max-destinations", "0"], refused.to_owned())] {
        let tested = TestPod::attached(flags)?;
        for (to, expected) in [(SERVICE, &of_v4), (at(VIP6, SERVED), &refused.to_owned())] {
            let once = Scenario { full_memory: true, ..Scenario::to(to) };
            for scenario in [once.clone(), once.after(to, true)] {
                let seen = tested.pod().observe(APP, &[scenario])?.pop().context("nothing was observed")?;
                assert_eq!(&seen.summary(), expected, "{flags:?}: {seen:#?}");
            }
        }
    }
    Ok(())
}

/// Fills the map of an instance that has room for one connection.
fn fill(tested: &TestPod) -> anyhow::Result<()> {
    let map = tested.bpffs.instance(NAME).join("FLOWS");
    let mut batch = String::new();
    let shown = run(Command::new("bpftool").args(["--json", "map", "show", "pinned"]).arg(&map), "")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let most = shown["max_entries"].as_u64().and_then(|most| u32::try_from(most).ok());
    for n in 0..most.context("a size")? {
        let key: Vec<String> = [288_u32, n]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .chain([255; 32])
            .map(|byte| byte.to_string())
            .collect();
        let value = ["0"; 28].join(" ");
        writeln!(batch, "map update pinned {} key {} value {value}", map.display(), key.join(" "))?;
    }
    let file = tempfile::Builder::new().prefix("redirtest-batch").tempfile()?;
    std::fs::write(file.path(), batch)?;
    run(Command::new("bpftool").args(["batch", "file"]).arg(file.path()), "").map(drop)
}

/// A pod in TPROXY mode whose proxy hands inbound connections on to the application from the client's address.
fn relayed(most: &str) -> anyhow::Result<TestPod> {
    let tproxy = Tproxy::default();
    let mut proxy = everywhere(&[OUTBOUND, INBOUND]);
    for listen in proxy.iter_mut().filter(|listen| listen.address.port() == INBOUND) {
        (listen.transparent, listen.relay) = (true, Some(tproxy.mark));
    }
    let setup = Setup { proxy, proxy_owner: TRANSPARENT_PROXY, ..Setup::default() };
    TestPod::attached_with(&setup, &["-m", "TPROXY", "--max-connections", most])
}

/// The answer of the proxy or the application to a client outside.
fn knock(tested: &TestPod) -> anyhow::Result<String> {
    let seen = observe_one(&tested.fixture.world.outside(), at(tested.pod().v4(), SERVED))?;
    Ok(seen.greeting.clone().filter(|_| seen.reached.is_none()).unwrap_or_else(|| seen.summary()))
}

fn accepted(tested: &TestPod) -> usize {
    tested.fixture.proxy.as_ref().map_or(0, |proxy| proxy.accepted().len())
}

/// The proxy's own connections to the application count, too: by their entries they are told from the network's.
#[test]
fn as_many_transparent_connections_as_allowed() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = relayed("1")?;
    let mut held = Held::start(&tested.fixture.world.outside(), at(tested.pod().v4(), SERVED))?;
    assert!(held.echo()?);
    let refused = kernel::refusal("ENOBUFS");
    assert_eq!(knock(&tested)?, format!("the proxy's connection to the application: {refused}"));
    assert_eq!(tested.counter("refused_full")?, 1);
    assert_eq!(accepted(&tested), 2);
    drop(held);
    retry::until("the entry of the ended connection to go", || {
        flows(&tested).is_ok_and(|flows| flows.is_empty()).then_some(())
    })?;
    assert_eq!(knock(&tested)?, "app:8080");
    Ok(())
}

/// One that cannot be stored is refused; it looks as if it came from the network, and must not go to the proxy again.
#[test]
fn a_transparent_connection_that_cannot_be_stored() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = relayed("1")?;
    fill(&tested)?;
    assert_eq!(knock(&tested)?, "the proxy's connection to the application: ECONNREFUSED");
    assert_eq!((tested.counter("refused_unstored")?, accepted(&tested)), (1, 1));
    Ok(())
}

/// A connect that fails leaves the entry of another socket's connection alone, which has the same addresses and ports.
#[test]
fn a_failed_connect_removes_no_other_entry() -> anyhow::Result<()> {
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    require_root!("bpftool");
    let tested = TestPod::attached_with(&setup, &[])?;
    let to = SERVICE.to_string();
    let mut sequence =
        Daemon::start("sequence", &mut tested.pod().place(APP)?.probe(&["sequence", "same-twice", &to]))?;
    sequence.wait_for(0, |line| (line == "connected").then_some(()))?;
    let live = flows(&tested)?;
    assert!(live.len() == 1 && live[0]["original"] == to, "{live:?}");
    sequence.tell("")?;
    let again = sequence.wait_for(1, |line| line.starts_with("EADDR").then(|| line.to_owned()))?;
    assert_eq!(again, "EADDRNOTAVAIL");
    Ok(())
}

#[test]
fn an_entry_lives_as_long_as_its_connection() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    assert!(flows(&tested)?.is_empty());
    let held = Held::start(&tested.pod().place(APP)?, SERVICE)?;
    let live = flows(&tested)?;
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(live[0]["original"], SERVICE.to_string());
    assert_eq!((&live[0]["traffic"], &live[0]["rule"]), (&"outbound".into(), &"out_all".into()));
    let client = live[0]["client"].as_str().context("a client")?.to_owned();
    tested.bpffs.run(&["original-dst", NAME, "--client", &client])?.expect(exit::OK)?;
    drop(held);
    retry::until("the entry to go", || flows(&tested).is_ok_and(|flows| flows.is_empty()).then_some(()))?;
    tested.bpffs.run(&["original-dst", NAME, "--client", &client])?.expect(exit::NOTHING)?;
    Ok(())
}
