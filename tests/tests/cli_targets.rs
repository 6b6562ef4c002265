//! Which pod is meant, and when it is refused: processes elsewhere, iptables chains, names that are taken.

use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use redirector_tests::harness::command::output;
use redirector_tests::harness::oracle;
use redirector_tests::harness::oracle::options::Options;
use redirector_tests::harness::pair::matrix::SERVED;
use redirector_tests::harness::probe::observation::Observation;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::process::Place;
use redirector_tests::harness::product::bpffs::{Node, target};
use redirector_tests::harness::product::objects::links_of;
use redirector_tests::harness::product::{Run, exit};
use redirector_tests::harness::requirements::{require_program, require_root};
use redirector_tests::harness::server::{Server, any4, proxy_listeners};
use redirector_tests::harness::world::netns::Netns;
use redirector_tests::harness::world::{APP, PROXY, Pod, PodOptions, VIP4, World, at, observe};

const NAME: &str = "pod";

fn world() -> anyhow::Result<Option<(Node, World)>> {
    if !require_root() || require_program("bpftool").is_none() {
        return Ok(None);
    }
    Ok(Some((Node::new()?, World::new()?)))
}

fn expect_untouched(node: &Node, pod: &Pod) -> anyhow::Result<()> {
    node.expect_empty()?;
    assert_eq!(links_of(pod)?, [0, 0]);
    Ok(())
}

fn summary(seen: &[Observation]) -> String {
    seen.first().map(Observation::summary).unwrap_or_default()
}

/// `--pid` takes the innermost cgroup that holds every process of the pod, and says which.
#[test]
fn the_cgroup_of_a_process() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let attach = |server: &Server| -> anyhow::Result<Value> {
        let run = node
            .run(&["attach", "--pid", &server.pid().to_string(), "--name", NAME])?
            .expect(exit::OK)?
            .json()?;
        node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
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
    let named = node.run(&["attach", "--pid", &app.pid().to_string()])?.expect(exit::OK)?.json()?;
    let name = named["name"].as_str().context("a name")?.to_owned();
    let mut arguments = vec!["attach".to_owned()];
    arguments.extend(target(pod));
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The pod's cgroup is another one than the container's.
    node.run(&words)?.refused(exit::USAGE, &[&name, "another cgroup", &directory, "detach it first"])?;
    node.run(&["detach", "--name", &name])?.expect(exit::OK)?;
    assert_eq!(node.run(&words)?.expect(exit::OK)?.json()?["name"], name);
    node.run(&["detach", "--name", &name])?.expect(exit::OK)?;
    expect_untouched(&node, pod)
}

/// Processes of the pod that are outside the cgroup would go around the proxy.
#[test]
fn strays() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    let _remote = world.serve_outside(redirector_tests::harness::server::everywhere(&[SERVED]))?;
    let elsewhere = Place { netns: pod.netns.file().to_owned(), cgroup: None, owner: APP };
    let stray = Server::start(&elsewhere, "stray", Vec::new())?;
    let pid = stray.pid().to_string();
    let cgroup = pod.cgroup.directory().display().to_string();

    node.attach(pod, NAME, &[])?.refused(exit::USAGE, &[&pid, "(probe)", &cgroup, "--allow-partial"])?;
    node.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &[&pid, "--allow-partial"])?;
    // No cgroup but the root holds both.
    node.run(&["attach", "--pid", &pid])?
        .refused(exit::USAGE, &["root cgroup", &pid, "--netns and --cgroup"])?;
    expect_untouched(&node, pod)?;

    let run = node.attach(pod, NAME, &["--allow-partial"])?.expect(exit::OK)?;
    assert!(run.stderr.contains(&pid) && run.error()?["note"].is_string(), "{run:?}");
    let to = [Scenario::to(at(VIP4, SERVED))];
    assert!(summary(&pod.observe(APP, &to)?).starts_with("proxy:15001"));
    assert_eq!(summary(&observe(&elsewhere, &to)?), "remote:8080");
    drop(stray);
    // It has gone, and the same again needs no consent.
    assert_eq!(node.attach(pod, NAME, &[])?.expect(exit::OK)?.json()?["outcome"], "unchanged");
    Ok(())
}

/// A proxy outside the cgroup gets nothing from the network, and that is said, also by a later refresh.
#[test]
fn a_listener_of_a_stray() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let elsewhere = Place { netns: pod.netns.file().to_owned(), cgroup: None, owner: PROXY };
    let _stray = Server::start(&elsewhere, "stray", vec![Listen::on(any4(15006))])?;
    let told = "port 15006 has a listener that is of no process in the cgroup";
    let run = node.attach(pod, NAME, &["--allow-partial"])?.expect(exit::OK)?;
    assert!(run.stderr.contains(told), "{run:?}");
    let run = node.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert!(run.stderr.contains(told) && run.stderr.contains("(probe)"), "{run:?}");
    Ok(())
}

/// Processes that come and go while `attach` looks are no strays.
#[test]
fn busy_pods_have_no_strays() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let place = pod.place(APP)?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| -> anyhow::Result<()> {
            let shell = require_program("sh").context("a shell")?;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut command = place.program(&shell);
                command.args(["-c", "for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true & done; wait"]);
                redirector_tests::harness::command::run(&mut command, "")?;
            }
            Ok(())
        });
        let attached = (0..20).try_for_each(|number| {
            let flags: &[&str] = if number % 2 == 0 { &[] } else { &["-o", "81"] };
            node.attach(pod, NAME, flags)?.expect(exit::OK).map(drop)
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        attached
    })
}

