//! The cost of each eBPF program: mean run time as the kernel counts it.

use std::process::Command;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::pods::{Client, MeasuredPods};
use super::stats::Estimate;
use super::sys::ProgramStats;
use super::worker::{Job, Mode};
use super::{Settings, sys};
use redirector_tests::harness::command::run;

/// How often each load is put on: a neighbour's burst must not decide.
const HOOK_SAMPLES: u32 = 11;

/// A program under one kind of load.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    pub hook: String,
    /// Which connections were made.
    pub load: &'static str,
    /// Runs for each connection.
    pub runs_per_connection: f64,
    /// Mean time of a run, with the clock reading that the statistics add; the median of several means.
    pub mean_ns: Estimate,
}

/// The kernel's counts of a program.
pub(super) struct Count {
    pub runs: u64,
    pub nanoseconds: u64,
}

/// Makes connections of each kind with the statistics on, and looks at the difference.
pub fn measure(pods: &mut MeasuredPods, settings: Settings) -> anyhow::Result<Vec<Hook>> {
    let (pod, outside, [v4, v6, inbound]) = pods.redirector()?;
    let mut outside = Client::start(&outside, settings.cpu)?;
    let instance = pod.instance.as_ref().context("the product is not attached")?;
    let ids = programs(&instance.show()?)?;
    let _on = ProgramStats::on().context("switching on the statistics of eBPF programs")?;
    let mut hooks = Vec::new();
    for (load, from_outside, to) in
        [("outbound IPv4", false, v4), ("outbound IPv6", false, v6), ("inbound IPv4", true, inbound)]
    {
        let client = if from_outside { &mut outside } else { &mut pod.client };
        let (mut connections, mut sums) = (0, vec![(0, Vec::new()); ids.len()]);
        let mut before = counts(&ids)?;
        for _ in 0..HOOK_SAMPLES {
            sys::go_on()?;
            let job = Job { mode: Mode::Names, to, slice: settings.slice };
            connections += client.run(job).with_context(|| load.to_owned())?.amount;
            let now = counts(&ids)?;
            for ((runs, means), (now, then)) in sums.iter_mut().zip(now.iter().zip(&before)) {
                let more = now.runs - then.runs;
                *runs += more;
                if more > 0 {
                    means.push((now.nanoseconds - then.nanoseconds) as f64 / more as f64);
                }
            }
            before = now;
        }
        for ((hook, _), (runs, means)) in ids.iter().zip(sums) {
            // A few runs are others' business: the workers' own, and IPv4 beside IPv6.
            if runs * 10 >= connections {
                let runs_per_connection = runs as f64 / connections as f64;
                hooks.push(Hook {
                    hook: hook.clone(),
                    load,
                    runs_per_connection,
                    mean_ns: Estimate::of(means),
                });
            }
        }
    }
    Ok(hooks)
}

/// Name and program id of each hook, from `redirector show`.
pub(super) fn programs(shown: &Value) -> anyhow::Result<Vec<(String, u64)>> {
    let hooks = shown["hooks"].as_array().context("`redirector show` lists no hooks")?;
    hooks
        .iter()
        .map(|hook| {
            let id = hook["program"].as_u64().with_context(|| format!("a hook without a program: {hook}"))?;
            Ok((hook["hook"].as_str().unwrap_or("?").to_owned(), id))
        })
        .collect()
}

pub(super) fn counts(ids: &[(String, u64)]) -> anyhow::Result<Vec<Count>> {
    ids.iter()
        .map(|(_, id)| {
            let shown = run(Command::new("bpftool").args(["-j", "prog", "show", "id", &id.to_string()]), "")?;
            let shown: Value = serde_json::from_str(&shown).context("bpftool's answer")?;
            // bpftool is silent about zeros.
            let number = |name: &str| shown[name].as_u64().unwrap_or(0);
            Ok(Count { runs: number("run_cnt"), nanoseconds: number("run_time_ns") })
        })
        .collect()
}
