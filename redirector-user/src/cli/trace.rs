//! `redirector trace`.

use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};

use super::env::Env;
use super::output::{self, Format, note};
use super::which::Which;
use crate::base::error::{Context, Result};
use crate::instance::telling::Telling;
use crate::instance::trace::{End, Event, Trace};
use crate::kernel;

const EXAMPLES: &str = "\
Examples:
  redirector trace n4097
  redirector trace n4097 --to 10.96.0.0/16 --port 443 --verdict pass
  redirector trace n4097 --output json      one document a line";

/// Print decisions live, as connections are made and arrive, until interrupted.
///
/// What was decided before is not told. Unless the instance was attached with --trace its programs are swapped for some that
/// tell, without a moment outside capture, and back at the end. What connect() refuses is only counted (see
/// `show`). The kernel drops events when nobody reads them. It ends when the instance is detached or gets other programs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Only connections to this address or network.
    #[arg(long, value_name = "CIDR", value_parser = network)]
    to: Option<IpNet>,
    /// Only connections to this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those with this verdict.
    #[arg(long, value_name = "VERDICT", value_parser = ["pass", "outbound", "inbound", "dns"])]
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
    fn wants(&self, event: &Event) -> bool {
        self.to.is_none_or(|net| net.contains(&event.destination.ip()))
            && self.port.is_none_or(|port| port == event.destination.port())
            && self.verdict.as_ref().is_none_or(|verdict| verdict == event.verdict)
    }
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let name = args.which.require(env)?;
    let telling = Telling::begin(&env.root, &name)?;
    let result = follow(env, args, &name);
    telling.map_or(Ok(()), Telling::end)?;
    result
}

fn follow(env: &Env, args: Args, name: &str) -> Result<ExitCode> {
    let format = env.format;
    let unwritten = Arc::new(OnceLock::new());
    let failed = Arc::clone(&unwritten);
    let mut trace = Trace::open(&env.root, name, move |event: &Event| {
        if !args.wants(event) {
            return true;
        }
        let line = match format {
            Format::Json => serde_json::to_string(event).unwrap_or_default(),
            Format::Table => event.to_string(),
        };
        // A reader that has closed the pipe (`| head`) wants no more.
        writeln!(std::io::stdout(), "{line}").map_err(|e| failed.set(e)).is_ok()
    })?;
    trace.forget();
    note(format, "waiting for connections; interrupt to end");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the runtime".into())?;
    let ended = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context(|| "wait for signals".into())?;
        let stop = async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        };
        trace.follow(stop).await
    })?;
    if ended == End::Replaced {
        note(format, "the programs that were traced are gone: detached, or others were swapped in");
    }
    Arc::into_inner(unwritten).and_then(OnceLock::into_inner).map_or(Ok(()), output::unwritten)?;
    Ok(ExitCode::SUCCESS)
}
