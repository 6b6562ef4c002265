//! `redirector verify`, and the hidden verb of its helpers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use super::env::Env;
use super::output::{Format, json, print};
use super::which::Which;
use crate::base::error::Result;
use crate::health::{Finding, Level};
use crate::kernel;
use crate::pod::{cgroup_namespace, open_netns};
use crate::verify::{self, Options, Probe, Report, Scope, Status, helper};

const EXAMPLES: &str = "\
Examples:
  redirector verify n4097
  redirector verify --pid 4711
  redirector verify pod1 --from /proc/1/ns/net
      the inbound probe really connects, from the node";

/// The port that istio-validation looks for (`constants.DefaultIptablesProbePortUint`).
const PROBE_PORT: u16 = 15_002;
/// Its patience, in seconds.
const PATIENCE: u64 = 5;

/// Make real connections through an instance and compare what is seen with what its policy says.
///
/// The connections are made inside the pod: as the proxy's user (what Istio's istio-validation does), and as a user
/// that no rule names. Where the proxy listens, it gets them: one that is reset at once. Where it does not, verify
/// listens in its place for this moment.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// A network namespace from which to connect to the pod; without it the attached program is asked what it
    /// would do with a connection from the network.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Port that the proxy's user connects to.
    #[arg(long, value_name = "PORT", default_value_t = PROBE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    probe_port: u16,
    /// How long each connection may take.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE,
          value_parser = clap::value_parser!(u64).range(1..=helper::LONGEST.as_secs()))]
    timeout: u64,
    /// The proxy has not started yet: only the programs have to be right, and nobody has to listen.
    #[arg(long)]
    programs_only: bool,
}

/// Arguments of a helper.
#[derive(Debug, clap::Parser)]
struct HelperArgs {
    uid: u32,
    gid: u32,
    /// The process that gives the orders.
    verify: u32,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    // A helper is moved into the pod's cgroup, which from a container's own cgroup namespace is no path.
    cgroup_namespace::enter_hosts()?;
    let name = args.which.require(env)?;
    let from =
        args.from.as_ref().map(|path| open_netns(path, || format!("{} does not exist", path.display())));
    let options = Options {
        probe_port: args.probe_port,
        patience: Duration::from_secs(args.timeout),
        from: from.transpose()?,
        scope: if args.programs_only { Scope::Programs } else { Scope::Everything },
    };
    let report = verify::verify(&env.root, &name, &options)?;
    print_report(env, &report)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A helper's life.
pub fn helper() -> ExitCode {
    let args = match HelperArgs::try_parse_from(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(e) => return super::usage::usage(&e),
    };
    match helper::serve(args.uid, args.gid, args.verify) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => super::env::fail(&e, Format::Table),
    }
}

/// Prints a report.
pub fn print_report(env: &Env, report: &Report) -> Result<()> {
    match env.format {
        Format::Json => json(report),
        Format::Table => show(report),
    }
}

/// Prints a report for people: the result first, then why.
fn show(report: &Report) -> Result<()> {
    let mut lines = vec![conclusion(report).to_owned()];
    lines.extend(report.health.iter().flat_map(|health| super::status::findings(&health.findings)));
    for probe in &report.probes {
        let result = match probe.status {
            Status::Ok => "ok",
            Status::Failed => "FAILED",
            Status::Skipped => "skipped",
        };
        let what = format!("{} {}", probe.probe, probe.family);
        lines.push(
            format!("  {result:<9} {what:<21} {} {}", connection(probe), how(probe)).trim_end().to_owned(),
        );
        if probe.status == Status::Failed {
            lines.push(format!("  {:<9} expected {}; seen {}", "", expected(probe), seen(probe)));
        }
        lines.extend(probe.why.iter().map(|why| format!("  {:<9} {why}", "")));
    }
    print(&lines.join("\n"))
}

fn conclusion(report: &Report) -> &'static str {
    let faults = report.health.iter().flat_map(|health| &health.findings);
    let mut faults = faults.filter(|finding| finding.level == Level::Fault);
    match (report.ok, report.probes_ok) {
        (true, _) if faults.any(Finding::is_about_the_proxy) => {
            "the programs do what the policy says; the proxy is not looked at (--programs-only)"
        }
        (true, _) => "the instance does what its policy says",
        (false, true) if faults.all(Finding::is_about_the_proxy) => {
            "FAILED: the programs are right, and the proxy does not get what they send it"
        }
        (false, true) => "FAILED: the connections tried are right, and others are not",
        (false, false) if report.probes.is_empty() => "FAILED: no connection could be tried",
        (false, false) => "FAILED: the instance does not do what its policy says",
    }
}

fn how(probe: &Probe) -> &'static str {
    match (probe.how, probe.listener) {
        ("connection", Some("proxy")) => "(to the proxy)",
        ("datagram", Some("proxy")) => "(to the proxy, over UDP)",
        ("datagram", Some(_)) => "(to a server of verify's own, over UDP)",
        ("connection", Some(_)) => "(to a listener of verify's own)",
        ("program", _) => "(the program was asked)",
        _ => "",
    }
}

fn connection(probe: &Probe) -> String {
    let Some(to) = probe.to else { return "-".into() };
    let from = probe.bind.map(|bind| format!("{bind} ")).unwrap_or_default();
    let user = probe.uid.map(|uid| format!("uid {uid}: ")).unwrap_or_default();
    format!("{user}{from}-> {to}")
}

fn expected(probe: &Probe) -> String {
    let Some(expected) = &probe.expected else { return "-".into() };
    let port = expected.port.map(|port| format!(" {port}")).unwrap_or_default();
    format!("{}{port} ({})", expected.verdict, expected.rule.unwrap_or("no rule"))
}

fn seen(probe: &Probe) -> String {
    let seen = &probe.seen;
    if let Some(error) = &seen.error {
        return error.clone();
    }
    if let Some(program) = seen.program {
        return program.into();
    }
    let Some(arrived) = seen.arrived_at else { return "-".into() };
    let original = seen.original_dst.map(|original| format!(", original {original}")).unwrap_or_default();
    format!("at {arrived}{original}")
}
