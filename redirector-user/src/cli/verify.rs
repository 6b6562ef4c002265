//! `redirector verify`, and the hidden verb of its helpers.

use super::env::Env;
use super::output::{Format, json, print, table};
use crate::base::error::{Error, Result};
use crate::instance::directory::check_name;
use crate::instance::find;
use crate::kernel;
use crate::pod::open_netns;
use crate::verify::{self, Options, Probe, Report, Status, helper};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

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
#[command(group(clap::ArgGroup::new("which").required(true).args(["name", "pid", "netns"])))]
pub struct Args {
    /// Name of the instance.
    name: Option<String>,
    /// A process of the pod.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// File of the network namespace.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
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
    kernel::privileges::require_to_verify()?;
    let name = name(env, args)?;
    let from =
        args.from.as_ref().map(|path| open_netns(path, || format!("{} does not exist", path.display())));
    let options = Options {
        probe_port: args.probe_port,
        patience: Duration::from_secs(args.timeout),
        from: from.transpose()?,
    };
    let report = verify::verify(&env.root, &name, &options)?;
    print_report(env, &report)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A helper's life.
pub fn helper() -> ExitCode {
    let args = match HelperArgs::try_parse_from(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(e) => return super::env::usage(&e),
    };
    match helper::serve(args.uid, args.gid, args.verify) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => super::env::fail(&e, Format::Table),
    }
}

fn name(env: &Env, args: &Args) -> Result<String> {
    if let Some(name) = &args.name {
        check_name(name)?;
        return Ok(name.clone());
    }
    let Some((path, missing)) = super::env::netns_given(args.pid, args.netns.as_ref()) else {
        return Err(Error::input("give a name, --pid or --netns"));
    };
    let netns = open_netns(&path, || missing)?;
    find::by_netns(&env.root, &netns)?.ok_or_else(|| {
        Error::nothing_matched(format!("no instance is attached to {}", path.display()))
            .usage("see `redirector list`")
    })
}

/// Prints a report.
pub fn print_report(env: &Env, report: &Report) -> Result<()> {
    match env.format {
        Format::Json => json(report),
        Format::Table => show(report),
    }
}

/// Prints a report for people.
fn show(report: &Report) -> Result<()> {
    table(
        ["PROBE", "HOW", "CONNECTION", "EXPECTED", "SEEN", "RESULT"],
        report.probes.iter().map(|probe| {
            [
                format!("{} {}", probe.probe, probe.family),
                how(probe),
                connection(probe),
                expected(probe),
                seen(probe),
                match probe.status {
                    Status::Ok => "ok".into(),
                    Status::Failed => "FAILED".into(),
                    Status::Skipped => "skipped".into(),
                },
            ]
        }),
    )?;
    for probe in &report.probes {
        for why in &probe.why {
            print(&format!("{} {}: {why}", probe.probe, probe.family))?;
        }
    }
    print(if report.ok {
        "the instance does what its policy says"
    } else {
        "the instance FAILS verification"
    })
}

fn how(probe: &Probe) -> String {
    match (probe.how, probe.listener) {
        ("connection", Some("proxy")) => "to the proxy".into(),
        ("connection", Some(_)) => "to a listener of ours".into(),
        ("connection", None) => "connection".into(),
        ("program", _) => "program asked".into(),
        _ => "-".into(),
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
