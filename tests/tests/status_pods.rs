//! `redirector status` of pods whose traffic goes past the proxy, or twice through it, and of what captures them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use redirector_tests::harness::command::run;
use redirector_tests::harness::kernel;
use redirector_tests::harness::names;
use redirector_tests::harness::probe::hold::Held;
use redirector_tests::harness::probe::scenario::Owner;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::probe::sys;
use redirector_tests::harness::process::{Daemon, Place};
use redirector_tests::harness::product::bpffs::Bpffs;
use redirector_tests::harness::product::health::{NAME, Setup};
use redirector_tests::harness::product::objects::detach_link;
use redirector_tests::harness::product::{self, exit};
use redirector_tests::harness::requirements::require_program;
use redirector_tests::harness::retry;
use redirector_tests::harness::server::{Server, any4, proxy_listeners};
use redirector_tests::harness::world::cgroup::Cgroup;
use redirector_tests::harness::world::{APP, PROXY, TRANSPARENT_PROXY, VIP4, World, at};

fn outside(setup: &Setup, cgroup: &Cgroup) -> Place {
    Place {
        netns: setup.world.pod().netns.file().to_owned(),
        cgroup: Some(cgroup.directory().to_owned()),
        owner: APP,
    }
}

#[test]
fn an_app_in_another_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _service) = (setup.proxy()?, setup.world.serve_outside(vec![Listen::on(any4(80))])?);
    setup.attach(&[])?;
    let elsewhere = Cgroup::new(&names::unique())?;
    let _held = Held::start(&outside(&setup, &elsewhere), at(VIP4, 80))?;
    let found = setup.expect_fault("process_outside", &["outside the cgroup", "1 process", "probe"])?;
    assert!(
        found["what"]
            .as_str()
            .context("what")?
            .contains(&setup.world.pod().cgroup.directory().display().to_string())
    );
    // Its connection is no finding of its own.
    assert_eq!(setup.findings()?.iter().filter(|finding| finding["level"] == "fault").count(), 1);
    Ok(())
}

#[test]
fn a_connection_that_is_older_than_the_attach() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _service) = (setup.proxy()?, setup.world.serve_outside(vec![Listen::on(any4(80))])?);
    let app = setup.world.pod().place(APP)?;
    let older = Held::start(&app, at(VIP4, 80))?;
    setup.attach(&[])?;
    let younger = Held::start(&app, at(VIP4, 80))?;
    setup.expect_fault(
        "connection_older",
        &["1 connection is older than the attach", "10.96.0.10:80", "probe"],
    )?;
    drop(older);
    setup.expect_well()?;
    drop(younger);
    Ok(())
}

#[test]
fn a_socket_that_was_made_in_another_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _service) = (setup.proxy()?, setup.world.serve_outside(vec![Listen::on(any4(80))])?);
    let elsewhere = Cgroup::new(&names::unique())?;
    let _held = Held::start(&outside(&setup, &elsewhere), at(VIP4, 80))?;
    let pids = std::fs::read_to_string(elsewhere.directory().join("cgroup.procs"))?;
    let app = setup.world.pod().cgroup.child("app")?;
    for pid in pids.lines() {
        std::fs::write(app.join("cgroup.procs"), pid)?;
    }
    setup.attach(&[])?;
    setup.expect_fault("socket_made_outside", &["made outside the cgroup", "10.96.0.10:80"])?;
    Ok(())
}

