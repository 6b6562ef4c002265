//! `redirector verify`: real connections through an instance, with and without a proxy, and what it says when the
//! instance does not do what its policy says.

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::server::any4;
use serde_json::{Value, json};

fn world() -> anyhow::Result<Option<(Bpffs, World)>> {
    require_root!();
    Ok(Some((Bpffs::new()?, World::new()?)))
}

fn verify(bpffs: &Bpffs, arguments: &[&str]) -> anyhow::Result<Run> {
    bpffs.run(&[&["verify", NAME], arguments].concat())
}

/// Before the proxy has started.
fn verify_programs(bpffs: &Bpffs, arguments: &[&str]) -> anyhow::Result<Run> {
    verify(bpffs, &[&["--programs-only"], arguments].concat())
}

/// A probe of a report.
fn probe<'a>(report: &'a Value, name: &str, family: &str) -> anyhow::Result<&'a Value> {
    let probes = report["probes"].as_array().context("probes")?;
    let of_it = |probe: &&Value| probe["probe"] == name && probe["family"] == family;
    probes.iter().find(of_it).with_context(|| format!("no probe {name} {family}: {report:#}"))
}

/// Name, family, who listened, how and status of each.
fn summaries(report: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let line = |probe: &Value| {
        ["probe", "family", "listener", "how", "status"].map(|field| word(&probe[field])).join(" ")
    };
    report["probes"].as_array().into_iter().flatten().map(line).collect()
}

/// Nothing of a helper is left in the pod.
fn expect_clean(pod: &Pod) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(pod.cgroup.directory())?.flatten();
    let left: Vec<_> =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("redirector")).collect();
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Before the proxy has started verify listens in its place, and sees what the proxy would see.
#[test]
fn without_a_proxy() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    verify(&bpffs, &[])?.refused(exit::NOTHING, &["there is no instance pod"])?;
    bpffs
        .run(&[&["verify"], &target(pod).each_ref().map(String::as_str)[..2]].concat())?
        .refused(exit::NOTHING, &["no instance is attached"])?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;

    // Nobody gets what is captured; the programs do their work.
    let report = verify(&bpffs, &[])?.expect(exit::FAILED)?.json()?;
    assert_eq!((&report["ok"], &report["probes_ok"]), (&json!(false), &json!(true)), "{report:#}");
    assert_eq!(report["health"]["findings"][0]["kind"], "no_listener", "{report:#}");
    let report = verify_programs(&bpffs, &[])?.expect(exit::OK)?.json()?;
    let expected = [
        "proxy_to_own_pod ipv4 own connection ok",
        "outbound ipv4 own connection ok",
        "inbound ipv4 own program ok",
        "proxy_to_own_pod ipv6 own connection ok",
        "outbound ipv6 own connection ok",
        "inbound ipv6 own program ok",
    ];
    assert_eq!(summaries(&report), expected, "{report:#}");
    assert_eq!((&report["ok"], &report["name"]), (&json!(true), &json!(NAME)));
    let own = probe(&report, "proxy_to_own_pod", "ipv4")?;
    assert_eq!(own["uid"], 1337);
    assert_eq!(own["bind"], "127.0.0.1");
    assert_eq!(own["to"], "127.0.0.6:15002");
    assert_eq!(
        own["expected"],
        json!({ "verdict": "inbound", "port": 15006, "rule": "out_proxy_uid_loopback" })
    );
    let seen = &own["seen"];
    assert_eq!(seen["original_dst"], "127.0.0.6:15002");
    assert_eq!(seen["peer"], "127.0.0.6:15002");
    assert_eq!(seen["accepted_at"], "0.0.0.0:15006");
    assert_eq!(seen["accepted_peer"], seen["client"]);
    assert_eq!(probe(&report, "inbound", "ipv6")?["seen"]["program"], "given");

    // Really from the network; and the instance found by its namespace.
    let from = world.client.file().display().to_string();
    let netns = pod.netns.file().display().to_string();
    let report = bpffs
        .run(&["verify", "--programs-only", "--netns", &netns, "--from", &from])?
        .expect(exit::OK)?
        .json()?;
    let inbound = probe(&report, "inbound", "ipv4")?;
    assert_eq!((&inbound["how"], &inbound["status"]), (&json!("connection"), &json!("ok")), "{inbound:#}");
    assert_eq!(inbound["seen"]["original_dst"], format!("{}:80", pod.v4()));

    // Where it really arrived is told by the kernel, and another probe port by the flag.
    let report = verify_programs(&bpffs, &["--probe-port", "7"])?.expect(exit::OK)?.json()?;
    let own = probe(&report, "proxy_to_own_pod", "ipv6")?;
    assert_eq!(
        (&own["to"], &own["seen"]["arrived_at"]),
        (&json!("[::6]:7"), &json!("[::1]:15006")),
        "{own:#}"
    );
    expect_clean(pod)
}

