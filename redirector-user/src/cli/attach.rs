//! `redirector attach`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print};
use crate::base::error::{Error, Kind, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::instance::attach::{self, Outcome, default_name};
use crate::instance::{detach, find, status};
use crate::pod::Target;
use crate::policy::{self, CaptureFlags, Policy, Requests, Resolved, variables_help};
use crate::verify::{self, Report};
use crate::{kernel, pod};

const EXAMPLES: &str = "\
Examples:
  redirector attach --pid 4711
      the sidecar default: everything, as
      istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT \\
        -i '*' -x '' -b '*' -d 15090,15021,15020
  redirector attach --netns /run/netns/pod1 --cgroup /sys/fs/cgroup/pod1 \\
      --name pod1 -o 5432 -x 10.0.0.0/8
  redirector attach --pid 4711 --istio-defaults -i 10.0.0.0/8 -b 80,443
  redirector attach --pid 4711 --policy pod.toml
  redirector attach --pid 4711 --annotations pod.json
      as Istio's CNI plugin would, for what `kubectl get pod NAME -o json` shows
  redirector attach --pid 4711 --dry-run --output json";

/// Capture a pod's traffic. The same policy again changes nothing; another one is swapped in.
#[derive(Debug, clap::Args)]
#[command(override_usage = "redirector attach (--pid <PID> | --netns <FILE> --cgroup <DIR>) [OPTIONS]")]
pub struct Args {
    /// A process of the pod: its network namespace, and the cgroup of its pod, unit or container; where none is
    /// named so, the innermost that holds every process of that namespace.
    #[arg(long, value_name = "PID", conflicts_with_all = ["netns", "cgroup"])]
    pid: Option<u32>,
    /// File of the network namespace.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// Directory of the cgroup (v2) whose sockets are captured.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Name of the instance [default: n and the cookie of the network namespace].
    #[arg(long)]
    name: Option<String>,
    /// Attach although processes of the namespace are outside the cgroup and will not be captured.
    #[arg(long)]
    allow_partial: bool,
    /// Let `redirector trace` follow the decisions of a new instance; each connection costs a
    /// little more then.
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    capture: CaptureFlags,
}

/// What follows the options; the flattened flags bring a text of their own, which would replace it.
pub fn long_help() -> String {
    format!("{EXAMPLES}\n\n{}", variables_help())
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    let target = target(&args)?;
    let resolved = resolve(env, &args.capture, &target)?;
    elsewhere(&resolved)?;
    let how = How { name: args.name, allow_partial: args.allow_partial, trace: args.trace };
    work(env, &target, &resolved, &how)
}

/// Not left to clap, which would ask for flags that exclude each other.
fn target(args: &Args) -> Result<Target> {
    let lacking =
        |why: &str| Err(Error::input(why).usage("give --pid PID, or --netns FILE and --cgroup DIR"));
    match (args.pid, &args.netns, &args.cgroup) {
        (Some(pid), ..) => kernel::privileges::require().and_then(|()| Target::of_pid(pid)),
        (None, Some(netns), Some(cgroup)) => {
            kernel::privileges::require().and_then(|()| Target::of_paths(netns, cgroup))
        }
        (None, Some(_), None) => lacking("--netns takes --cgroup with it"),
        (None, None, Some(_)) => lacking("--cgroup takes --netns with it"),
        (None, None, None) => lacking("nothing says what to capture"),
    }
}

/// What is asked for beside the policy.
#[derive(Debug, Default)]
pub(super) struct How {
    name: Option<String>,
    allow_partial: bool,
    trace: bool,
}

/// The policy of the flags for a target.
pub(super) fn resolve(env: &Env, flags: &CaptureFlags, target: &Target) -> Result<Resolved> {
    let resolved = policy::resolve(flags, &pod::facts::of(target)?)?;
    for remark in &resolved.notes {
        env.note(&format!("{}: {}", remark.about, remark.text));
    }
    crate::netdev::check_virtual_interfaces(&resolved.policy)?;
    Ok(resolved)
}

/// Attaches, validates, or only says what it would do.
pub(super) fn work(env: &Env, target: &Target, resolved: &Resolved, how: &How) -> Result<ExitCode> {
    let (policy, requests) = (&resolved.policy, &resolved.requests);
    if requests.run_validation && !requests.dry_run {
        // Before anything is attached that would have to be taken away again.
        kernel::privileges::require_to_validate()?;
    }
    let mapped = IdMappedPolicy::new(policy.clone(), target)?;
    if requests.run_validation && requests.skip_apply && !requests.dry_run {
        let name = find::by_netns(&env.root, &target.netns)?.ok_or_else(|| {
            let netns = target.netns_path.display();
            Error::nothing_matched(format!(
                "no instance is attached to {netns}, so there is nothing to validate"
            ))
        })?;
        let report = validate(env, &name, requests)?;
        super::verify::print_report(env, &report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = how.name.clone().unwrap_or_else(|| default_name(target));
    crate::instance::directory::check_name(&name)?;
    strays(env, target, how.allow_partial)?;
    pod::live_rules::refuse_meshes(&target.netns)?;
    if requests.dry_run || requests.skip_apply {
        return dry_run(env, &name, target, policy);
    }

    let attach = attach::Request { name: &name, target, policy: &mapped, trace: how.trace };
    let report = attach::attach(&env.root, &attach)?;
    for remark in &report.notes {
        env.note(remark);
    }
    let validation = if requests.run_validation {
        Some(validate(env, &name, requests).map_err(|e| undone(env, &name, report.outcome, e))?)
    } else {
        None
    };
    let outcome = match report.outcome {
        Outcome::Attached => "attached",
        Outcome::Unchanged => "unchanged",
        Outcome::Changed => "changed",
    };
    match env.format {
        Format::Json => {
            json(&Answer { notes: &report.notes, validation, ..Answer::new(&name, outcome, target) })?
        }
        Format::Table => {
            if let Some(validation) = &validation {
                super::verify::print_report(env, validation)?;
            }
            print(&format!(
                "{outcome} {name}: network namespace {} (inode {}), cgroup {}",
                target.netns_path.display(),
                target.netns.inode,
                target.cgroup.path.display()
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    name: &'a str,
    /// `attached`, `unchanged`, `changed` or `dry-run`.
    outcome: &'static str,
    netns: &'a Path,
    netns_inode: u64,
    cgroup: &'a Path,
    notes: &'a [String],
    /// With --run-validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    validation: Option<Report>,
    /// With --dry-run.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a Policy>,
}

impl<'a> Answer<'a> {
    fn new(name: &'a str, outcome: &'static str, target: &'a Target) -> Self {
        let (netns, netns_inode, cgroup) = (&target.netns_path, target.netns.inode, &target.cgroup.path);
        Self { name, outcome, netns, netns_inode, cgroup, notes: &[], validation: None, policy: None }
    }
}

/// `--run-validation`: verify, and an error if it is not content.
fn validate(env: &Env, name: &str, requests: &Requests) -> Result<Report> {
    let options = verify::Options {
        probe_port: requests.probe_port,
        patience: requests.probe_timeout.min(verify::helper::LONGEST),
        from: None,
        scope: verify::Scope::Probes,
    };
    let report = verify::verify(&env.root, name, &options)?;
    if report.ok {
        return Ok(report);
    }
    super::verify::print_report(env, &report)?;
    Err(Error::validation(format!("the validation of {name} failed"))
        .usage(format!("see `redirector verify {name}`")))
}

/// A failed attach leaves nothing behind: what was there before stays.
fn undone(env: &Env, name: &str, outcome: Outcome, error: Error) -> Error {
    if outcome != Outcome::Attached {
        return error;
    }
    let end = match detach::detach(&env.root, name, None) {
        Ok(_) => "the new instance has been detached".to_owned(),
        Err(e) => format!("and it could not be detached: {}", e.on_command_line()),
    };
    let text = |why: &str| format!("the validation of {name} failed{why}; {end}");
    match error.kind() {
        Kind::Validation => Error::validation(text("")),
        // The same exit code: what the kernel lacks it will lack again.
        Kind::Unsupported => Error::unsupported(text(&format!(" ({})", error.on_command_line()))),
        _ => Error::failed(text(&format!(" ({})", error.on_command_line()))),
    }
}

/// Refuses what belongs to other verbs and flags: an option is never silently ignored.
fn elsewhere(resolved: &Resolved) -> Result<()> {
    let requests = &resolved.requests;
    if requests.cleanup_only {
        return Err(Error::input("--cleanup-only attaches nothing").usage("use `redirector detach`"));
    }
    if requests.network_namespace.is_some() {
        return Err(Error::input("--network-namespace is spelt --netns here, and takes --cgroup with it"));
    }
    Ok(())
}

/// Processes of the namespace outside the cgroup would go around the proxy.
fn strays(env: &Env, target: &Target, allow: bool) -> Result<()> {
    let Some(text) = target.describe_processes_outside()? else { return Ok(()) };
    if allow {
        env.note(&text);
        return Ok(());
    }
    Err(Error::input(text).usage("give a cgroup that holds them all, or --allow-partial"))
}

fn dry_run(env: &Env, name: &str, target: &Target, policy: &Policy) -> Result<ExitCode> {
    match env.format {
        Format::Json => json(&Answer { policy: Some(policy), ..Answer::new(name, "dry-run", target) })?,
        Format::Table => {
            let text = toml_of(policy)?;
            let there = find::by_netns(&env.root, &target.netns).ok().flatten().filter(|there| there == name);
            let there = there.and_then(|there| status::status(&env.root, &there).ok());
            let would = match there.map(|there| there.record.policy == *policy) {
                None => "would attach",
                Some(false) => "would change",
                Some(true) => "would change nothing of",
            };
            print(&format!(
                "{would} {name}: network namespace {}, cgroup {}\n{text}",
                target.netns_path.display(),
                target.cgroup.path.display()
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn toml_of(policy: &Policy) -> Result<String> {
    toml::to_string(policy).map_err(|e| Error::failed(format!("serialise the policy: {e}")))
}