#[test]
fn an_app_of_the_proxys_user() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _service) = (setup.proxy()?, setup.world.serve_outside(vec![Listen::on(any4(80))])?);
    setup.attach(&[])?;
    let place = Place { owner: PROXY, ..setup.world.pod().place(APP)? };
    let held = Held::start(&place, at(VIP4, 80))?;
    setup.expect_fault("app_as_proxy_user", &["uid 1337", "not the proxy"])?;
    drop(held);
    setup.expect_well()?;
    let by_group = Place { owner: Owner { uid: 1000, ..PROXY }, ..setup.world.pod().place(APP)? };
    let held = Held::start(&by_group, at(VIP4, 80))?;
    setup.expect_fault("app_as_proxy_user", &["uid 1000, gid 1337", "not the proxy"])?;
    drop(held);
    setup.expect_well()?;
    // A process gives itself its name, which need not be text.
    let dir = tempfile::tempdir()?;
    let program = dir.path().join(OsStr::from_bytes(b"app\xff"));
    std::fs::copy("/bin/sleep", &program)?;
    let _app = Daemon::start("app", place.program(&program).arg("600"))?;
    let found = || setup.expect_fault("app_as_proxy_user", &["app\u{fffd} (uid 1337, gid 1337)"]).ok();
    retry::until("it to be found", found)?;
    Ok(())
}

#[test]
fn a_link_that_somebody_has_detached() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&["--redirect-dns", "--capture-all-dns"])?;
    for (hook, effect) in [
        ("connect4", "past the proxy"),
        ("sk_lookup", "without the proxy"),
        ("getsockopt", "original destinations"),
        ("sockname4", "getsockname"),
        ("sendmsg4", "DNS queries"),
        ("sockops", "listeners are not registered"),
    ] {
        detach_link(&setup.node.instance(NAME).join(format!("link_{hook}")))?;
        setup.expect_fault("hook_detached", &[hook, effect, "redirector refresh pod"])?;
        setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    }
    let faults: Vec<_> = setup.findings()?.into_iter().filter(|f| f["kind"] == "hook_detached").collect();
    assert!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[test]
fn a_program_of_others() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let app = setup.world.pod().cgroup.child("app")?;
    sys::attach_foreign_connect4(File::open(&app)?, "foreign_lb4")?;
    setup.expect_fault("foreign_program", &["connect4 in", "/app", "foreign_lb4 runs before ours"])?;
    Ok(())
}

#[test]
fn a_program_of_others_at_the_same_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    sys::attach_foreign_connect4(File::open(setup.world.pod().cgroup.directory())?, "older_lb4")?;
    setup.attach(&[])?;
    sys::attach_foreign_connect4(File::open(setup.world.pod().cgroup.directory())?, "younger_lb4")?;
    setup.expect_fault("foreign_program", &["older_lb4 runs before ours"])?;
    let younger = setup.findings()?;
    let younger = younger.iter().find(|f| f.to_string().contains("younger_lb4")).context("younger_lb4")?;
    assert_eq!(younger["level"], "notice", "{younger:#}");
    Ok(())
}

/// At hooks that we do not use: one that drops what is sent to the proxy, one that lets it through, one that may refuse
/// sockets.
#[test]
fn a_program_of_others_that_refuses() -> anyhow::Result<()> {
    const MULTI: u32 = 2;
    const EGRESS: (u32, u32) = (8, 1);
    const SOCK_CREATE: (u32, u32) = (9, 2);
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let app = setup.world.pod().cgroup.child("app")?;
    sys::attach_foreign(File::open(&app)?, "accounting", EGRESS, MULTI, 1)?;
    sys::attach_foreign(File::open(&app)?, "quota", SOCK_CREATE, MULTI, 1)?;
    let notices = setup.expect_well()?;
    let told = notices.iter().filter(|notice| notice["kind"] == "foreign_program").collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].to_string().contains("quota"), "{notices:#?}");
    sys::attach_foreign(File::open(setup.world.pod().cgroup.directory())?, "firewall", EGRESS, MULTI, 0)?;
    setup.expect_fault(
        "foreign_program",
        &["egress", "firewall drops what is sent to the proxy", "bpftool"],
    )?;
    Ok(())
}

#[test]
fn a_second_instance_of_another_bpffs() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let other = Bpffs::new()?;
    other
        .attach(setup.world.pod(), "other", &[])?
        .refused(exit::USAGE, &["another instance", "this bpffs does not know"])?;
    other.expect_empty()?;
    setup.expect_well()?;
    Ok(())
}