/// A proxy at work gets the connections, and nobody listens beside it.
#[test]
fn beside_a_proxy() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let proxy = pod.serve(PROXY, "proxy", proxy_listeners(3))?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    let from = world.client.file().display().to_string();
    for arguments in [vec![], vec!["--from", &from]] {
        let before = proxy.accepted().len();
        let report = verify(&bpffs, &arguments)?.expect(exit::OK)?.json()?;
        let probes = report["probes"].as_array().context("probes")?;
        assert!(probes.iter().all(|p| p["listener"] == "proxy" && p["status"] == "ok"), "{report:#}");
        assert!(probes.iter().all(|p| p["seen"]["accepted_at"].is_null()), "{report:#}");
        let made = probes.iter().filter(|p| p["how"] == "connection").count();
        assert_eq!(made, if arguments.is_empty() { 4 } else { 6 });
        // The proxy's stand-in prints what it accepts, each of these once.
        retry::until("the proxy to have them all", || {
            (proxy.accepted().len() >= before + made).then_some(())
        })?;
        assert_eq!(proxy.accepted().len(), before + made);
    }
    assert_eq!(pod.connect(at(VIP4, 80))?, captured(at(VIP4, 80)));
    expect_clean(pod)
}

/// A proxy that knows IPv4 only: the other family is not tried, and that is said.
#[test]
fn beside_a_proxy_without_ipv6() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let _proxy = pod.serve(PROXY, "proxy", [15001, 15006].map(any4).map(Listen::on).to_vec())?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    let report = verify(&bpffs, &[])?.expect(exit::FAILED)?.json()?;
    assert_eq!(report["health"]["findings"][0]["kind"], "no_listener_of_family", "{report:#}");
    let six = probe(&report, "outbound", "ipv6")?;
    assert_eq!(six["status"], "skipped");
    assert!(six["why"][0].as_str().is_some_and(|why| why.contains("does not listen on IPv6")), "{six:#}");
    Ok(())
}

/// verify tells which part of an instance does not work, with the observation.
#[test]
fn failures_are_found() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let broken = [
        ("sendmsg4", "dns_udp", "ipv4"),
        ("recvmsg6", "dns_udp", "ipv6"),
        ("connect4", "outbound", "ipv4"),
        ("connect6", "proxy_to_own_pod", "ipv6"),
        ("sk_lookup", "inbound", "ipv4"),
        ("getsockopt", "outbound", "ipv4"),
        ("peername6", "outbound", "ipv6"),
        ("sockops", "outbound", "ipv4"),
    ];
    for (hook, name, family) in broken {
        let dns: &[&str] = if name == "dns_udp" { &["--redirect-dns", "--capture-all-dns"] } else { &[] };
        bpffs.attach(pod, NAME, dns)?.expect(exit::OK)?;
        verify_programs(&bpffs, &[])?.expect(exit::OK)?;
        // As `rm` does: the last reference to the link was its pin.
        std::fs::remove_file(bpffs.instance(NAME).join(format!("link_{hook}")))?;
        let report = retry::until(&format!("{hook} to be detached"), || {
            let run = verify_programs(&bpffs, &["--timeout", "1"]).ok()?;
            let report = run.json().ok()?;
            let failed = probe(&report, name, family).is_ok_and(|probe| probe["status"] == "failed");
            (run.code == Some(exit::FAILED) && failed).then_some(report)
        })?;
        assert_eq!(report["ok"], false, "{hook}");
        let found = &report["health"]["findings"][0];
        assert!(found["kind"] == "hook_detached" && found.to_string().contains(hook), "{report:#}");
        bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    }
    expect_clean(pod)
}

/// Other policies: expectations are the policy's, and what cannot be tried is said.
#[test]
fn other_policies() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let container = pod.cgroup.child("proxy")?.display().to_string();
    let cases: [(&[&str], &[&str]); 7] = [
        (&["-m", "TPROXY"], &["ok", "ok", "ok", "ok", "ok", "ok"]),
        // Known by its cgroup, and of no certain user.
        (&["--ipv6", "off", "--proxy-cgroup", &container], &["ok", "ok", "ok"]),
        (&["--ipv6", "off", "--proxy-cgroup", &container, "-u", "7"], &["ok", "ok", "ok"]),
        (
            &["-p", "16001", "-z", "16006", "-u", "7,8", "-i", "10.96.0.0/16,fd00:96::/64", "-b", "9000"],
            &["ok", "ok", "ok", "ok", "ok", "ok"],
        ),
        (&["--ipv6", "off", "-q", "9999", "-i", ""], &["ok", "ok", "ok"]),
        (&["--ipv6", "off", "-u", ","], &["skipped", "ok", "ok"]),
        (&["--ipv6", "off", "--redirect-dns", "--capture-all-dns"], &["ok", "ok", "ok", "ok", "ok"]),
    ];
    for (flags, expected) in cases {
        bpffs.attach(pod, NAME, flags)?.expect(exit::OK)?;
        let report = verify_programs(&bpffs, &[])?.expect(exit::OK)?.json()?;
        let probes = report["probes"].as_array().context("probes")?;
        let states: Vec<&str> = probes.iter().filter_map(|probe| probe["status"].as_str()).collect();
        assert_eq!(states, expected, "{flags:?}: {report:#}");
    }
    bpffs.attach(pod, NAME, &["--ipv6", "off", "-i", "", "-b", ""])?.expect(exit::OK)?;
    let report = verify_programs(&bpffs, &[])?.expect(exit::FAILED)?.json()?;
    assert_eq!(report["health"]["findings"][0]["kind"], "captures_nothing", "{report:#}");
    expect_clean(pod)
}

