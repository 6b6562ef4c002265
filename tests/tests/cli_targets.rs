//! Which pod is meant, and when it is refused: processes elsewhere, iptables chains, names that are taken.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::names;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::probe::sys;
use redirector_tests::harness::server::any4;
use redirector_tests::harness::world::cgroup::Cgroup;
use redirector_tests::harness::world::netns::Netns;
use serde_json::Value;

fn world() -> anyhow::Result<Option<(Bpffs, World)>> {
    require_root!("bpftool");
    Ok(Some((Bpffs::new()?, World::new()?)))
}

fn expect_untouched(bpffs: &Bpffs, pod: &Pod) -> anyhow::Result<()> {
    bpffs.expect_empty()?;
    assert_eq!(links_of(pod)?, [0, 0]);
    Ok(())
}

#[test]
fn a_mount_whose_name_is_no_text() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let script =
        "cd \"$0\" && d=$(printf 'm\\377') && mkdir \"$d\" && mount -t tmpfs none \"$d\" && exec \"$@\"";
    let dir = tempfile::tempdir()?;
    let by = ["unshare", "--mount", "sh", "-c", script, dir.path().to_str().context("a path")?];
    bpffs.attach_by(&by, world.pod(), NAME, &[])?.expect(exit::OK).map(drop)
}

/// `ip netns add` of newer iproute2 mounts where an agent in a mount namespace of its own sees nothing: an empty file is there.
#[test]
fn a_mount_that_has_not_reached_the_command() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let netns = world.pod().netns.file().to_string_lossy().into_owned();
    let script = "umount \"$0\" && exec \"$@\"";
    let first = "unshare --mount sh -c \"$0\" \"$@\"; exit $?";
    let by = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", first, script, &netns];
    bpffs.attach_by(&by, world.pod(), NAME, &[])?.expect(exit::OK)?;
    for verb in [&["refresh", NAME][..], &["status", "--netns", &netns]] {
        let told = format!("{:?}", Run::of(&mut bpffs.command(&by, verb))?);
        anyhow::ensure!(!told.contains("is gone") && !told.contains("cannot"), "{told}");
    }
    Ok(())
}

fn summary(seen: &[Observation]) -> String {
    seen.first().map(Observation::summary).unwrap_or_default()
}

/// `--pid` takes the innermost cgroup that holds every process of the pod, and says which.
#[test]
fn the_cgroup_of_a_process() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let attach = |server: &Server| -> anyhow::Result<Value> {
        let run = bpffs
            .run(&["attach", "--pid", &server.pid().to_string(), "--name", NAME])?
            .expect(exit::OK)?
            .json()?;
        bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        Ok(run)
    };
    let directory = pod.cgroup.directory().display().to_string();
    let app = pod.serve(APP, "app", Vec::new())?;
    assert_eq!(attach(&app)?["cgroup"], format!("{directory}/app"), "one container is all there is");
    let proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    for server in [&app, &proxy] {
        let run = attach(server)?;
        assert_eq!(run["cgroup"], directory, "both containers");
        assert_eq!(run["outcome"], "attached");
    }
    drop(proxy);

    // The default name is the same for all ways to say which pod.
    let named = bpffs.run(&["attach", "--pid", &app.pid().to_string()])?.expect(exit::OK)?.json()?;
    let name = named["name"].as_str().context("a name")?.to_owned();
    let mut arguments = vec!["attach".to_owned()];
    arguments.extend(target(pod));
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The pod's cgroup is another one than the container's.
    bpffs.run(&words)?.refused(exit::USAGE, &[&name, "another cgroup", &directory, "detach it first"])?;
    bpffs.run(&["detach", "--name", &name])?.expect(exit::OK)?;
    assert_eq!(bpffs.run(&words)?.expect(exit::OK)?.json()?["name"], name);
    bpffs.run(&["detach", "--name", &name])?.expect(exit::OK)?;
    expect_untouched(&bpffs, pod)
}

