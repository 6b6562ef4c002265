//! `redirector check`.

use super::env::Env;
use super::output::{Format, json, table};
use crate::base::error::Result;
use crate::check;
use std::process::ExitCode;

/// What this kernel and node offer, each missing thing with its remedy. Exit code 4 if something
/// that is needed is missing. Without privileges what needs them is not probed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  redirector check\n  redirector check --output json")]
pub struct Args {}

pub fn run(env: &Env, _args: &Args) -> Result<ExitCode> {
    let findings = check::all(&env.root);
    match env.format {
        Format::Json => json(&findings)?,
        Format::Table => table(
            ["CAPABILITY", "STATE", "NEEDED FOR", "REMEDY"],
            findings.iter().map(|f| {
                let state = match (f.present, f.known) {
                    (true, _) => "ok",
                    (false, true) => "missing",
                    (false, false) => "not probed",
                };
                [f.name.clone(), state.to_owned(), f.needed_for.to_owned(), f.remedy.clone()]
            }),
        )?,
    }
    let complete = findings.iter().all(|f| f.present || !f.required);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(4) })
}
