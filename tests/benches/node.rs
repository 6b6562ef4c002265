//! A node with many instances: what one more costs, and what many at once do.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use redirector_tests::harness::kubelet::{Call, Id, Kubelet};
use redirector_tests::harness::names;
use redirector_tests::harness::oracle::{self, options::Options};
use redirector_tests::harness::product::agent::Home;
use redirector_tests::harness::product::bpffs::Bpffs;
use redirector_tests::harness::product::objects::Objects;
use redirector_tests::harness::product::{exit, runs};
use redirector_tests::harness::world::cgroup::Cgroup;
use redirector_tests::harness::world::netns::Netns;
use serde::Serialize;

use super::attach::timed;
use super::{say, sys};

/// Attaches of which the median is taken, at the beginning and at the end.
const FEW: usize = 5;

/// What grows with the number of instances, and what does not.
#[derive(Clone, Debug, Serialize)]
pub struct NodeCost {
    pub instances: usize,
    /// CPU milliseconds of an attach, and of `list`, with few instances and with all.
    pub attach_cpu_ms: [f64; 2],
    pub list_cpu_ms: [f64; 2],
    /// Kernel memory of programs and maps that one more idle instance adds, in KiB.
    pub memory_kib: f64,
    /// Wall time of as many attaches at once, by commands and by the CNI plugin and the agent behind it, and of as many
    /// times iptables-restore for both families.
    pub at_once_ms: f64,
    pub by_agent_at_once_ms: f64,
    pub iptables_at_once_ms: f64,
}

/// An empty pod, as far as a redirector is concerned.
struct EmptyPod {
    netns: Netns,
    cgroup: Cgroup,
}

impl EmptyPod {
    fn new(number: usize) -> anyhow::Result<Self> {
        let name = format!("{}-{number}", names::unique());
        Ok(Self { netns: Netns::new(&name)?, cgroup: Cgroup::new(&name)? })
    }

    fn attach(&self, bpffs: &Bpffs, number: usize) -> Command {
        let mut command = bpffs.command(&[], &["attach", "--name", &format!("pod{number}")]);
        command.arg("--netns").arg(self.netns.file()).arg("--cgroup").arg(self.cgroup.directory());
        command
    }
}

/// Attaches to so many pods, one after the other and all at once.
pub fn measure(instances: usize) -> anyhow::Result<NodeCost> {
    say(&format!("{instances} pods of a node"));
    let bpffs = Bpffs::new()?;
    let pods = (0..instances).map(EmptyPod::new).collect::<anyhow::Result<Vec<_>>>()?;
    let list = || timed(|| bpffs.run(&["list"])?.looked().map(drop));
    let (mut attaches, mut few) = (Vec::new(), 0.0);
    for (number, pod) in pods.iter().enumerate() {
        sys::go_on()?;
        attaches.push(timed(|| run_all([pod.attach(&bpffs, number)]))?.1);
        if number == 0 {
            few = list()?.1;
        }
    }
    let all = list()?.1;
    let last = Objects::of(&bpffs, &format!("pod{}", instances - 1))?;
    let memory = runs::memory(&last)?;
    bpffs.run(&["detach", "--all"])?.expect(exit::OK)?;
    let (at_once, _) =
        timed(|| run_all(pods.iter().enumerate().map(|(number, pod)| pod.attach(&bpffs, number))))?;
    bpffs.run(&["detach", "--all"])?.expect(exit::OK)?;
    Ok(NodeCost {
        instances,
        attach_cpu_ms: [median(&attaches[..FEW]), median(&attaches[instances - FEW..])],
        list_cpu_ms: [few, all],
        memory_kib: memory as f64 / 1024.0,
        at_once_ms: at_once,
        by_agent_at_once_ms: by_agent_at_once(&pods)?,
        iptables_at_once_ms: timed(|| iptables_at_once(&pods))?.0,
    })
}

/// As when a node starts: the runtime calls the plugin for all pods. The programs are there.
fn by_agent_at_once(pods: &[EmptyPod]) -> anyhow::Result<f64> {
    let (bpffs, home, kubelet) = (Bpffs::new()?, Home::new()?, Kubelet::new()?);
    let ids: Vec<Id> = (0..pods.len() as u32).map(Id::new).collect();
    for (id, pod) in ids.iter().zip(pods) {
        kubelet.know(id, &id.object())?;
        kubelet.make_cgroup(id)?;
        // By its addresses the agent chooses the families.
        pod.netns.ip("address add 10.88.0.2/32 dev lo\naddress add fd00:88::2/128 dev lo nodad\n")?;
    }
    // Where decisions are logged each instance has programs of its own.
    let agent = kubelet.agent(&bpffs, &home, &["--log-level", "info"])?;
    let calls: Vec<Call> =
        ids.iter().zip(pods).map(|(id, pod)| Call::new("ADD", &home, id, pod.netns.file())).collect();
    calls[0].succeed()?;
    calls[0].clone().with("CNI_COMMAND", Some("DEL")).succeed()?;
    // In a hybrid layout the agent takes it away with the pod.
    kubelet.make_cgroup(&ids[0])?;
    let (wall, _) = timed(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.succeed())).collect();
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            }
            Ok(())
        })
    })?;
    drop(agent);
    bpffs.run(&["detach", "--all"])?.expect(exit::OK)?;
    Ok(wall)
}

/// Starts all commands, then waits for all.
fn run_all(commands: impl IntoIterator<Item = Command>) -> anyhow::Result<()> {
    let spawn = |mut command: Command| {
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("starting redirector")
    };
    let children = commands.into_iter().map(spawn).collect::<anyhow::Result<Vec<_>>>()?;
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "redirector: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn iptables_at_once(pods: &[EmptyPod]) -> anyhow::Result<()> {
    let rules = oracle::rule_texts(&Options::sidecar());
    std::thread::scope(|scope| {
        let rules = &rules;
        let load = |pod: &EmptyPod| oracle::load_by("nft", &pod.netns, rules);
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || load(pod))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })
}

fn median(samples: &[f64]) -> f64 {
    super::stats::Estimate::of(samples.iter().copied()).median
}