/// As `kubectl exec` into the shipped DaemonSet runs it: no process can become another user there.
#[test]
fn with_the_capabilities_of_the_agent() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    bpffs.attach(world.pod(), NAME, &[])?.expect(exit::OK)?;
    let _proxy = world.pod().serve(PROXY, "proxy", proxy_listeners(1))?;
    let capabilities =
        "--bounding-set=-all,+bpf,+net_admin,+net_broadcast,+perfmon,+sys_admin,+sys_ptrace,+sys_resource";
    let run = Run::of(&mut bpffs.command(&["setpriv", capabilities], &["verify", NAME]))?;
    let report = run.expect(exit::OK)?.json()?;
    for family in ["ipv4", "ipv6"] {
        let own = probe(&report, "proxy_to_own_pod", family)?;
        assert!(own["status"] == "skipped" && own.to_string().contains("CAP_SETUID"), "{own:#}");
        for name in ["outbound", "inbound"] {
            assert_eq!(probe(&report, name, family)?["status"], "ok", "{report:#}");
        }
    }
    assert_eq!(probe(&report, "outbound", "ipv4")?["uid"], 0);
    expect_clean(world.pod())
}

/// A verify that is killed leaves an empty cgroup at most, and the next one removes it.
#[test]
fn killed() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    // Its first connection is not answered.
    drop_on_lo(pod)?;
    let mut command = bpffs.command(&[], &["verify", NAME, "--timeout", "60"]);
    let mut child = command.stdout(std::process::Stdio::null()).spawn()?;
    let room = pod.cgroup.directory().join(format!("redirector-verify-{}", child.id()));
    let processes = || std::fs::read_to_string(room.join("cgroup.procs")).unwrap_or_default();
    retry::until("helpers to be at work", || (processes().lines().count() == 2).then_some(()))?;
    child.kill()?;
    child.wait()?;
    retry::until("the helpers to end", || processes().is_empty().then_some(()))?;
    verify(&bpffs, &["--timeout", "1"])?.expect(exit::FAILED)?;
    expect_clean(pod)
}

/// A helper takes orders from the verify that made it, and from nobody when that is gone.
#[test]
fn a_helper_whose_verify_is_gone() -> anyhow::Result<()> {
    require_root!();
    let mut gone = std::process::Command::new("true").spawn()?;
    gone.wait()?;
    for (verify, expected) in [(std::process::id(), "{\"Ok\":null}\n"), (gone.id(), "")] {
        let mut command = redirector_tests::harness::product::command(&[]);
        command.args(["verify-helper", "0", "0", &verify.to_string()]);
        let answer = run(&mut command, "{\"Listen\":[]}\n")?;
        assert_eq!(answer, expected, "of {verify}");
    }
    Ok(())
}

/// Drops what is redirected to the proxy's inbound listener: what could go wrong under the nose of any instance.
fn drop_on_lo(pod: &Pod) -> anyhow::Result<()> {
    let mut command = pod.netns.command("iptables");
    command.args(["-A", "INPUT", "-i", "lo", "-p", "tcp", "--dport", "15006", "-j", "DROP"]);
    run(&mut command, "")?;
    Ok(())
}

/// `attach --run-validation`: the instance is verified, and a new one that fails is not left behind.
#[test]
fn run_validation() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let only = ["--skip-rule-apply", "--run-validation"];
    bpffs.attach(pod, NAME, &only)?.refused(exit::NOTHING, &["no instance is attached"])?;
    let run = bpffs.attach(pod, NAME, &["--run-validation"])?.expect(exit::OK)?.json()?;
    assert_eq!((&run["outcome"], &run["validation"]["ok"]), (&json!("attached"), &json!(true)), "{run:#}");
    let report = bpffs.attach(pod, NAME, &only)?.expect(exit::OK)?.json()?;
    assert_eq!(report["ok"], true);

    drop_on_lo(pod)?;
    let flags = ["--run-validation", "--probe-timeout=300ms", "--iptables-probe-port=7"];
    let run = bpffs.attach(pod, NAME, &flags)?.refused(exit::FAILED, &["validation", "failed"])?;
    let own = run.json()?;
    let own = probe(&own, "proxy_to_own_pod", "ipv4")?;
    assert_eq!((&own["to"], &own["status"]), (&json!("127.0.0.6:7"), &json!("failed")));
    assert_eq!(bpffs.list()?.len(), 1, "the instance was there before");
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    bpffs.attach(pod, NAME, &flags)?.refused(exit::FAILED, &["validation", "has been detached"])?;
    bpffs.expect_empty()?;
    expect_clean(pod)
}
