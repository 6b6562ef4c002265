//! `redirector status` of what is around a pod's sockets: programs of others, ports, routes, and what instances share.

use std::ffi::CString;
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use redirector_tests::harness::kernel;
use redirector_tests::harness::probe::hold::Held;
use redirector_tests::harness::probe::sys;
use redirector_tests::harness::product::exit;
use redirector_tests::harness::product::health::{NAME, Setup};
use redirector_tests::harness::world::{APP, VIP4, VIP6, at};
use redirector_tests::harness::{command, requirements, retry};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn programs_at_lo() -> anyhow::Result<()> {
    const LO: u32 = 1;
    const XDP: (u32, u32) = (6, 37);
    const TCX_EGRESS: (u32, u32) = (3, 47);
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    // XDP_DROP and XDP_PASS, TCX_DROP and TCX_NEXT.
    let cases = [("XDP", (5, 9), XDP, 1, 2), ("tcx egress", (6, 6), TCX_EGRESS, 2, u32::MAX)];
    for (hook, since, kind, drops, passes) in cases {
        if !kernel::is_at_least(since.0, since.1) {
            continue;
        }
        let link = |returns| netns.enter(|| Ok(sys::link_foreign(LO, "lo_guard", kind, returns)?));
        let guard = link(passes)?;
        setup.expect_well().context(hook)?;
        drop(guard);
        let _guard = link(drops)?;
        setup
            .expect_fault("foreign_program", &[hook, "of lo", "lo_guard stops what is sent to the proxy"])?;
    }
    Ok(())
}

/// Filters of `tc` as they were before tcx, and policies of xfrm; on lo, which every captured connection passes.
#[test]
fn filters_at_lo() -> anyhow::Result<()> {
    const SCHED_CLS: u32 = 3;
    let (Some(setup), Some(tc)) = (Setup::new()?, requirements::require_program("tc")) else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let tc = |words: &str| command::run(netns.command(&tc).args(words.split(' ')), "");
    tc("qdisc add dev lo clsact")?;
    // TC_ACT_OK and TC_ACT_SHOT.
    for (name, returns) in [("passes", 0), ("drops", 2)] {
        let pin = setup.node.path().join(name);
        let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
        sys::pin_foreign(&path, name, SCHED_CLS, returns)?;
        tc(&format!("filter add dev lo egress bpf da object-pinned {}", pin.display()))?;
        match returns {
            0 => drop(setup.expect_well()?),
            _ => drop(setup.expect_fault("packets_dropped", &["egress of lo (bpf)", "tc filter show"])?),
        }
        tc("filter del dev lo egress")?;
        std::fs::remove_file(pin)?;
    }
    let steal = "filter add dev lo ingress protocol ip u32 match ip dport 15001 0xffff action mirred egress redirect dev eth0";
    // Not every kernel has it.
    if tc(steal).is_ok() {
        setup.expect_fault("packets_dropped", &["ingress of lo (u32)"])?;
        tc("filter del dev lo ingress")?;
    }
    setup.expect_well()?;

    for direction in ["in", "out"] {
        netns.ip(&format!("xfrm policy add dir {direction} src ::/0 dst ::/0 action block\n"))?;
        setup.expect_fault("packets_dropped", &["xfrm", "IPv6"])?;
        netns.ip("xfrm policy flush\n")?;
    }
    // IPv4 asks for none at lo.
    netns.ip("xfrm policy add dir out src 0.0.0.0/0 dst 0.0.0.0/0 action block\n")?;
    setup.expect_well().map(drop)
}

#[test]
fn a_queue_at_lo_that_drops() -> anyhow::Result<()> {
    let (Some(setup), Some(tc)) = (Setup::new()?, requirements::require_program("tc")) else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let tbf = "qdisc add dev lo root tbf rate 1kbit burst 1b latency 1ms";
    if command::run(netns.command(&tc).args(tbf.split(' ')), "").is_err() {
        return Ok(()); // Not every kernel has it.
    }
    let findings = setup.expect_well()?;
    let told = findings.iter().any(|it| it["kind"] == "packets_dropped" && it.to_string().contains("tbf"));
    ensure!(told, "a queue is not told: {findings:#?}");
    netns.enter(|| {
        let to = SocketAddr::from(([127, 0, 0, 1], 15001));
        ensure!(TcpStream::connect_timeout(&to, Duration::from_millis(100)).is_err(), "it drops nothing");
        Ok(())
    })?;
    setup.expect_fault("packets_dropped", &["tbf", "dropped", "tc qdisc del dev lo root"]).map(drop)
}

#[test]
fn a_program_that_refuses_options() -> anyhow::Result<()> {
    const SETSOCKOPT: (u32, u32) = (25, 22);
    const MULTI: u32 = 2;
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    sys::attach_foreign(
        File::open(setup.world.pod().cgroup.directory())?,
        "no_options",
        SETSOCKOPT,
        MULTI,
        0,
    )?;
    let told = setup.findings()?.iter().any(|it| it.to_string().contains("no_options"));
    ensure!(told, "the program is not named");
    // It refuses what verify needs, too.
    setup.node.run(&["verify", NAME])?.expect(exit::FAILED)?;
    Ok(())
}

