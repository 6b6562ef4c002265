//! Decisions of an instance, live: its programs tell them by aya-log, if it was attached so.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use redirector_common::abi::meta_flag;
use redirector_common::rule::{Counter, Verdict};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::directory::Directory;
use super::maps::Instance;
use crate::base::error::{Context, Error, Result, chain};
use crate::programs::hooks;
use crate::sys::bpf::Link;

/// Whether the programs are still the same is asked this often.
const LOOK: Duration = Duration::from_secs(1);

/// The ring buffer of an instance. It has one reader: of two, each gets a part.
pub struct Trace<F: Tell> {
    logger: EbpfLogger<Teller<F>>,
    closed: Arc<AtomicBool>,
    muted: Arc<AtomicBool>,
    link: PathBuf,
    program: u32,
}

/// Takes a decision; false if nobody wants another.
pub trait Tell: Fn(&Event) -> bool + Send + Sync + 'static {}

impl<F: Fn(&Event) -> bool + Send + Sync + 'static> Tell for F {}

/// Why there are no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody wants them.
    Closed,
    /// Nothing writes into this ring any more: the instance was detached, or has other programs now.
    Replaced,
}

impl<F: Tell> Trace<F> {
    /// Opens the ring buffer.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if the instance was attached without `--trace`.
    pub fn open(root: &Directory, name: &str, tell: F) -> Result<Self> {
        let instance = Instance::open(root, name)?;
        if instance.meta()?.flags & meta_flag::TRACE == 0 {
            return Err(Error::input(format!("{name} was attached without --trace"))
                .usage("detach it and attach it with --trace"));
        }
        let hook = hooks::ALL.iter().find(|hook| hook.netns);
        let hook = hook.ok_or_else(|| Error::failed("no hook of the network namespace"))?;
        let link = instance.dir.join(hook.link_pin());
        let info = Link::open(&link).and_then(|link| link.info());
        let program = info.context(|| format!("inspect {}", link.display()))?.program;
        let closed = Arc::new(AtomicBool::new(false));
        let muted = Arc::new(AtomicBool::new(false));
        let teller = Teller { tell, closed: Arc::clone(&closed), muted: Arc::clone(&muted) };
        let logger = EbpfLogger::init_from_id_with_logger(program, teller)
            .map_err(|e| Error::failed(format!("open the ring buffer of {name}: {}", chain(&e))))?;
        Ok(Self { logger, closed, muted, link, program })
    }

    /// Forgets what has been decided up to now: the ring buffer keeps what nobody has read.
    pub fn forget(&mut self) {
        self.muted.store(true, Ordering::Relaxed);
        self.logger.flush();
        self.muted.store(false, Ordering::Relaxed);
    }

    /// Tells decisions until there are no more, or `stop` is ready.
    ///
    /// # Errors
    ///
    /// If the ring buffer cannot be waited for.
    pub async fn follow(self, stop: impl Future) -> Result<End> {
        let Self { logger, closed, link, program, .. } = self;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; the logger owns its descriptor and never changes it"
        )]
        let ring = AsyncFd::with_interest(logger, Interest::READABLE);
        let what = || format!("read the ring buffer of {}", link.display());
        let mut ring = ring.context(what)?;
        let mut look = tokio::time::interval(LOOK);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = &mut stop => return Ok(End::Closed),
                _ = look.tick() => {
                    let info = Link::open(&link).and_then(|link| link.info());
                    if !info.is_ok_and(|info| info.program == program && info.target != 0) {
                        return Ok(End::Replaced);
                    }
                }
                ready = ring.readable_mut() => {
                    let mut ready = ready.context(what)?;
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                    if closed.load(Ordering::Relaxed) {
                        return Ok(End::Closed);
                    }
                }
            }
        }
    }
}

/// Turns the kernel side's terse lines into decisions.
struct Teller<F> {
    tell: F,
    closed: Arc<AtomicBool>,
    muted: Arc<AtomicBool>,
}

impl<F: Tell> Log for Teller<F> {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if self.muted.load(Ordering::Relaxed) {
            return;
        }
        let text = record.args().to_string();
        if Event::parse(&text).is_some_and(|event| !(self.tell)(&event)) {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// A decision.
#[derive(Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Event {
    /// `connect`: the SYN of a connection leaves; `accept`: one arrives from the network.
    pub event: String,
    /// Whose connection it is.
    pub client: SocketAddr,
    /// Where it was going.
    pub destination: SocketAddr,
    /// `pass`, `outbound`, `inbound` or `dns`.
    pub verdict: &'static str,
    /// Name of the rule that decided.
    pub rule: &'static str,
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
        let verdict = Verdict::ALL.get(words.next()?.parse::<usize>().ok()?)?.name();
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
