//! `redirector refresh`.

use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print};
use super::which::Which;
use crate::base::error::Result;
use crate::instance::{find, refresh};
use crate::kernel;

/// Read addresses, routes, interfaces and listeners of an instance's namespace anew.
///
/// Without a daemon they are a snapshot of the attach. New connections are decided under the old
/// or the new snapshot, never in between.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  redirector refresh n4097")]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    name: String,
    /// `refreshed`.
    outcome: &'static str,
    notes: Vec<String>,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let name = args.which.require(env)?;
    let mut notes = refresh::refresh(&env.root, &name)?.notes;
    // They were none at the attach, or were allowed then.
    notes.extend(
        find::target(&env.root, &name).and_then(|target| target.describe_processes_outside()).ok().flatten(),
    );
    for remark in &notes {
        env.note(remark);
    }
    match env.format {
        Format::Json => json(&Answer { name, outcome: "refreshed", notes })?,
        Format::Table => print(&format!("refreshed {}", name))?,
    }
    Ok(ExitCode::SUCCESS)
}