#[test]
fn a_proxy_that_does_not_run() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let proxy = setup.proxy()?;
    setup.attach(&[])?;
    let pid = Pid::from_raw(proxy.pid().cast_signed()).context("a pid")?;
    kill_process(pid, Signal::STOP)?;
    setup.expect_fault("listener_stopped", &["stopped", "kill -CONT", "no answer"])?;
    kill_process(pid, Signal::CONT)?;
    retry::until("it to run", || setup.expect_well().ok())?;
    let freezer = setup.world.pod().cgroup.directory().join("cgroup.freeze");
    // The process is in a cgroup below.
    std::fs::write(&freezer, "1")?;
    let found =
        retry::until("it to be frozen", || setup.expect_found("listener_stopped", &["frozen with"]).ok());
    std::fs::write(&freezer, "0")?;
    found?;
    retry::until("it to run", || setup.expect_well().ok())?;
    Ok(())
}

#[test]
fn no_ports_are_left() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    netns.sysctl(&[("ipv4/ip_local_port_range", "40000 40099")])?;
    setup.expect_well()?;
    let to = if kernel::has_ipv6() { at(VIP6, 80) } else { at(VIP4, 80) };
    let _held = Held::start(&setup.world.pod().place(APP)?, to)?;
    netns.sysctl(&[("ipv4/ip_local_port_range", "40000 40000")])?;
    setup.expect_fault("ports_used_up", &["of the pod's 1 ports", "EADDRNOTAVAIL", "ip_local_port_range"])?;
    netns.sysctl(&[
        ("ipv4/ip_local_port_range", "32768 60999"),
        ("ipv4/ip_local_reserved_ports", "32768-60990"),
    ])?;
    setup.expect_fault("ports_used_up", &["of the pod's 9 ports"])?;
    Ok(())
}

/// As with VRFs, and where a rule is to come before the table of local addresses.
#[test]
fn an_own_address_that_is_not_local() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    if !kernel::has_ipv6() {
        return Ok(());
    }
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let own = setup.world.pod().v6();
    for rule in [&format!("add pref 10 to {own} prohibit"), "add pref 20 lookup local", "del pref 0"] {
        let mut ip = std::process::Command::new("ip");
        let netns = setup.world.pod().netns.name();
        command::run(ip.args(["-n", netns, "-6", "rule"]).args(rule.split(' ')), "")?;
    }
    setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    setup.expect_fault("own_address_unreachable", &[&own.to_string(), "over IPv6", "ip -6 rule"])?;
    Ok(())
}

/// The programs of the node find an instance no more: all of its traffic goes past the proxy.
/// What stands for an original destination is looked up in table local like any address.
#[test]
fn virtual_addresses_that_are_not_local() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let given = setup.node.show(NAME)?["virtual_destinations"].as_str().context("a range")?.to_owned();
    let netns = &setup.world.pod().netns;
    netns.ip(&format!("route add unreachable {given} table local\n"))?;
    // A refresh knows the route then.
    for _ in 0..2 {
        setup.expect_fault("loopback_down", &[&given, "original destinations", "ip route del"])?;
        setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    }
    netns.ip(&format!("route del unreachable {given} table local\n"))?;
    setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    setup.expect_well().map(drop)
}

#[test]
fn an_instance_that_is_not_found() -> anyhow::Result<()> {
    let (Some(setup), Some(bpftool)) = (Setup::new()?, requirements::require_program("bpftool")) else {
        return Ok(());
    };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let instances = setup.node.path().join("redirector");
    let by = |arguments: &[&str], pin: &std::path::Path| {
        let (verb, more) = arguments.split_first().context("a verb")?;
        let mut command = std::process::Command::new(&bpftool);
        command::run(command.args(["-j", "map", verb, "pinned"]).arg(pin).args(more), "")
    };
    let namespaces = instances.join("NODE-2/NAMESPACES");
    let entries: serde_json::Value = serde_json::from_str(&by(&["dump"], &namespaces)?)?;
    let key: Vec<&str> =
        entries[0]["key"].as_array().context("a key")?.iter().filter_map(|byte| byte.as_str()).collect();
    for verb in ["refresh", "upgrade"] {
        by(&[&["delete", "key"], &key[..]].concat(), &namespaces)?;
        setup.expect_fault("not_found", &["past the proxy", "redirector refresh"])?;
        setup.node.run(&[verb, NAME])?.expect(exit::OK)?;
        setup.expect_well()?;
    }
    // What all share may go: the programs have it still.
    std::fs::remove_dir_all(instances.join("NODE-2"))?;
    setup.expect_well()?;

    let entry = std::fs::read_dir(instances.join(NAME))?.filter_map(Result::ok);
    let mut entry = entry.filter(|entry| entry.file_name().to_string_lossy().starts_with("SK_LOOKUP"));
    let entry = entry.next().context("the entry of sk_lookup")?;
    by(&["delete", "key", "hex", "00", "00", "00", "00"], &entry.path())?;
    setup.expect_fault("not_found", &["sk_lookup", "refused", "detach"])?;
    Ok(())
}

#[test]
fn a_bpffs_that_is_read_only() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let remount = |how: &str| {
        let mut mount = std::process::Command::new("mount");
        command::run(mount.args(["-o", how]).arg(setup.node.path()), "")
    };
    remount("remount,ro")?;
    let found = setup.expect_found("bpffs", &["read-only", "remount,rw"]);
    let node = setup.node.run(&["status"]);
    let verify = setup.node.run(&["verify", NAME]);
    remount("remount,rw")?;
    found?;
    node?.expect(exit::FAILED)?;
    verify?.expect(exit::FAILED)?;
    setup.expect_well()?;
    Ok(())
}
