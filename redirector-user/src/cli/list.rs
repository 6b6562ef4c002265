//! `redirector list`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json_text, table_text};
use super::watch::{self, AllRates, Look, Rates, Watch};
use crate::base::error::Result;
use crate::health::{self, Finding, Level, node};
use crate::instance::list::{self, Summary};
use crate::instance::sweep;

/// List the instances of this node, and what is wrong with each.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  redirector list\n  redirector list --watch\n  redirector list --output json\n\nExit code 1: something is wrong with one of them; see `redirector status`."
)]
pub struct Args {
    #[command(flatten)]
    watch: Watch,
}

/// What `--output json` prints of an instance.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Line {
    #[serde(flatten)]
    summary: Summary,
    findings: Vec<Finding>,
    /// With --watch, from the second look on: connections per second by rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, f64>>")]
    rates: Option<Rates>,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    watch::run(env, &args.watch, |rates| look(env, rates))
}

fn look(env: &Env, rates: &AllRates) -> Result<Look> {
    for swept in sweep::sweep_if_idle(&env.root)? {
        env.note(&swept);
    }
    let mut found = node::instances(&env.root)?;
    let lines = list::list(&env.root)?.into_iter().map(|summary| {
        let health = found.iter_mut().find(|health| health.name == summary.name);
        let findings = health.map(|health| std::mem::take(&mut health.findings)).unwrap_or_default();
        let rates = rates.get(&summary.name).cloned();
        Line { summary, findings, rates }
    });
    let lines: Vec<Line> = lines.collect();
    let faulty = lines.iter().any(|line| health::has_fault(&line.findings));
    let text = match env.format {
        Format::Json => json_text(&lines)?,
        Format::Table if rates.is_empty() => table_text(HEADER, lines.into_iter().map(Line::columns)),
        Format::Table => {
            let [name, state, connections, netns, cgroup, problem] = HEADER;
            let columns = |line: Line| {
                let rates = line.rates.as_ref().map(watch::told).filter(|told| !told.is_empty());
                let [name, state, connections, netns, cgroup, problem] = line.columns();
                [name, state, connections, or_dash(rates), netns, cgroup, problem]
            };
            table_text(
                [name, state, connections, "RATES", netns, cgroup, problem],
                lines.into_iter().map(columns),
            )
        }
    };
    Ok((text, !faulty))
}

const HEADER: [&str; 6] = ["NAME", "STATE", "CONNECTIONS", "POD OR NETNS", "CGROUP", "PROBLEM"];

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

impl Line {
    fn columns(self) -> [String; 6] {
        let problem = or_dash(self.problem());
        let s = self.summary;
        let connections = or_dash(s.connections.map(|n| n.to_string()));
        let pod_or_netns = or_dash(s.pod.map(|pod| pod.to_string()).or(s.netns));
        [s.name, s.state.to_owned(), connections, pod_or_netns, or_dash(s.cgroup), problem]
    }

    /// The worst of what is wrong; `status` has the rest.
    fn problem(&self) -> Option<String> {
        let worst = self.findings.iter().find(|finding| finding.level != Level::Notice);
        let more = self.findings.iter().filter(|finding| finding.level == Level::Fault).count();
        let told = worst.map(|finding| match more {
            0 | 1 => finding.what.clone(),
            more => format!("{} (1 of {more} faults)", finding.what),
        });
        self.summary.problem.clone().or(told)
    }
}
