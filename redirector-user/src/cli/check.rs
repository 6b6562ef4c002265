//! `redirector check`.

use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print, table};
use crate::base::error::Result;
use crate::check;

/// What this kernel and node offer, each missing thing with its remedy. Exit code 4 if something
/// that is needed is missing. Without privileges what needs them is not probed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  redirector check\n  redirector check --output json")]
pub struct Args {}

pub fn run(env: &Env, _args: &Args) -> Result<ExitCode> {
    let findings = check::all(&env.root);
    match env.format {
        Format::Json => json(&findings)?,
        Format::Table => {
            print(&summary(&findings))?;
            table(
                ["CAPABILITY", "STATE", "NEEDED FOR", "REMEDY"],
                findings.iter().map(|f| {
                    let state = match (f.present, f.known) {
                        (true, _) => "ok",
                        (false, true) => "missing",
                        (false, false) => "not probed",
                    };
                    [f.name.clone(), state.to_owned(), f.needed_for.to_owned(), f.remedy.clone()]
                }),
            )?
        }
    }
    let complete = findings.iter().all(|f| f.present || !f.required);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

/// One line before the table.
fn summary(findings: &[check::Finding]) -> String {
    let absent = || findings.iter().filter(|f| !f.present && f.known);
    let needed: Vec<&str> = absent().filter(|f| f.required).map(|f| f.name.as_str()).collect();
    let (optional, all) = (absent().filter(|f| !f.required).count(), findings.len());
    if !needed.is_empty() {
        return format!("this node cannot capture: {} missing", needed.join(", "));
    }
    match findings.iter().filter(|f| !f.known).count() {
        0 => format!("this node can capture: {all} things looked at, {optional} optional ones missing"),
        blind => {
            format!("not known whether this node can capture: {blind} of {all} things could not be probed")
        }
    }
}
