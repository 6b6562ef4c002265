//! The cost of long lists of networks: attach, connect, memory.
//!
//! Pods that differ in nothing but the policy take turns, as in [`rounds`](super::rounds). None of the networks matches
//! the connection that is measured, but in the list that is to capture it: each decision looks a whole list up.

use std::fmt;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use redirector_tests::harness::command::run;
use redirector_tests::harness::product::bpffs::{Bpffs, target};
use redirector_tests::harness::product::runs::{ProgramStats, hooks};
use redirector_tests::harness::product::{Instance, exit};
use redirector_tests::harness::world::{PodOptions, VIP4, World};
use serde::Serialize;
use serde_json::{Value, json};

use super::hooks::counts;
use super::machine::MachineInfo;
use super::pods::{Attached, Destination, MeasuredPod};
use super::report::{Shown, TextTable, milliseconds, ratio, thousands, whole};
use super::stats::Estimate;
use super::worker::{Job, Mode};
use super::{Settings, say, sys};

/// Networks in a long list.
const LONG_LIST: u32 = 50_000;
/// An odd factor permutes numbers: neighbours in a list are none in the trie.
const PERMUTE: u32 = 0x9e37_79b1;
/// How often the hook is looked at.
const HOOK_SAMPLES: u32 = 11;

/// Name of a policy, and the policy.
type Named = (&'static str, fn() -> Value);

/// The policies that are measured; the first one is what the others are compared with.
const POLICIES: [Named; 5] = [
    ("no list", || json!({})),
    ("-x: 1 network", || json!({"outbound_exclude_cidrs": ["10.1.0.0/16"]})),
    ("-x: 50 000 of IPv4", || json!({"outbound_exclude_cidrs": around(LONG_LIST)})),
    (
        "-x: 25 000 of each family",
        || json!({"outbound_exclude_cidrs": Value::from([around(LONG_LIST / 2), v6(LONG_LIST / 2)].concat())}),
    ),
    ("-i: 50 000, one of which matches", || {
        let mut nets = around(LONG_LIST - 1);
        nets.push(format!("{VIP4}/32"));
        json!({"outbound_cidrs": nets})
    }),
];

/// Single addresses on all sides of the service that is connected to, so that a search goes as deep as it can.
fn around(count: u32) -> Vec<String> {
    let network = VIP4.to_bits() & 0xffff_0000;
    let address = |number: u32| Ipv4Addr::from_bits(network | number.wrapping_mul(PERMUTE) & 0xffff);
    let others = (0..1 << 16).map(address).filter(|address| *address != VIP4);
    others.take(count as usize).map(|address| format!("{address}/32")).collect()
}

/// Different networks; none holds a service of the tests.
fn v6(count: u32) -> Vec<String> {
    let net = |number: u32| {
        let bits = number.wrapping_mul(PERMUTE);
        format!("2001:db8:{:x}:{:x}::/64", bits >> 16, bits & 0xffff)
    };
    (0..count).map(net).collect()
}

/// The cost of a policy.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    pub policy: &'static str,
    /// `redirector attach` to a pod in which nothing runs yet.
    pub attach_ms: Estimate,
    /// `redirector detach`.
    pub detach_ms: Estimate,
    /// Bytes that the kernel accounts for the map of lists and routes.
    pub tables_bytes: u64,
    /// Connections in a second.
    pub connections: Estimate,
    /// The same as a part of those without lists, round by round.
    pub of_none: Estimate,
    /// Mean time of connect4, with the clock reading that the statistics add.
    pub connect_ns: Estimate,
}

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct CidrsReport {
    machine: MachineInfo,
    settings: Shown,
    policies: Vec<Cost>,
}

pub fn measure(machine: MachineInfo, settings: Settings) -> anyhow::Result<CidrsReport> {
    let directory = tempfile::tempdir()?;
    let mut files = Vec::new();
    for (number, (_, policy)) in POLICIES.iter().enumerate() {
        let file = directory.path().join(format!("{number}.json"));
        std::fs::write(&file, policy().to_string())?;
        files.push(file.display().to_string());
    }
    say("attach and detach");
    let attached = attach(&files, settings)?;
    say("setting up five pods");
    let world = World::with(&vec![PodOptions::default(); files.len()])?;
    let mut pods = Vec::new();
    for ((file, (name, _)), pod) in files.iter().zip(POLICIES).zip(&world.pods) {
        let attached = Instance::attach(pod, &["--policy".to_owned(), file.clone()], &[])?;
        let start = MeasuredPod::start(Attached::Instance(attached), true, pod, settings.cpu);
        pods.push(start.with_context(|| name.to_owned())?);
    }
    let rates = rounds(&mut pods, settings)?;
    say("connect4, with the kernel's run-time statistics on");
    let hooks = connect4(&mut pods, settings)?;
    drop(pods);
    let all = |samples: &[f64]| Estimate::of(samples.iter().copied());
    let policies = attached.into_iter().zip(&rates).zip(hooks).map(|((attached, rate), hook)| Cost {
        connections: all(rate),
        of_none: Estimate::of(rate.iter().zip(&rates[0]).map(|(ours, none)| ours / none)),
        connect_ns: Estimate::of(hook),
        ..attached
    });
    Ok(CidrsReport { machine, settings: settings.into(), policies: policies.collect() })
}

