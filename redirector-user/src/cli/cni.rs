//! `redirector cni`: the plugin when a runtime calls it, and its removal by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print};
use crate::base::error::{Error, Result};
use crate::cni_install::{self, CACHE_DIR};

const EXAMPLES: &str = "\
Examples:
  redirector cni uninstall
  CNI_COMMAND=VERSION redirector cni

Container runtimes call the plugin with CNI_COMMAND in the environment. The
agent installs it (`redirector agent --cni-bin-dir ... --cni-conf-dir ...`). See
docs/agent.md.";

/// The CNI plugin that has a pod captured before its first process.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Take the plugin off this node: its entry in the network's configuration, then its binary. End
    /// the agent first, or it puts them back.
    Uninstall {
        /// Directory of the plugins' binaries.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        bin_dir: PathBuf,
        /// Directory of the configurations.
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        conf_dir: PathBuf,
        /// Where CRI-O keeps how pods were set up: the binary stays while pods need it to end.
        #[arg(long, value_name = "DIR", default_value = CACHE_DIR)]
        cache_dir: PathBuf,
        /// Succeed if the plugin is not installed there, where a runtime has a network.
        #[arg(long)]
        ignore_missing: bool,
    },
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    /// What was removed, a line each.
    done: Vec<String>,
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    let Some(Verb::Uninstall { bin_dir, conf_dir, cache_dir, ignore_missing }) = args.verb else {
        return Err(Error::input(
            "CNI_COMMAND is not set: container runtimes call the plugin, see `redirector cni --help`",
        ));
    };
    let cni_install::Removal { done, left } = cni_install::uninstall(&bin_dir, &conf_dir, &cache_dir)?;
    let (bins, confs) = (bin_dir.display(), conf_dir.display());
    if done.is_empty() && !ignore_missing {
        return Err(Error::nothing_matched(format!(
            "the plugin is neither in {bins} nor in a list in {confs}"
        ))
        .usage("name its directories with --bin-dir and --conf-dir, or pass --ignore-missing"));
    }
    // It may be in the directories of another release.
    if done.is_empty() && !cni_install::has_network(&conf_dir)? {
        return Err(Error::nothing_matched(format!("no container runtime has a network in {confs}"))
            .usage("name the directories of the plugin with --bin-dir and --conf-dir"));
    }
    match env.format {
        Format::Json => json(&Answer { done })?,
        Format::Table if done.is_empty() => env.note("the plugin is not installed there"),
        Format::Table => done.iter().try_for_each(|line| print(line))?,
    }
    Ok(if left.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
