//! `redirector detach`.

use super::Env;
use super::output::{Format, json, note, print};
use crate::error::{Error, Result};
use crate::instance::{detach, observe, state::Instance};
use crate::kernel;
use crate::target::open_netns;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  redirector detach --name n4097
  redirector detach --pid 4711 --drain=30    keep the names of live connections for up to 30 s
  redirector detach --all --ignore-missing";

/// Stop capturing and remove every trace of it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["name", "pid", "netns", "all"])))]
pub struct Args {
    /// Name of the instance.
    #[arg(long)]
    name: Option<String>,
    /// A process of the pod.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// File of the network namespace.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Every instance.
    #[arg(long)]
    all: bool,
    /// Capture nothing new, and keep getpeername and SO_ORIGINAL_DST of live connections right
    /// until they have ended, for at most this many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60")]
    drain: Option<u64>,
    /// Exit 0 if there is nothing to detach.
    #[arg(long)]
    ignore_missing: bool,
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let drain = args.drain.map(Duration::from_secs);
    // What a killed attach has left goes with every detach.
    detach::sweep_if_idle(&env.root)?;
    let names = match which(env, &args) {
        Ok(names) => names,
        Err(e) => return missing(env, &args, e),
    };
    let mut reports = Vec::new();
    for name in names {
        match detach::detach(&env.root, &name, drain) {
            Ok(report) => reports.push(report),
            // With --all another command may have been quicker.
            Err(Error::NothingMatched(_)) if args.all => {}
            Err(e) => return missing(env, &args, e),
        }
    }
    if reports.is_empty() {
        return missing(env, &args, Error::NothingMatched("there is no instance".into()));
    }
    for report in &reports {
        for remark in &report.notes {
            note(&format!("{}: {remark}", report.name));
        }
    }
    match env.format {
        Format::Json => {
            let list: Vec<_> = reports
                .iter()
                .map(|r| serde_json::json!({ "name": r.name, "alive": r.alive, "notes": r.notes }))
                .collect();
            json(&serde_json::json!({ "detached": list }))?;
        }
        Format::Table => {
            for report in &reports {
                print(&text(report))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &detach::Report) -> String {
    match report.alive {
        Some(n) if n > 0 => format!(
            "detached {}; {n} captured connections are alive: they go on, but their getpeername and SO_ORIGINAL_DST \
             show the proxy's address from now on (--drain waits for them)",
            report.name
        ),
        _ => format!("detached {}", report.name),
    }
}

fn missing(env: &Env, args: &Args, error: Error) -> Result<ExitCode> {
    match error {
        Error::NothingMatched(text) if args.ignore_missing => {
            match env.format {
                Format::Json => json(&serde_json::json!({ "detached": [] }))?,
                Format::Table => note(&text),
            }
            Ok(ExitCode::SUCCESS)
        }
        other => Err(other),
    }
}

/// Names of the instances to detach.
fn which(env: &Env, args: &Args) -> Result<Vec<String>> {
    if args.all {
        return env.root.names();
    }
    if let Some(name) = &args.name {
        crate::instance::root::check_name(name)?;
        return Ok(vec![name.clone()]);
    }
    let path = match (args.pid, &args.netns) {
        (Some(pid), _) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        (None, Some(path)) => path.clone(),
        (None, None) => return Err(Error::Input("give --name, --pid, --netns or --all".into())),
    };
    of_netns(env, &path).map(|name| vec![name])
}

/// The instance of a network namespace; it may be gone, then the file it was given still tells.
fn of_netns(env: &Env, path: &Path) -> Result<String> {
    let nothing = || Error::NothingMatched(format!("no instance is attached to {}", path.display()));
    let netns = match open_netns(path, || format!("{} does not exist", path.display())) {
        Ok(netns) => netns,
        Err(e) => {
            let recorded = observe::list(&env.root)?;
            let same = recorded.into_iter().find(|s| s.netns.as_deref() == path.to_str());
            return same.map(|s| s.name).ok_or(e);
        }
    };
    for name in env.root.names()? {
        if Instance::open(&env.root, &name).and_then(|i| i.meta()).is_ok_and(|m| m.netns_cookie == netns.cookie) {
            return Ok(name);
        }
    }
    Err(nothing())
}
