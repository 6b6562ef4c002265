//! `redirector upgrade`.

use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print};
use super::which::Which;
use crate::base::error::{Error, Result};
use crate::instance::refresh;
use crate::kernel;

const EXAMPLES: &str = "\
Examples:
  redirector upgrade n4097
  redirector upgrade --all";

/// Swap in the programs of this version, without a moment in which none runs.
///
/// Live connections and their original destinations stay. Addresses, routes and listeners are
/// read anew, as by `refresh`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Every instance.
    #[arg(long, conflicts_with_all = ["name", "named", "pid", "netns", "pod"])]
    all: bool,
}

/// What `--output json` prints: names of instances.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    upgraded: Vec<String>,
    /// They run the programs of this version already.
    unchanged: Vec<String>,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let names = if args.all { env.root.names()? } else { vec![args.which.require(env)?] };
    if names.is_empty() {
        return Err(Error::nothing_matched("there is no instance"));
    }
    let (mut done, mut unchanged, mut failure) = (Vec::new(), Vec::new(), None);
    for name in names {
        match refresh::upgrade(&env.root, &name) {
            Ok(renewed) => {
                renewed.notes.iter().for_each(|remark| env.note(&format!("{name}: {remark}")));
                if renewed.programs_replaced { &mut done } else { &mut unchanged }.push(name);
            }
            // The others are worth it all the same.
            Err(e) => {
                if failure.is_some() {
                    env.note(&format!("{name}: {}", e.on_command_line()));
                }
                failure = failure.or(Some(e));
            }
        }
    }
    match env.format {
        Format::Json => json(&Answer { upgraded: done, unchanged })?,
        Format::Table => {
            done.iter().try_for_each(|name| print(&format!("upgraded {name}")))?;
            let text = "runs the programs of this version already; refreshed";
            unchanged.iter().try_for_each(|name| print(&format!("{name} {text}")))?;
        }
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}
