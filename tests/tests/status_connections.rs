//! `redirector connections`, and what `list`, `show`, `verify` and `explain` say of a set-up that is broken.

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::product;
use redirector_tests::harness::product::health::Setup as Broken;
use redirector_tests::harness::server::any4;
use rustix::net::{AddressFamily, SocketFlags, SocketType, eth, ipproto, socket_with};
use serde_json::Value;

fn connections(broken: &Broken, more: &[&str]) -> anyhow::Result<Vec<Value>> {
    let run = broken.node.run(&[&["connections", NAME], more].concat())?.expect(exit::OK)?;
    run.json()?.as_array().cloned().context("connections")
}

/// What is printed for people.
fn text(broken: &Broken, arguments: &[&str], code: i32) -> anyhow::Result<String> {
    let bpffs = broken.node.path().display().to_string();
    Ok(Run::of(product::command(&[]).args(["--bpffs", &bpffs]).args(arguments))?.expect(code)?.stdout)
}

/// One that is captured, its other end at the proxy, one that is older than the attach, and one that is excluded.
#[test]
fn each_connection_and_its_fate() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    let ports = [80, 22].map(any4).map(Listen::on).to_vec();
    let (_proxy, _service) = (broken.proxy()?, broken.world.serve_outside(ports)?);
    let app = broken.world.pod().place(APP)?;
    let _older = Held::start(&app, at(VIP4, 80))?;
    broken.attach(&["-o", "22"])?;
    let _captured = Held::start(&app, at(VIP4, 80))?;
    let _excluded = Held::start(&app, at(VIP4, 22))?;
    let all = connections(&broken, &[])?;
    let of =
        |fate: &str| all.iter().find(|one| one["fate"] == fate).with_context(|| format!("{fate}: {all:#?}"));
    let captured = of("captured")?;
    assert_eq!((&captured["original"], &captured["rule"]), (&"10.96.0.10:80".into(), &"out_all".into()));
    assert_eq!((&captured["uid"], &captured["process"]), (&1000.into(), &"probe".into()), "{captured:#}");
    let accepted = of("at_proxy")?;
    assert_eq!(
        (&accepted["original"], &accepted["uid"]),
        (&"10.96.0.10:80".into(), &1337.into()),
        "{accepted:#}"
    );
    assert_eq!(of("passed")?["rule"], "out_excluded_port");
    let missed = of("missed")?;
    assert_eq!(
        (&missed["remote"], &missed["why"]),
        (&"10.96.0.10:80".into(), &"it is older than the attach".into())
    );
    assert_eq!(connections(&broken, &["--missed"])?.len(), 1);
    assert!(text(&broken, &["connections", NAME, "--missed"], exit::OK)?.contains("MISSED"));
    broken.node.run(&["connections"])?.refused(exit::USAGE, &["no instance is named"])?;
    Ok(())
}

#[test]
fn list_show_and_verify_say_it_too() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    broken.attach(&[])?;
    let list = text(&broken, &["list"], exit::FAILED)?;
    assert!(list.contains("nobody listens on port 15001 (1 of 2 faults)"), "{list}");
    let show = text(&broken, &["show", NAME], exit::FAILED)?;
    assert!(
        show.contains("captures     outbound to 15001") && show.contains("FAULT     nobody listens"),
        "{show}"
    );
    let verify = text(&broken, &["verify", NAME], exit::FAILED)?;
    let first = verify.lines().next().unwrap_or_default();
    assert_eq!(first, "FAILED: the programs are right, and the proxy does not get what they send it");
    assert!(verify.contains("-> start the proxy"), "{verify}");
    let programs = text(&broken, &["verify", NAME, "--programs-only"], exit::OK)?;
    assert!(programs.starts_with("the programs do what the policy says; the proxy is not"), "{programs}");
    // What is tried fits a terminal; what is found may be longer.
    let probes = programs.lines().filter(|line| line.trim_start().starts_with("ok"));
    probes.for_each(|line| assert!(line.chars().count() <= 110, "{line}"));
    let _proxy = broken.proxy()?;
    for verb in [&["list"][..], &["show", NAME], &["verify", NAME]] {
        broken.node.run(verb)?.expect(exit::OK)?;
    }
    Ok(())
}

