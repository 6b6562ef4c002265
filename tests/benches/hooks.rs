//! The cost of each eBPF program: mean run time as the kernel counts it.

use anyhow::Context;
use redirector_tests::harness::product::runs::{ProgramStats, RunCount, hooks};
use serde::Serialize;

use super::pods::{Destination, MeasuredPods, Way};
use super::stats::Estimate;
use super::worker::{Job, Mode};
use super::{Settings, sys};

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

/// Makes connections of each kind with the statistics on, and looks at the difference.
pub fn measure(pods: &mut MeasuredPods, settings: Settings) -> anyhow::Result<Vec<Hook>> {
    let way = Way::Redirector as usize;
    let ids = hooks(&pods.all[way].instance()?.show()?)?;
    let _on = ProgramStats::on().context("switching on the statistics of eBPF programs")?;
    let mut measured = Vec::new();
    for (load, destination) in [
        ("outbound IPv4", Destination::V4),
        ("outbound IPv6", Destination::V6),
        ("inbound IPv4", Destination::Inbound),
    ] {
        let (mut connections, mut sums) = (0, vec![(0, Vec::new()); ids.len()]);
        let mut before = counts(&ids)?;
        for _ in 0..HOOK_SAMPLES {
            sys::go_on()?;
            connections +=
                pods.run(way, destination, |to| Job { mode: Mode::Names, to, slice: settings.slice })?.amount;
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
                measured.push(Hook {
                    hook: hook.clone(),
                    load,
                    runs_per_connection,
                    mean_ns: Estimate::of(means),
                });
            }
        }
    }
    Ok(measured)
}

pub(super) fn counts(ids: &[(String, u64)]) -> anyhow::Result<Vec<RunCount>> {
    ids.iter().map(|(_, id)| RunCount::of(*id)).collect()
}