/// A service that manages cgroups itself could step beside the innermost: the unit's is taken, and where no unit is, none.
#[test]
fn a_cgroup_that_the_application_manages() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let delegated = |name: &str| -> anyhow::Result<(Daemon, PathBuf)> {
        let dir = pod.cgroup.child(name)?;
        let own = pod.cgroup.child(&format!("{name}/own\u{1b}[31m"))?;
        for file in [dir.clone(), dir.join("cgroup.procs"), own.clone()] {
            std::os::unix::fs::chown(file, Some(APP.uid), None)?;
        }
        let place = Place { netns: pod.netns.file().to_owned(), cgroup: Some(own), owner: APP };
        let mut sleep = place.program("/bin/sleep".as_ref());
        Ok((Daemon::start("sleep", sleep.arg("600"))?, dir))
    };
    let attach = |service: &Daemon| -> anyhow::Result<Run> {
        let pid = service.pid().to_string();
        retry::until("the process to be in its place", || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name == "sleep\n").then_some(())
        })?;
        bpffs.run(&["attach", "--pid", &pid, "--name", NAME])
    };
    let (service, dir) = delegated("shop")?;
    let shown = dir.display().to_string();
    attach(&service)?
        .refused(exit::USAGE, &[&shown, "others than root manage", "--netns FILE and --cgroup DIR"])?;
    expect_untouched(&bpffs, pod)?;
    drop(service);
    let (service, dir) = delegated("shop.service")?;
    let attached = attach(&service)?.expect(exit::OK)?.json()?;
    assert_eq!(attached["cgroup"], dir.display().to_string());
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    // What a service calls its cgroup is not obeyed by the terminal.
    let (netns, own) =
        (pod.netns.file().display().to_string(), dir.join("own\u{1b}[31m").display().to_string());
    let bpffs_dir = bpffs.path().display().to_string();
    let mut text = redirector_tests::harness::product::command(&[]);
    text.args(["--bpffs", &bpffs_dir, "attach", "--netns", &netns, "--cgroup", &own, "--name", NAME]);
    let text = Run::of(&mut text)?.expect(exit::OK)?.stdout;
    assert!(text.contains("own\u{fffd}[31m") && !text.contains('\u{1b}'), "{text:?}");
    Ok(())
}

/// Programs of others that no link can be beside, or that it would switch off, are named.
#[test]
fn programs_that_suffer_no_other() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let (pod, upper) = (world.pod(), world.pod().cgroup.directory());
    let inner = pod.cgroup.child("inner")?.display().to_string();
    let netns = pod.netns.file().display().to_string();
    let attach = || bpffs.run(&["attach", "--netns", &netns, "--cgroup", &inner, "--name", NAME]);
    for (name, flags, words) in
        [("firewall", 1, "would run no more for the pod"), ("exclusive", 0, "which forbids every other")]
    {
        sys::attach_foreign_connect4_with(File::open(upper)?, name, flags)?;
        let shown = upper.display().to_string();
        attach()?.refused(
            exit::USAGE,
            &[name, "connect4", &shown, words, "BPF_F_ALLOW_MULTI", "bpftool prog show"],
        )?;
        expect_untouched(&bpffs, pod)?;
        detach_connect4(upper)?;
    }
    sys::attach_foreign_connect4(File::open(upper)?, "shared")?;
    attach()?.expect(exit::OK)?;
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    detach_connect4(upper)
}

fn detach_connect4(cgroup: &Path) -> anyhow::Result<()> {
    let shown = run(Command::new("bpftool").args(["-j", "cgroup", "show"]).arg(cgroup), "")?;
    let programs: Value = serde_json::from_str(&shown)?;
    let id = programs[0]["id"].as_u64().with_context(|| shown.clone())?.to_string();
    let mut detach = Command::new("bpftool");
    detach.args(["cgroup", "detach"]).arg(cgroup).args(["cgroup_inet4_connect", "id", &id]);
    run(&mut detach, "").map(drop)
}

/// Processes of the pod that are outside the cgroup would go around the proxy.
#[test]
fn strays() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    let _remote = world.serve_outside(redirector_tests::harness::server::everywhere(&[SERVED]))?;
    let elsewhere = Place { netns: pod.netns.file().to_owned(), cgroup: None, owner: APP };
    let stray = Server::start(&elsewhere, "stray", Vec::new())?;
    let pid = stray.pid().to_string();
    let cgroup = pod.cgroup.directory().display().to_string();

    bpffs.attach(pod, NAME, &[])?.refused(exit::USAGE, &[&pid, "(probe)", &cgroup, "--allow-partial"])?;
    bpffs.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &[&pid, "--allow-partial"])?;
    // No cgroup but the root holds both.
    bpffs
        .run(&["attach", "--pid", &pid])?
        .refused(exit::USAGE, &["root cgroup", &pid, "--netns and --cgroup"])?;
    expect_untouched(&bpffs, pod)?;

    let run = bpffs.attach(pod, NAME, &["--allow-partial"])?.expect(exit::OK)?;
    assert!(run.stderr.contains(&pid) && run.error()?["note"].is_string(), "{run:?}");
    let to = [Scenario::to(SERVICE)];
    assert!(summary(&pod.observe(APP, &to)?).starts_with("proxy:15001"));
    assert_eq!(summary(&observe(&elsewhere, &to)?), "remote:8080");
    drop(stray);
    // It has gone, and the same again needs no consent.
    assert_eq!(bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?.json()?["outcome"], "unchanged");
    Ok(())
}