#[test]
fn no_room_for_more() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&["--max-destinations", "0", "--max-connections", "1"])?;
    let held = Held::start(&setup.world.pod().place(APP)?, at(VIP4, 80))?;
    setup.expect_fault("full", &["stored connections 1 of 1: full", "ENOBUFS", "--max-connections"])?;
    drop(held);
    setup.expect_well()?;
    setup.node.run(&["detach", NAME])?.expect(exit::OK)?;
    setup.attach(&["--max-destinations", "1"])?;
    let _held = Held::start(&setup.world.pod().place(APP)?, at(VIP4, 80))?;
    let notices = setup.expect_well()?;
    assert!(notices.iter().any(|notice| notice["kind"] == "destinations_full"), "{notices:#?}");
    Ok(())
}

/// Captured connections go over lo.
#[test]
fn lo_is_down() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    netns.ip("link set lo down\n")?;
    setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    // Also where verify can try nothing.
    setup.expect_fault("loopback_down", &["lo is down", "time out", "ip link set lo up"])?;
    netns.ip("link set lo up\n")?;
    setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    setup.expect_well()?;
    if kernel::has_ipv6() {
        // What is captured goes to the pod's own address.
        netns.ip("address del ::1/128 dev lo\n")?;
        setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
        setup.expect_well()?;
        netns.sysctl(&[("ipv6/conf/lo/disable_ipv6", "1")])?;
        setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
        setup.expect_fault("loopback_down", &["IPv6 is off", "over IPv6", "disable_ipv6"])?;
    }
    Ok(())
}

/// Rules, routes and parameters of TPROXY mode, and the classifier of `-k`; a refresh makes them again.
#[test]
fn what_attach_had_changed_is_taken_back() -> anyhow::Result<()> {
    let (Some(setup), Some(tc)) = (Setup::new()?, require_program("tc")) else { return Ok(()) };
    if !kernel::is_at_least(5, 17) {
        return Ok(());
    }
    let netns = &setup.world.pod().netns;
    netns.ip(
        "link add guest type veth peer name other\nlink set guest up\naddress add 10.79.0.1/24 dev guest\n",
    )?;
    let listeners =
        proxy_listeners(1).into_iter().map(|listen| Listen { transparent: true, ..listen }).collect();
    let _proxy = setup.world.pod().serve(TRANSPARENT_PROXY, "proxy", listeners)?;
    let mend = || -> anyhow::Result<()> {
        setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
        setup.expect_well().map(drop)
    };
    setup.attach(&["-m", "TPROXY"])?;
    netns.ip("rule del fwmark 1337\nroute flush table 133\n")?;
    netns.sysctl(&[("ipv4/tcp_fwmark_accept", "0")])?;
    setup.expect_fault(
        "change_undone",
        &["IPv4 rule of TPROXY", "IPv4 route", "tcp_fwmark_accept", "refresh"],
    )?;
    mend()?;
    setup.node.run(&["detach", NAME])?.expect(exit::OK)?;
    setup.attach(&["-k", "guest"])?;
    setup.expect_well()?;
    run(netns.command(&tc).args(["qdisc", "del", "dev", "guest", "clsact"]), "")?;
    setup.expect_fault("change_undone", &["tc classifier of guest"])?;
    mend()
}

/// Two pods that share a cgroup are no second instance of one.
#[test]
fn another_pod_in_the_same_cgroup() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, other) = (setup.proxy()?, World::new()?);
    setup.attach(&[])?;
    let netns = other.pod().netns.file().to_string_lossy().into_owned();
    let cgroup = setup.world.pod().cgroup.directory().to_string_lossy().into_owned();
    let attach = ["attach", "--netns", &netns, "--cgroup", &cgroup, "--name", "other", "--allow-partial"];
    setup.node.run(&attach)?.expect(exit::OK)?;
    setup.expect_well()?;
    let told = setup.node.run(&["status", "other"])?.looked()?.stdout;
    assert!(!told.contains("second_instance"), "{told}");
    Ok(())
}

