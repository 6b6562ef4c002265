//! `redirector upgrade`.

use super::env::Env;
use super::output::{Format, json, print};
use crate::base::error::{Error, Result};
use crate::instance::upgrade;
use crate::kernel;
use std::process::ExitCode;

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
#[command(group(clap::ArgGroup::new("which").required(true).args(["name", "all"])))]
pub struct Args {
    /// Name of the instance.
    name: Option<String>,
    /// Every instance.
    #[arg(long)]
    all: bool,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let names = match &args.name {
        Some(name) => {
            crate::instance::directory::check_name(name)?;
            vec![name.clone()]
        }
        None => env.root.names()?,
    };
    if names.is_empty() {
        return Err(Error::nothing_matched("there is no instance"));
    }
    let (mut done, mut failure) = (Vec::new(), None);
    for name in names {
        match upgrade::upgrade(&env.root, &name) {
            Ok(renewed) => {
                renewed.notes.iter().for_each(|remark| env.note(&format!("{name}: {remark}")));
                done.push(name);
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
        Format::Json => json(&serde_json::json!({ "upgraded": done }))?,
        Format::Table => done.iter().try_for_each(|name| print(&format!("upgraded {name}")))?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}
