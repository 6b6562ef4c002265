//! `redirector trace`.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap_complete::engine::ArgValueCompleter;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use super::env::Env;
use super::output::{self, Format, note};
use super::which::{Which, names_of_instances};
use crate::base::error::{Context, Result};
use crate::instance::event::Event;
use crate::instance::telling::Telling;
use crate::instance::trace::{End, Told, Trace};
use crate::kernel;

const EXAMPLES: &str = "\
Examples:
  redirector trace n4097
  redirector trace n4097 --to 10.96.0.0/16 --port 443 --verdict pass
  redirector trace n4097 --verdict refused --uid 1000
  redirector trace n4097 --output json      one document a line";

/// Print decisions live, as connections are made and arrive, until interrupted.
///
/// Each line has the time, the process with its user and cgroup, the client, where it was going, where it goes instead, the
/// verdict and the rule; refusals have their counter and error. A packet that arrives belongs to no process.
///
/// What was decided before is not told. Unless the instance was attached with --trace its programs are swapped for some that
/// tell, without a moment outside capture, and back at the end. The kernel drops events when they come faster than they
/// are read; how many is said. It ends when the instance is detached or gets other programs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("which").args(["name", "netns", "pod"])))]
pub struct Args {
    /// Name of the instance.
    #[arg(add = ArgValueCompleter::new(names_of_instances))]
    name: Option<String>,
    /// File of the network namespace.
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// A pod of Kubernetes on this node.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pod: Option<String>,
    /// Alone: a process of the pod. Else only what this process does.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Only what this user does.
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Only connections to this address or network.
    #[arg(long, value_name = "CIDR", value_parser = network)]
    to: Option<IpNet>,
    /// Only connections to this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those with this verdict.
    #[arg(long, value_name = "VERDICT", value_parser = ["pass", "outbound", "inbound", "dns", "refused"])]
    verdict: Option<String>,
}

/// An address is a network of its own.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "is no address and no network, such as 10.0.0.0/8".to_owned())
}

impl Args {
    /// Otherwise than by its process.
    fn is_named(&self) -> bool {
        self.name.is_some() || self.netns.is_some() || self.pod.is_some()
    }

    fn wants(&self, event: &Event) -> bool {
        let verdict = if event.refused.is_some() { "refused" } else { event.verdict };
        self.to.is_none_or(|net| net.contains(&event.destination.ip()))
            && self.port.is_none_or(|port| port == event.destination.port())
            && self.verdict.as_ref().is_none_or(|wanted| wanted == verdict)
            && self.uid.is_none_or(|uid| event.uid == Some(uid))
            && self.pid.filter(|_| self.is_named()).is_none_or(|pid| event.pid == Some(pid))
    }

    fn which(&self) -> Which {
        Which {
            name: self.name.clone(),
            named: None,
            pid: self.pid.filter(|_| !self.is_named()),
            netns: self.netns.clone(),
            pod: self.pod.clone(),
        }
    }
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let name = args.which().require(env)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the runtime".into())?;
    // Before the programs are swapped: an interrupt would leave them in.
    let [mut interrupted, mut terminated] = {
        let _inside = runtime.enter();
        let of = |kind| signal(kind).context(|| "wait for signals".into());
        [of(SignalKind::interrupt())?, of(SignalKind::terminate())?]
    };
    let stop = async {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    };
    let telling = Telling::begin(&env.root, &name)?;
    let result = follow(env, args, &name, &runtime, stop);
    telling.map_or(Ok(()), Telling::end)?;
    result
}

fn follow(
    env: &Env,
    args: &Args,
    name: &str,
    runtime: &tokio::runtime::Runtime,
    stop: impl Future,
) -> Result<ExitCode> {
    let format = env.format;
    let trace = Trace::open(&env.root, name)?;
    note(format, "waiting for connections; interrupt to end");
    let mut unwritten = None;
    let tell = |told: &Told<'_>| {
        let event = match told {
            Told::Decision(event) if args.wants(event) => event,
            Told::Decision(_) => return true,
            Told::Trouble(text) => {
                note(format, text);
                return true;
            }
        };
        let line = match format {
            Format::Json => serde_json::to_string(event).unwrap_or_default(),
            Format::Table => event.to_string(),
        };
        // A reader that has closed the pipe (`| head`) wants no more.
        writeln!(std::io::stdout(), "{line}").map_err(|e| unwritten = Some(e)).is_ok()
    };
    let ended = runtime.block_on(trace.follow(stop, tell))?;
    if ended == End::Replaced {
        note(format, "the programs that were traced are gone: detached, or others were swapped in");
    }
    unwritten.map_or(Ok(()), output::unwritten)?;
    Ok(ExitCode::SUCCESS)
}
