//! `redirector list`.

use super::env::Env;
use super::output::{Format, json, table};
use crate::base::error::Result;
use crate::instance::{list, sweep};
use std::process::ExitCode;

/// List the instances of this node.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  redirector list\n  redirector list --output json")]
pub struct Args {}

pub fn run(env: &Env, _args: &Args) -> Result<ExitCode> {
    for swept in sweep::sweep_if_idle(&env.root)? {
        env.note(&swept);
    }
    let list = list::list(&env.root)?;
    match env.format {
        Format::Json => json(&list)?,
        Format::Table => {
            let text = |v: Option<String>| v.unwrap_or_else(|| "-".into());
            table(
                ["NAME", "STATE", "CONNECTIONS", "NETNS", "CGROUP", "PROBLEM"],
                list.into_iter().map(|s| {
                    [
                        s.name,
                        s.state.to_owned(),
                        text(s.connections.map(|n| n.to_string())),
                        text(s.netns),
                        text(s.cgroup),
                        text(s.problem),
                    ]
                }),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