/// `--watch` tells the connections per second by rule, in plain lines where there is no terminal.
#[test]
fn watched() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    let _proxy = broken.proxy()?;
    broken.attach(&[])?;
    let bpffs = broken.node.path().display().to_string();
    for (verb, words) in [("status", &["rates     out_all"][..]), ("list", &["RATES", "out_all"])] {
        let mut command = product::command(&[]);
        let watching = Daemon::start(verb, command.args(["--bpffs", &bpffs, verb, "--watch=1"]))?;
        watching.wait_for(0, |line| line.contains("pod").then_some(()))?;
        let app = broken.world.pod().place(APP)?;
        retry::until("rates", || {
            Held::start(&app, at(VIP4, 80)).ok()?;
            let lines = watching.lines().join("\n");
            (words.iter().all(|word| lines.contains(word)) && lines.contains("/s")).then_some(())
        })?;
        assert!(!watching.lines().join("").contains('\x1b'));
    }
    Ok(())
}

/// The names of instances, as the script of bash asks for them.
#[test]
fn names_are_completed() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    let instance = Instance::attach(broken.world.pod(), &[], &[])?;
    let (begin, _) = instance.name().split_at(instance.name().len() - 1);
    let mut command = product::command(&[]);
    command.env("REDIRECTOR_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2");
    let run = Run::of(command.args(["--", "redirector", "show", begin]))?.expect(exit::OK)?;
    assert!(run.stdout.lines().any(|line| line == instance.name()), "{run:?}");
    Ok(())
}

/// The programs decide by what they know of the namespace, and so does explain.
#[test]
fn explain_answers_for_the_programs() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    let _proxy = broken.proxy()?;
    broken.attach(&[])?;
    broken.world.pod().netns.ip("address add 10.77.9.9/32 dev eth0\n")?;
    let explain = || broken.node.run(&["explain", "--name", NAME, "--to", "10.77.9.9:80"])?.expect(exit::OK);
    let stale = explain()?;
    assert_eq!(stale.json()?["verdict"], "outbound", "{stale:?}");
    assert!(stale.stderr.contains("stale: 1 address (10.77.9.9) differs"), "{stale:?}");
    broken.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    let fresh = explain()?;
    assert_eq!(
        (&fresh.json()?["verdict"], fresh.stderr.contains("stale")),
        (&"pass".into(), false),
        "{fresh:?}"
    );
    Ok(())
}

/// What a container with CAP_NET_RAW may send, no hook sees: who has such a socket is named, and does no harm as long as it only
/// listens.
#[test]
fn raw_and_packet_sockets() -> anyhow::Result<()> {
    let Some(broken) = Broken::new()? else { return Ok(()) };
    let _proxy = broken.proxy()?;
    broken.attach(&[])?;
    let named = || -> anyhow::Result<Vec<String>> {
        let told = broken.expect_well()?.into_iter().filter(|notice| notice["kind"] == "raw_socket");
        Ok(told.map(|notice| notice["what"].to_string()).collect())
    };
    assert_eq!(named()?, Vec::<String>::new());
    let open = |family, protocol| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol));
    let sockets =
        broken.world.pod().netns.enter(|| {
            Ok([open(AddressFamily::INET, ipproto::RAW)?, open(AddressFamily::PACKET, eth::ALL)?])
        })?;
    // They are this program's, which is in another namespace.
    assert_eq!(named()?, ["\"user 0: a packet socket, user 0: a raw socket\""]);
    drop(sockets);
    assert_eq!(named()?, Vec::<String>::new());
    Ok(())
}