/// Live chains of istio-init, of both flavours and families; others are nobody's business.
#[test]
fn iptables_chains() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    let pod = world.pod();
    let remedy = ["would be redirected twice", "--cleanup-only"];
    let mut flavours = Vec::new();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        if require_program(program).is_none() {
            continue;
        }
        let Some(chains) = Chains::new(&pod.netns, program)? else { continue };
        let words = ["ISTIO_OUTPUT", remedy[0], remedy[1]];
        node.attach(pod, NAME, &[])?.refused(exit::USAGE, &words).with_context(|| program.to_owned())?;
        node.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &words)?;
        expect_untouched(&node, pod)?;
        chains.remove()?;
        node.attach(pod, NAME, &[])?.expect(exit::OK).with_context(|| program.to_owned())?;
        node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
        flavours.push(program);
    }
    println!("seen: {flavours:?}");
    assert!(!flavours.is_empty(), "no iptables works here");

    // All of istio-init's, as they are in a pod.
    oracle::install(&pod.netns, &Options::sidecar())?;
    let words =
        ["ISTIO_INBOUND", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT", "ISTIO_REDIRECT", remedy[0], remedy[1]];
    node.attach(pod, NAME, &[])?.refused(exit::USAGE, &words)?;
    expect_untouched(&node, pod)
}

/// Tables of newer Istio, which makes them by nft: in sidecar and ambient mode. Others, and what is left of them without
/// chains of their own, are nobody's business.
#[test]
fn native_nftables() -> anyhow::Result<()> {
    let Some((node, world)) = world()? else { return Ok(()) };
    if require_program("nft").is_none() {
        return Ok(());
    }
    let pod = world.pod();
    let nft = |text: &str| {
        redirector_tests::harness::command::run(pod.netns.command("nft").args(["-f", "-"]), text)
    };
    let base = |table: &str| {
        let hook = "{ type nat hook output priority -100; }";
        format!("add table inet {table}\nadd chain inet {table} output {hook}\n")
    };
    nft(&format!("{}add chain inet mine istio-output\n{}", base("mine"), base("istio-proxy-nat")))?;
    node.attach(pod, NAME, &[])?.expect(exit::OK)?;
    node.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    for table in ["istio-proxy-nat", "istio-proxy-mangle", "istio-proxy-raw", "istio-ambient-nat"] {
        let jump = format!("add rule inet {table} output counter jump istio-output\n");
        nft(&format!("{}add chain inet {table} istio-output\n{jump}", base(table)))?;
        let words = [format!("nftables table {table}"), "--native-nftables".to_owned()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        node.attach(pod, NAME, &[])?.refused(exit::USAGE, &words)?;
        node.attach(pod, NAME, &["--dry-run"])?.refused(exit::USAGE, &words)?;
        expect_untouched(&node, pod)?;
        nft(&format!("delete table inet {table}"))?;
    }
    node.attach(pod, NAME, &[])?.expect(exit::OK)?;
    Ok(())
}

/// An `ISTIO_OUTPUT` chain, and one whose name only looks a little like it.
struct Chains<'a> {
    netns: &'a Netns,
    program: &'static str,
}

impl<'a> Chains<'a> {
    /// None where the kernel lacks what the program needs.
    fn new(netns: &'a Netns, program: &'static str) -> anyhow::Result<Option<Self>> {
        let chains = Self { netns, program };
        let made = output(chains.command().args(["-N", "ISTIO_OUTPUT"]), "")?;
        if !made.status.success() {
            println!("{program} does not work here: {}", String::from_utf8_lossy(&made.stderr).trim());
            return Ok(None);
        }
        redirector_tests::harness::command::run(chains.command().args(["-N", "KUBE-ISTIO_X"]), "")?;
        Ok(Some(chains))
    }

    fn command(&self) -> Command {
        let mut command = self.netns.command(self.program);
        command.args(["-t", "nat"]);
        command
    }

    fn remove(self) -> anyhow::Result<()> {
        redirector_tests::harness::command::run(self.command().args(["-X", "ISTIO_OUTPUT"]), "").map(drop)
    }
}

/// A namespace has one instance, and a name one namespace.
#[test]
fn names_that_are_taken() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, world) = (Node::new()?, World::with(&vec![PodOptions::default(); 2])?);
    let [first, second] = [&world.pods[0], &world.pods[1]];
    node.attach(first, "first", &[])?.expect(exit::OK)?;
    let before = (node.pins()?, node.show("first")?);
    node.attach(first, "other", &[])?.refused(exit::USAGE, &["instance first", "--name first", "detach"])?;
    node.attach(first, "other", &["-o", "81"])?.refused(exit::USAGE, &["instance first"])?;
    node.attach(second, "first", &[])?
        .refused(exit::USAGE, &["first", "another network namespace", "--name"])?;
    let other: Run = node.attach(second, "first", &["--dry-run"])?;
    assert_eq!(other.code, Some(exit::OK), "a dry run looks at no instance: {other:?}");
    assert_eq!((node.pins()?, node.show("first")?), before);
    assert_eq!(links_of(second)?, [0, 0]);

    // One that is damaged does not keep the others from theirs.
    std::fs::remove_file(node.instance("first").join("META"))?;
    node.attach(second, "second", &[])?.expect(exit::OK)?;
    node.attach(first, "first", &[])?.refused(exit::FAILED, &["first", "damaged", "detach --name first"])?;
    node.attach(first, "other", &[])?.refused(exit::FAILED, &["first", "damaged", "detach --name first"])?;
    node.run(&["detach", "--name", "first"])?.expect(exit::OK)?;
    node.attach(first, "other", &[])?.expect(exit::OK)?;
    Ok(())
}
