//! `redirector list`.

use super::env::Env;
use super::output::{Format, json, table};
use crate::base::error::Result;
use crate::health::{self, Finding, Level, node};
use crate::instance::list::{self, Summary};
use crate::instance::sweep;
use std::process::ExitCode;

/// List the instances of this node, and what is wrong with each.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  redirector list\n  redirector list --output json\n\nExit code 1: something is wrong with one of them; see `redirector status`."
)]
pub struct Args {}

/// What `--output json` prints of an instance.
#[derive(serde::Serialize)]
struct Line {
    #[serde(flatten)]
    summary: Summary,
    findings: Vec<Finding>,
}

pub fn run(env: &Env, _args: &Args) -> Result<ExitCode> {
    for swept in sweep::sweep_if_idle(&env.root)? {
        env.note(&swept);
    }
    let mut found = node::instances(&env.root)?;
    let lines = list::list(&env.root)?.into_iter().map(|summary| {
        let health = found.iter_mut().find(|health| health.name == summary.name);
        let findings = health.map(|health| std::mem::take(&mut health.findings)).unwrap_or_default();
        Line { summary, findings }
    });
    let lines: Vec<Line> = lines.collect();
    let faulty = lines.iter().any(|line| health::has_fault(&line.findings));
    match env.format {
        Format::Json => json(&lines)?,
        Format::Table => {
            let text = |v: Option<String>| v.unwrap_or_else(|| "-".into());
            table(
                ["NAME", "STATE", "CONNECTIONS", "NETNS", "CGROUP", "PROBLEM"],
                lines.into_iter().map(|line| {
                    let problem = line.problem();
                    let s = line.summary;
                    [
                        s.name,
                        s.state.to_owned(),
                        text(s.connections.map(|n| n.to_string())),
                        text(s.netns),
                        text(s.cgroup),
                        text(problem),
                    ]
                }),
            )?;
        }
    }
    Ok(if faulty { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Line {
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
