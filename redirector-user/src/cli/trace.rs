//! `redirector trace`.

use super::Env;
use super::output::{Format, note, print};
use crate::error::{Context, Error, Result, chain};
use crate::instance::{hooks, state::Instance};
use crate::kernel;
use crate::sys::bpf::Link;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use redirector_common::abi::meta_flag;
use redirector_common::counter::Counter;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const EXAMPLES: &str = "\
Examples:
  redirector attach --pid 4711 --trace
  redirector trace n4097
  redirector trace n4097 --output json      one document a line";

/// Print decisions live, as connections are made and arrive, until interrupted.
///
/// The instance must have been attached with --trace. What connect() refuses is only counted (see
/// `show`). The kernel drops events when nobody reads them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Name of the instance.
    name: String,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    crate::instance::root::check_name(&args.name)?;
    let instance = Instance::open(&env.root, &args.name)?;
    if instance.meta()?.flags & meta_flag::TRACE == 0 {
        return Err(Error::Input(format!(
            "{} was attached without --trace; detach it and attach it with --trace",
            args.name
        )));
    }
    let link = hooks::ALL.iter().find(|hook| hook.netns).map(|hook| instance.dir.join(hook.link_pin()));
    let path = link.ok_or_else(|| Error::Failed("no hook of the network namespace".into()))?;
    let info =
        Link::open(&path).and_then(|link| link.info()).context(|| format!("inspect {}", path.display()))?;
    let logger = EbpfLogger::init_from_id_with_logger(info.program, Printer { format: env.format })
        .map_err(|e| Error::Failed(format!("open the ring buffer of {}: {}", args.name, chain(&e))))?;
    note(env.format, "waiting for connections; interrupt to end");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context(|| "start the runtime".into())?;
    runtime.block_on(follow(logger)).context(|| format!("read the ring buffer of {}", args.name))?;
    Ok(ExitCode::SUCCESS)
}

async fn follow(logger: EbpfLogger<Printer>) -> std::io::Result<()> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; the logger owns its descriptor and never changes it"
    )]
    let mut ring = AsyncFd::with_interest(logger, Interest::READABLE)?;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            _ = &mut interrupted => return Ok(()),
            ready = ring.readable_mut() => {
                let mut ready = ready?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        }
    }
}

/// Turns the kernel side's terse lines into sentences.
struct Printer {
    format: Format,
}

impl Log for Printer {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let Some(event) = Event::parse(&text) else { return };
        let line = match self.format {
            Format::Json => serde_json::to_string(&event).unwrap_or_default(),
            Format::Table => event.to_string(),
        };
        // A closed pipe ends the command by its own signal or by the next interrupt.
        let _ = print(&line);
    }

    fn flush(&self) {}
}

/// A decision.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
struct Event {
    /// `connect`: the SYN of a connection leaves; `accept`: one arrives from the network.
    event: String,
    client: SocketAddr,
    destination: SocketAddr,
    verdict: &'static str,
    rule: &'static str,
}

impl Event {
    /// `EVENT CLIENT PORT DESTINATION PORT VERDICT RULE`, see redirector-ebpf/src/trace.rs.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let event = words.next()?.to_owned();
        let mut address = || -> Option<SocketAddr> {
            let ip: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(ip.to_canonical(), words.next()?.parse().ok()?))
        };
        let (client, destination) = (address()?, address()?);
        let verdict = ["pass", "outbound", "inbound", "dns"].get(words.next()?.parse::<usize>().ok()?)?;
        let rule = Counter::ALL.get(words.next()?.parse::<usize>().ok()?)?.name();
        Some(Self { event, client, destination, verdict, rule })
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:<8} {} -> {}  {} ({})",
            self.event, self.client, self.destination, self.verdict, self.rule
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_side() {
        let event = Event::parse("connect ::ffff:10.77.0.2 40000 ::ffff:10.96.0.10 80 1 15").unwrap();
        assert_eq!(event.to_string(), "connect  10.77.0.2:40000 -> 10.96.0.10:80  outbound (out_all)");
        assert_eq!(Event::parse("connect nonsense"), None);
        assert_eq!(Event::parse("connect ::1 1 ::1 1 9 9"), None);
    }
}
