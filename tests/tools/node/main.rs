//! A real node: `cargo xtask node`.

mod cluster;
mod cni;
mod containerd;
mod deployment;
mod kubernetes;
mod leaving;
mod many;
mod pods;
mod reboot;
mod starts;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use redirector_tests::harness::machine::{global_sysctls, nothing_left};
use redirector_tests::harness::probe::run_if_asked;
use redirector_tests::harness::requirements::{require_envoy, require_root};

use crate::cluster::Cluster;
use crate::kubernetes::Kubernetes;
use crate::starts::{Plugin, RuntimeNode};

/// redirector on a real node, in namespaces of its own
#[derive(Debug, Parser)]
#[command(name = "node", bin_name = "cargo xtask node")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Containers whose first instruction connects, started by containerd, captured by the CNI plugin
    Runtime {
        /// How many containers
        #[arg(long, default_value_t = 100)]
        starts: u32,
        /// How many at a time
        #[arg(long, default_value_t = 2)]
        threads: u32,
    },
    /// A whole node: the agent as a DaemonSet, pods with Envoy, the agent killed and replaced, many pods
    Kubernetes {
        /// How many pods whose first instruction connects, in each part
        #[arg(long, default_value_t = 10)]
        starts: usize,
        /// How many pods at once in the last part
        #[arg(long, default_value_t = 20)]
        pods: usize,
    },
    /// Bring up a whole node and leave it until Enter is pressed
    Up,
}

fn main() -> ExitCode {
    run_if_asked();
    if !require_root() {
        return ExitCode::FAILURE;
    }
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> anyhow::Result<()> {
    let before = global_sysctls()?;
    let name = match verb {
        Verb::Runtime { starts, threads } => runtime(*starts, *threads)?,
        Verb::Kubernetes { starts, pods } => kubernetes(*starts, *pods)?,
        Verb::Up => up()?,
    };
    nothing_left(&name)?;
    ensure!(before == global_sysctls()?, "global sysctls have changed: they were {before:?}");
    println!("Everything is removed; the machine's sysctls are as before.");
    Ok(())
}

fn runtime(starts: u32, threads: u32) -> anyhow::Result<String> {
    let node = RuntimeNode::start()?;
    let name = node.machine.name().to_owned();
    let report = node.starts(Plugin::Shipped, starts, threads)?;
    let mut adds = report.adds.clone();
    adds.sort();
    println!(
        "{starts} containers whose first instruction connects, in {:.1} s: {} refused (no proxy yet), {} at the proxy, \
         {} escaped\n   ADD of all plugins: median {:?}, longest {:?}",
        report.took.as_secs_f32(),
        report.refused,
        report.proxy,
        report.escaped,
        adds.get(adds.len() / 2).context("a start")?,
        adds.last().context("a start")?,
    );
    ensure!(report.escaped == 0, "{} containers escaped", report.escaped);
    let late = node.starts(Plugin::Late, 5, 1)?;
    println!("The same with a plugin that attaches late: {} of 5 escaped", late.escaped);
    ensure!(late.escaped > 0, "the test sees no escape where there must be one");
    Ok(name)
}

fn cluster() -> anyhow::Result<Kubernetes> {
    let start = Instant::now();
    let binaries = std::env::var_os("REDIRECTOR_KUBERNETES").map(PathBuf::from);
    let cluster = Kubernetes::start(&binaries.context("REDIRECTOR_KUBERNETES names no directory")?, 250)?;
    println!("Kubernetes is up after {:.1} s", start.elapsed().as_secs_f32());
    Ok(cluster)
}

fn kubernetes(starts: usize, pods: usize) -> anyhow::Result<String> {
    let mut stage = Cluster::new(cluster()?, &require_envoy().context("no Envoy")?)?;
    println!("the agent is ready as a DaemonSet, with the shipped role and capabilities");
    deployment::all_accepted(&stage.kubernetes)?;
    println!("the API server takes every overlay");
    deployment::scraped(&stage.kubernetes)?;
    println!("Prometheus scrapes the agent and takes the alerts, which are quiet");
    stage.sidecar()?;
    println!("a pod with Envoy and no init container is served both ways");
    let took = stage.first_instructions("first", starts, |_, _| Ok(()))?;
    println!("{starts} pods whose first instruction connects: 0 escaped, {:.1} s", took.as_secs_f32());
    println!("a wrong annotation: the pod does not start, its event says: {}", stage.wrong_annotation()?);
    stage.server_restarts()?;
    println!("the API server was away: a captured pod was served, new ones are captured since");
    let kills = stage.killed(starts)?;
    println!("the same while the agent is killed {kills} times with -9: 0 escaped, no instance left");
    let [first, killed] = stage.late(starts.min(4))?;
    println!(
        "both once more with a plugin that attaches late: {first} and {killed} escaped, and both tests failed"
    );
    let calls = stage.rollout(starts)?;
    println!(
        "the same during a rollout of the agent: 0 escaped, {calls} calls of a captured pod, none failed"
    );
    stage.reboot(starts.min(5))?;
    println!(
        "the node was rebooted: its pods are captured before their first instruction, the one with Envoy is served"
    );
    let many = stage.many(pods)?;
    println!(
        "{pods} pods: ready after {:.0} s, gone after {:.0} s; each: attach {:?}, {} KiB of maps, {} KiB in the agent",
        many.up.as_secs_f32(),
        many.gone.as_secs_f32(),
        many.attach,
        many.maps / 1024,
        many.agent / 1024
    );
    stage.chart()?;
    println!(
        "kubectl delete and helm uninstall took the plugin off; every kind of pod started, what was captured stayed so"
    );
    stage.uninstall()?;
    stage.standalone()?;
    println!(
        "a node that was off meanwhile: plain pods start, one of the mesh is told the remedy, which works"
    );
    Ok(stage.kubernetes.machine.name().to_owned())
}

fn up() -> anyhow::Result<String> {
    let kubernetes = cluster()?;
    println!("{}", kubernetes.kubectl(&["get", "nodes", "-o", "wide"], "")?);
    println!("Enter it:    nsenter --target {} --all", kubernetes.machine.init());
    println!("In there:    kubectl --kubeconfig /var/lib/kube/admin.conf get pods -A");
    println!("Press Enter to remove it.");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(kubernetes.machine.name().to_owned())
}