/// Attaches each policy in turn, again and again.
fn attach(files: &[String], settings: Settings) -> anyhow::Result<Vec<Cost>> {
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let mut times = vec![(Vec::new(), Vec::new()); files.len()];
    let mut memory = vec![0; files.len()];
    let mut arguments = vec!["attach".to_owned(), "--name".to_owned(), "pod".to_owned()];
    arguments.extend(target(pod));
    for turn in 0..settings.attaches as usize {
        for place in 0..files.len() {
            sys::go_on()?;
            // Nobody is always the first.
            let place = (place + turn) % files.len();
            let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            words.extend(["--policy", &files[place]]);
            let start = Instant::now();
            bpffs.run(&words)?.expect(exit::OK)?;
            times[place].0.push(start.elapsed().as_secs_f64() * 1e3);
            let pin = bpffs.instance("pod").join("TABLES").display().to_string();
            let map = run(Command::new("bpftool").args(["-j", "map", "show", "pinned", &pin]), "")?;
            let map: Value = serde_json::from_str(&map).context("bpftool's answer")?;
            memory[place] = map["bytes_memlock"].as_u64().context("the memory of a map")?;
            let start = Instant::now();
            bpffs.run(&["detach", "--name", "pod"])?.expect(exit::OK)?;
            times[place].1.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let nothing = Estimate::of([]);
    let cost = |((policy, (attach, detach)), tables_bytes)| Cost {
        policy,
        attach_ms: Estimate::of(attach),
        detach_ms: Estimate::of(detach),
        tables_bytes,
        connections: nothing,
        of_none: nothing,
        connect_ns: nothing,
    };
    Ok(POLICIES.map(|(name, _)| name).into_iter().zip(times).zip(memory).map(cost).collect())
}

/// Connections in a second, a sample for each round and pod.
fn rounds(pods: &mut [MeasuredPod], settings: Settings) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::new(); pods.len()];
    for round in 0..=settings.rounds as usize {
        if round % 20 == 1 {
            say(&format!("round {round} of {}", settings.rounds));
        }
        for turn in 0..pods.len() {
            sys::go_on()?;
            let place = (turn + round) % pods.len();
            let pod = &mut pods[place];
            let done = pod.client.run(Job {
                mode: Mode::Connections,
                to: pod.to(Destination::V4),
                slice: settings.slice,
            })?;
            // The first round warms caches up and does not count.
            if round > 0 {
                samples[place].push(done.amount as f64 / done.time.as_secs_f64());
            }
        }
    }
    Ok(samples)
}

/// Mean nanoseconds of connect4, several for each pod.
fn connect4(pods: &mut [MeasuredPod], settings: Settings) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut ids = Vec::new();
    for pod in &*pods {
        let mut all = hooks(&pod.instance()?.show()?)?;
        all.retain(|(hook, _)| hook == "connect4");
        ids.push(all);
    }
    let _on = ProgramStats::on().context("switching on the statistics of eBPF programs")?;
    let mut means = vec![Vec::new(); pods.len()];
    for turn in 0..HOOK_SAMPLES as usize {
        for place in 0..pods.len() {
            sys::go_on()?;
            let place = (place + turn) % pods.len();
            let pod = &mut pods[place];
            let before = counts(&ids[place])?;
            pod.client.run(Job {
                mode: Mode::Connections,
                to: pod.to(Destination::V4),
                slice: settings.slice,
            })?;
            for (now, then) in counts(&ids[place])?.iter().zip(&before) {
                means[place]
                    .push((now.nanoseconds - then.nanoseconds) as f64 / (now.runs - then.runs) as f64);
            }
        }
    }
    Ok(means)
}

impl fmt::Display for CidrsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n", self.machine, self.settings)?;
        let mut table = TextTable::new(&[
            "policy",
            "attach ms",
            "detach ms",
            "TABLES KiB",
            "connections/s",
            "of no list",
            "connect4 ns",
        ]);
        for cost in &self.policies {
            table.row([
                cost.policy.to_owned(),
                milliseconds(cost.attach_ms),
                milliseconds(cost.detach_ms),
                thousands((cost.tables_bytes / 1024) as f64),
                thousands(cost.connections.median),
                ratio(cost.of_none),
                whole(cost.connect_ns),
            ]);
        }
        write!(f, "{table}")
    }
}
