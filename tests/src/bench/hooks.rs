//! What each eBPF program costs: mean run time as the kernel counts it.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use super::crew::{Client, Stage};
use super::sys::ProgramStats;
use super::worker::{Job, Mode};
use super::{Settings, sys};
use crate::command::run;

/// A program under one kind of load.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// Which program.
    pub hook: String,
    /// Which connections were made.
    pub load: &'static str,
    /// Runs for each connection.
    pub runs_per_connection: f64,
    /// Mean time of a run, with the clock reading that the statistics add.
    pub mean_ns: f64,
}

/// A program's id and what the kernel has counted.
struct Count {
    hook: String,
    runs: u64,
    nanoseconds: u64,
}

/// Makes connections of each kind with the statistics on, and looks at the difference.
///
/// # Errors
/// When a worker or a tool fails.
pub fn measure(stage: &mut Stage, settings: Settings) -> anyhow::Result<Vec<Hook>> {
    let (crew, outside, [v4, v6, inbound]) = stage.redirector()?;
    let mut outside = Client::start(&outside, settings.cpu)?;
    let instance = crew.instance.as_ref().context("the product is not attached")?;
    let ids = programs(&instance.show()?)?;
    let _on = ProgramStats::on().context("switching on the statistics of eBPF programs")?;
    let mut hooks = Vec::new();
    for (load, from_outside, to) in
        [("outbound IPv4", false, v4), ("outbound IPv6", false, v6), ("inbound IPv4", true, inbound)]
    {
        let client = if from_outside { &mut outside } else { &mut crew.client };
        sys::go_on()?;
        let before = counts(&ids)?;
        let job = Job { mode: Mode::Names, to, slice: settings.slice.max(Duration::from_millis(50)) * 10 };
        let connections = client.run(job).with_context(|| load.to_owned())?.amount;
        for (now, then) in counts(&ids)?.into_iter().zip(before) {
            let (runs, time) = (now.runs - then.runs, now.nanoseconds - then.nanoseconds);
            // A few runs are others' (the tools that count, a worker's own business).
            if runs * 10 >= connections {
                hooks.push(Hook {
                    hook: now.hook,
                    load,
                    runs_per_connection: runs as f64 / connections as f64,
                    mean_ns: time as f64 / runs as f64,
                });
            }
        }
    }
    Ok(hooks)
}

/// Name and program id of each hook, from `redirector show`.
fn programs(shown: &Value) -> anyhow::Result<Vec<(String, u64)>> {
    let hooks = shown["hooks"].as_array().context("`redirector show` lists no hooks")?;
    hooks
        .iter()
        .map(|hook| {
            let id = hook["program"].as_u64().with_context(|| format!("a hook without a program: {hook}"))?;
            Ok((hook["hook"].as_str().unwrap_or("?").to_owned(), id))
        })
        .collect()
}

fn counts(ids: &[(String, u64)]) -> anyhow::Result<Vec<Count>> {
    ids.iter()
        .map(|(hook, id)| {
            let shown = run(Command::new("bpftool").args(["-j", "prog", "show", "id", &id.to_string()]), "")?;
            let shown: Value = serde_json::from_str(&shown).context("bpftool's answer")?;
            // bpftool is silent about zeros.
            let number = |name: &str| shown[name].as_u64().unwrap_or(0);
            Ok(Count { hook: hook.clone(), runs: number("run_cnt"), nanoseconds: number("run_time_ns") })
        })
        .collect()
}