/// A proxy outside the cgroup gets nothing from the network, and that is said, also by a later refresh.
#[test]
fn a_listener_of_a_stray() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let elsewhere = Place { netns: pod.netns.file().to_owned(), cgroup: None, owner: PROXY };
    let _stray = Server::start(&elsewhere, "stray", vec![Listen::on(any4(15006))])?;
    let told = "port 15006 has a listener that is of no process in the cgroup";
    let run = bpffs.attach(pod, NAME, &["--allow-partial"])?.expect(exit::OK)?;
    assert!(run.stderr.contains(told), "{run:?}");
    let run = bpffs.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert!(run.stderr.contains(told) && run.stderr.contains("(probe)"), "{run:?}");
    Ok(())
}

/// A listener that is registered stays registered when a refresh cannot find it again: here its process has left the
/// cgroup, as it could be behind more descriptors than are searched.
#[test]
fn a_registered_listener_is_not_forgotten() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    let proxy = Server::start(&pod.place(PROXY)?, "proxy", vec![Listen::on(any4(15006))])?;
    let registered = || -> anyhow::Result<Value> {
        let listeners = bpffs.show(NAME)?["listeners"].take();
        let inbound = listeners.as_array().and_then(|all| all.iter().find(|it| it["traffic"] == "inbound"));
        Ok(inbound.context("inbound listeners")?["ipv4"].clone())
    };
    assert_eq!(registered()?, 1, "it has registered itself");
    let elsewhere = Cgroup::new(&names::unique())?;
    std::fs::write(elsewhere.directory().join("cgroup.procs"), proxy.pid().to_string())?;
    for _ in 0..2 {
        let run = bpffs.run(&["refresh", NAME])?.expect(exit::OK)?;
        assert!(!run.stderr.contains("no process in the cgroup"), "{run:?}");
        assert_eq!(registered()?, 1, "{run:?}");
    }
    drop(proxy);
    assert_eq!(registered()?, 0, "it has gone");
    Ok(())
}

/// Processes that come and go while `attach` looks are no strays.
#[test]
fn busy_pods_have_no_strays() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let place = pod.place(APP)?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| -> anyhow::Result<()> {
            let shell = require_program("sh").context("a shell")?;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut command = place.program(&shell);
                command.args(["-c", "for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true & done; wait"]);
                run(&mut command, "")?;
            }
            Ok(())
        });
        let attached = (0..20).try_for_each(|number| {
            let flags: &[&str] = if number % 2 == 0 { &[] } else { &["-o", "81"] };
            bpffs.attach(pod, NAME, flags)?.expect(exit::OK).map(drop)
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        attached
    })
}

/// Live chains of istio-init, of both flavours and families; others are nobody's business.
#[test]
fn iptables_chains() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let remedy = ["would be redirected twice", "--cleanup-only"];
    let mut flavours = Vec::new();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        if require_program(program).is_none() {
            continue;
        }
        let Some(chains) = Chains::new(&pod.netns, program)? else { continue };
        let words = [&OF_MESHES[..], &remedy[..]].concat();
        bpffs.attach(pod, NAME, &[])?.refused(exit::USAGE, &words).with_context(|| program.to_owned())?;
        bpffs.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &words)?;
        expect_untouched(&bpffs, pod)?;
        chains.remove()?;
        bpffs.attach(pod, NAME, &[])?.expect(exit::OK).with_context(|| program.to_owned())?;
        bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        flavours.push(program);
    }
    println!("seen: {flavours:?}");
    assert!(!flavours.is_empty(), "no iptables works here");

    // All of istio-init's, as they are in a pod.
    oracle::install(&pod.netns, &Options::sidecar())?;
    let words =
        ["ISTIO_INBOUND", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT", "ISTIO_REDIRECT", remedy[0], remedy[1]];
    bpffs.attach(pod, NAME, &[])?.refused(exit::USAGE, &words)?;
    expect_untouched(&bpffs, pod)
}

