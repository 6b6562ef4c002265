//! `redirector detach`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::env::Env;
use super::output::{Format, json, print};
use super::which::Which;
use crate::base::error::{Error, Kind, Result};
use crate::health::node;
use crate::instance::{detach, find, status, sweep};
use crate::kernel;
use crate::pod::open_netns;

const EXAMPLES: &str = "\
Examples:
  redirector detach n4097
  redirector detach --pid 4711 --drain=30
      keep the names of live connections for up to 30 s
  redirector detach --all --ignore-missing";

/// Stop capturing and remove every trace of it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Every instance.
    #[arg(long, conflicts_with_all = ["name", "named", "pid", "netns", "pod"])]
    all: bool,
    /// Capture nothing new, and keep getpeername and SO_ORIGINAL_DST of live connections right
    /// until they have ended, for at most this many seconds.
    ///
    /// Interrupted, it leaves the instance draining: nothing new is captured. `redirector detach NAME`
    /// ends that at once, else the first command after the time is over.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    drain: Option<u32>,
    /// Detach also what an agent keeps and will attach again.
    #[arg(long)]
    force: bool,
    /// Exit 0 if there is nothing to detach.
    #[arg(long)]
    ignore_missing: bool,
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let (reports, failure) = match which(env, &args) {
        Ok(names) => {
            refuse_kept(env, &args, &names)?;
            detach_all(env, &args, &names)
        }
        Err(e) => (Vec::new(), Some(e)),
    };
    // What a killed command has left goes with every detach. It is not what was asked for.
    for swept in sweep::sweep_if_idle(&env.root).unwrap_or_default() {
        env.note(&swept);
    }
    match failure {
        Some(e) if e.kind() == Kind::NothingMatched && args.ignore_missing => env.note(&e.to_string()),
        Some(e) if reports.is_empty() => return Err(e),
        Some(e) => {
            show(env, &reports)?;
            return Err(e);
        }
        None => {}
    }
    show(env, &reports)?;
    Ok(ExitCode::SUCCESS)
}

/// An agent attaches again what it keeps, and until then connections go past the proxy.
fn refuse_kept(env: &Env, args: &Args, names: &[String]) -> Result<()> {
    let is_kept = |name: &&String| {
        node::is_the_agents(name)
            && status::status(&env.root, name).is_ok_and(|s| s.state == "active" && s.problem.is_none())
    };
    let Some(name) = names.iter().find(is_kept).filter(|_| !args.force) else { return Ok(()) };
    if !node::agent_works_on(&env.root)? {
        return Ok(());
    }
    let what = format!("{name} is kept by the agent of this node, which would attach it again");
    Err(Error::input(what).usage(match name.strip_prefix("file-") {
        Some(file) => {
            format!("remove its file {file}.toml (in the agent's --config directory), or give --force")
        }
        None => "delete the pod, or take it out of the mesh; or give --force".to_owned(),
    }))
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    detached: &'a [detach::Detached],
}

fn show(env: &Env, reports: &[detach::Detached]) -> Result<()> {
    for report in reports {
        for remark in &report.notes {
            env.note(&format!("{}: {remark}", report.name));
        }
    }
    match env.format {
        Format::Json => json(&Answer { detached: reports })?,
        Format::Table => {
            for report in reports {
                print(&text(report))?;
            }
        }
    }
    Ok(())
}

/// Detaches each, and goes on to the next if one fails; they drain at the same time.
fn detach_all<'a>(env: &Env, args: &Args, names: &'a [String]) -> (Vec<detach::Detached>, Option<Error>) {
    let drain = args.drain.map(|seconds| Duration::from_secs(seconds.into()));
    let results: Vec<Result<detach::Detached>> = std::thread::scope(|scope| {
        let one = |name: &'a String| scope.spawn(move || detach::detach(&env.root, name, drain));
        let running: Vec<_> = names.iter().map(one).collect();
        let threads = running.into_iter();
        threads.map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let (mut reports, mut failure) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(report) => reports.push(report),
            // With --all another command may have been quicker.
            Err(e) if e.kind() == Kind::NothingMatched && args.all => {}
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    if reports.is_empty() && failure.is_none() {
        failure = Some(Error::nothing_matched("there is no instance"));
    }
    (reports, failure)
}

fn text(report: &detach::Detached) -> String {
    match report.alive {
        Some(n) if n > 0 => format!(
            "detached {}; {n} captured connections are alive: they go on, but their getpeername and SO_ORIGINAL_DST \
             show the proxy's address from now on (--drain waits for them)",
            report.name
        ),
        _ => format!("detached {}", report.name),
    }
}

/// Names of the instances to detach.
fn which(env: &Env, args: &Args) -> Result<Vec<String>> {
    if args.all {
        return env.root.names();
    }
    match super::env::netns_given(args.which.pid, args.which.netns.as_ref()) {
        Some((path, missing)) => of_netns(env, &path, missing, args.ignore_missing),
        None => args.which.require(env),
    }
    .map(|name| vec![name])
}

/// The instance of a network namespace; it may be gone, then the file it was given still tells.
fn of_netns(env: &Env, path: &Path, missing: String, may_be_gone: bool) -> Result<String> {
    let found = match open_netns(path, || missing) {
        Ok(netns) => find::by_netns(&env.root, &netns)?,
        Err(e) => match find::by_file(&env.root, path)? {
            None if !may_be_gone || path.exists() => return Err(e),
            found => found,
        },
    };
    found.ok_or_else(|| Error::nothing_matched(format!("no instance is attached to {}", path.display())))
}
