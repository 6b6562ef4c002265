//! `redirector connections`.

use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, table};
use super::which::Which;
use crate::base::error::{Error, Result};
use crate::health::{
    self,
    connections::{Connection, Fate},
};

const EXAMPLES: &str = "\
Examples:
  redirector connections pod1
  redirector connections --pid 4711 --missed
  redirector connections pod1 --output json";

/// List each TCP connection of a pod: captured or not, why, its original destination, user and process.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Only those that go past the proxy although the policy captures such connections.
    #[arg(long)]
    missed: bool,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    let missing = || Error::input("no instance is named").usage("give a NAME, --pid, --netns or --pod");
    let name = args.which.resolve(env)?.ok_or_else(missing)?;
    let mut connections = health::connections_of(&env.root, &name)?;
    connections.retain(|connection| !args.missed || connection.fate == Fate::Missed);
    match env.format {
        Format::Json => json(&connections)?,
        Format::Table => table(
            ["CAPTURED", "LOCAL", "REMOTE", "ORIGINAL", "UID", "PROCESS", "WHY"],
            connections.iter().map(row),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn row(connection: &Connection) -> [String; 7] {
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let process = connection.pid.zip(connection.process.as_ref());
    [
        connection.fate.word().to_owned(),
        connection.local.to_string(),
        connection.remote.to_string(),
        text(connection.original.map(|at| at.to_string())),
        connection.uid.to_string(),
        process.map_or_else(|| "not told".into(), |(pid, name)| format!("{pid} {name}")),
        text(connection.why.clone().or_else(|| connection.rule.map(str::to_owned))),
    ]
}