#[test]
fn an_address_that_has_changed() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    setup.expect_well()?;
    setup.world.pod().netns.ip("address add 10.77.9.9/32 dev eth0\n")?;
    setup.expect_fault("snapshot_stale", &["1 address (10.77.9.9)", "redirector refresh pod"])?;
    setup.node.run(&["refresh", NAME])?.expect(exit::OK)?;
    setup.expect_well()?;
    setup.world.pod().netns.ip("route add prohibit 10.55.0.0/16\n")?;
    setup.expect_fault("snapshot_stale", &["1 route (10.55.0.0/16)"])?;
    Ok(())
}

/// A policy that captures nothing is a mistake.
#[test]
fn a_policy_that_captures_nothing() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&["--istio-defaults"])?;
    setup.expect_fault("captures_nothing", &["past the proxy", "-i '*'"])?;
    let answer = setup.node.run(&["status", NAME])?.json()?;
    assert_eq!(answer["instances"][0]["captures"], "nothing");
    setup.attach(&["-c", "eth0"])?;
    setup.expect_fault("interfaces_excluded", &["(-c eth0)", "past the proxy"])?;
    Ok(())
}

#[test]
fn a_target_that_is_gone() -> anyhow::Result<()> {
    let Some(Setup { node, world }) = Setup::new()? else { return Ok(()) };
    node.attach(world.pod(), NAME, &[])?.expect(exit::OK)?;
    drop(world);
    // The kernel takes a namespace down in the background (`cleanup_net`); until then nothing says that it is gone.
    let answer = retry::until("the namespace to be gone", || {
        let answer = node.run(&["status", NAME]).ok()?.expect(exit::FAILED).ok()?.json().ok()?;
        (answer["instances"][0]["findings"][0]["kind"] == "target_gone").then_some(answer)
    })?;
    assert_eq!(answer["instances"][0]["findings"][0]["remedy"], "redirector detach --name pod");
    Ok(())
}

/// One whose proxy's container was started again, and one that drains.
#[test]
fn states_of_an_instance() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let container = setup.world.pod().cgroup.child("proxy")?;
    let place = Place { cgroup: Some(container.clone()), ..setup.world.pod().place(PROXY)? };
    let proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
    setup.attach(&["--proxy-cgroup", &container.display().to_string()])?;
    let held = Held::start(&setup.world.pod().place(APP)?, at(VIP4, 80))?;
    setup.expect_well()?;
    drop(proxy);
    retry::until("the container's cgroup to be empty", || std::fs::remove_dir(&container).ok())?;
    std::fs::create_dir(&container)?;
    let _proxy = Server::start(&place, "proxy", proxy_listeners(1))?;
    setup.expect_found("proxy_cgroup_gone", &["loop", "attach with --proxy-cgroup"])?;
    let bpffs = setup.node.path().display().to_string();
    let mut drain = product::command(&[]);
    let mut drain = drain.args(["--bpffs", &bpffs, "detach", NAME, "--drain=60"]).spawn()?;
    retry::until("the drain to begin", || {
        setup.node.list().ok()?.first().filter(|i| i["state"] == "draining").map(drop)
    })?;
    setup.expect_found("draining", &["go past the proxy", "redirector detach"])?;
    drop(held);
    assert!(drain.wait()?.success());
    Ok(())
}

/// Links, programs and maps of the instance are all that is asked: nothing is changed by looking.
#[test]
fn looking_changes_nothing() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let before = (setup.node.pins()?, setup.node.show(NAME)?["counters"].clone());
    setup.expect_well()?;
    assert_eq!(before, (setup.node.pins()?, setup.node.show(NAME)?["counters"].clone()));
    Ok(())
}