/// Tables of newer Istio, which makes them by nft: in sidecar and ambient mode. Others, and what is left of them without
/// chains of their own, are nobody's business.
#[test]
fn native_nftables() -> anyhow::Result<()> {
    let Some((bpffs, world)) = world()? else { return Ok(()) };
    if require_program("nft").is_none() {
        return Ok(());
    }
    let pod = world.pod();
    let nft = |text: &str| run(pod.netns.command("nft").args(["-f", "-"]), text);
    let base = |table: &str| {
        let hook = "{ type nat hook output priority -100; }";
        format!("add table inet {table}\nadd chain inet {table} output {hook}\n")
    };
    nft(&format!("{}add chain inet mine istio-output\n{}", base("mine"), base("istio-proxy-nat")))?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    for table in ["istio-proxy-nat", "istio-proxy-mangle", "istio-proxy-raw", "istio-ambient-nat"] {
        let jump = format!("add rule inet {table} output counter jump istio-output\n");
        nft(&format!("{}add chain inet {table} istio-output\n{jump}", base(table)))?;
        let words = [format!("nftables table {table}"), "--native-nftables".to_owned()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        bpffs.attach(pod, NAME, &[])?.refused(exit::USAGE, &words)?;
        bpffs.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &words)?;
        expect_untouched(&bpffs, pod)?;
        nft(&format!("delete table inet {table}"))?;
    }
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    Ok(())
}

/// An `ISTIO_OUTPUT` chain, and one whose name only looks a little like it.
/// A chain of Istio, Consul, linkerd and Kuma each.
const OF_MESHES: [&str; 4] =
    ["ISTIO_OUTPUT", "CONSUL_PROXY_OUTPUT", "PROXY_INIT_REDIRECT", "KUMA_MESH_OUTBOUND"];

struct Chains<'a> {
    netns: &'a Netns,
    program: &'static str,
}

impl<'a> Chains<'a> {
    /// None where the kernel lacks what the program needs.
    fn new(netns: &'a Netns, program: &'static str) -> anyhow::Result<Option<Self>> {
        let chains = Self { netns, program };
        let made = output(chains.command().args(["-N", OF_MESHES[0]]), "")?;
        if !made.status.success() {
            println!("{program} does not work here: {}", String::from_utf8_lossy(&made.stderr).trim());
            return Ok(None);
        }
        for chain in &OF_MESHES[1..] {
            run(chains.command().args(["-N", chain]), "")?;
        }
        run(chains.command().args(["-N", "KUBE-ISTIO_X"]), "")?;
        Ok(Some(chains))
    }

    fn command(&self) -> Command {
        let mut command = self.netns.command(self.program);
        command.args(["-t", "nat"]);
        command
    }

    fn remove(self) -> anyhow::Result<()> {
        OF_MESHES.iter().try_for_each(|chain| run(self.command().args(["-X", chain]), "").map(drop))
    }
}

/// A namespace has one instance, and a name one namespace.
#[test]
fn names_that_are_taken() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::with(&vec![PodOptions::default(); 2])?);
    let [first, second] = [&world.pods[0], &world.pods[1]];
    bpffs.attach(first, "first", &[])?.expect(exit::OK)?;
    let before = (bpffs.pins()?, bpffs.show("first")?);
    bpffs.attach(first, "other", &[])?.refused(exit::USAGE, &["instance first", "--name first", "detach"])?;
    bpffs.attach(first, "other", &["-o", "81"])?.refused(exit::USAGE, &["instance first"])?;
    bpffs
        .attach(second, "first", &[])?
        .refused(exit::USAGE, &["first", "another network namespace", "--name"])?;
    let other: Run = bpffs.attach(second, "first", &["--dry-run"])?;
    assert_eq!(other.code, Some(exit::OK), "a dry run looks at no instance: {other:?}");
    assert_eq!((bpffs.pins()?, bpffs.show("first")?), before);
    assert_eq!(links_of(second)?, [0, 0]);

    // One that is damaged does not keep the others from theirs.
    std::fs::remove_file(bpffs.instance("first").join("META"))?;
    bpffs.attach(second, "second", &[])?.expect(exit::OK)?;
    bpffs.attach(first, "first", &[])?.refused(exit::FAILED, &["first", "damaged", "detach --name first"])?;
    bpffs.attach(first, "other", &[])?.refused(exit::FAILED, &["first", "damaged", "detach --name first"])?;
    bpffs.run(&["detach", "--name", "first"])?.expect(exit::OK)?;
    bpffs.attach(first, "other", &[])?.expect(exit::OK)?;
    Ok(())
}
