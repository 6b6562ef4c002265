//! An event as `trace` prints it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use jiff::Timestamp;
use redirector_common::abi::{Addr, Event as Raw, EventKind};
use redirector_common::rule::{Counter, Verdict};
use rustix::time::{ClockId, clock_gettime};
use schemars::JsonSchema;
use serde::Serialize;

use super::maps::Instance;
use super::record;
use crate::base::error::Result;
use crate::base::text::{nul_terminated, printable};
use crate::pod::cgroup::Cgroup;
use crate::pod::name::PodName;

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Event {
    /// When, RFC 3339.
    pub time: String,
    /// `connect`: a socket connects; `send`: a UDP socket sends without; `accept`: a connection arrives from the network, or
    /// over lo and nobody takes it.
    pub event: &'static str,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The calling process; null where a packet is the cause, as for the following three.
    pub pid: Option<u32>,
    /// Name of its thread.
    pub comm: Option<String>,
    /// Its user.
    pub uid: Option<u32>,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
    /// The pod that the instance is of.
    pub pod: Option<String>,
    /// Cookie of the socket, as `ss -e` tells it.
    pub cookie: Option<u64>,
    /// Whose connection it is; port 0: the kernel has not chosen it yet.
    pub client: SocketAddr,
    /// Where it was going.
    pub destination: SocketAddr,
    /// Where it goes instead.
    pub redirected: Option<SocketAddr>,
    /// `pass`, `outbound`, `inbound` or `dns`.
    pub verdict: &'static str,
    /// Name of the rule that decided; null: none was asked, the family is not captured; or another event told it.
    pub rule: Option<&'static str>,
    /// Name of the counter of a refusal.
    pub refused: Option<&'static str>,
    /// The error of the system call.
    pub errno: Option<String>,
    /// False: the proxy has registered no listener, so whoever listens at the port gets it, or nobody.
    pub registered: bool,
}

/// Makes events of what the programs write.
pub struct Reader {
    instance: Instance,
    cgroup: PathBuf,
    pod: Option<PodName>,
    /// Nanoseconds from CLOCK_MONOTONIC to CLOCK_REALTIME.
    offset: i128,
    /// Of cgroups by their ids; one that is gone has none.
    cgroups: HashMap<u64, Option<PathBuf>>,
}

impl Reader {
    /// For the programs of an instance.
    ///
    /// # Errors
    ///
    /// If its record cannot be read.
    pub fn of(instance: Instance) -> Result<Self> {
        let record = record::read(&instance.dir, instance.active_slot()?)?;
        let now = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        let offset = now(ClockId::Realtime) - now(ClockId::Monotonic);
        Ok(Self { instance, cgroup: record.cgroup, pod: record.pod, offset, cgroups: HashMap::new() })
    }

    /// None: it is of programs that are not these.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Event> {
        let raw: Raw = bytemuck::try_pod_read_unaligned(bytes).ok()?;
        let verdict = *Verdict::ALL.get(usize::from(raw.verdict))?;
        let caller = raw.pid != 0;
        let destination = address(raw.destination, raw.destination_port);
        let time = Timestamp::from_nanosecond(i128::from(raw.time) + self.offset).ok()?;
        let (event, registered) = match raw.kind {
            EventKind::CONNECT => ("connect", true),
            EventKind::SEND => ("send", true),
            EventKind::ACCEPT => ("accept", true),
            EventKind::UNREGISTERED => ("accept", false),
            _ => return None,
        };
        let redirected = match address(raw.redirected, raw.redirected_port) {
            _ if raw.refused < Counter::COUNT || !registered => None,
            to if event == "accept" => self.port_of(verdict).map(|port| SocketAddr::new(to.ip(), port)),
            to => (to != destination && !to.ip().is_unspecified()).then_some(to),
        };
        Some(Event {
            time: format!("{time:.6}"),
            event,
            protocol: if raw.protocol == 17 { "udp" } else { "tcp" },
            pid: caller.then_some(raw.pid),
            comm: caller.then(|| printable(&nul_terminated(&raw.comm)).into_owned()),
            uid: caller.then_some(raw.uid),
            cgroup: if caller { self.cgroup_of(raw.cgroup) } else { None },
            pod: self.pod.as_ref().map(ToString::to_string),
            cookie: (raw.cookie != 0).then_some(raw.cookie),
            client: address(raw.client, raw.client_port),
            destination,
            redirected,
            verdict: verdict.name(),
            rule: counter(raw.rule),
            refused: counter(raw.refused),
            errno: (raw.errno != 0).then(|| errno(raw.errno)),
            registered,
        })
    }

    /// Where what arrives is sent.
    fn port_of(&self, verdict: Verdict) -> Option<u16> {
        let policy = self.instance.active_slot().and_then(|slot| self.instance.policy(slot)).ok()?;
        match verdict {
            Verdict::Pass => None,
            Verdict::Outbound => Some(policy.outbound_port),
            Verdict::Inbound => Some(policy.inbound_port),
            Verdict::Dns => Some(policy.dns_port),
        }
    }

    fn cgroup_of(&mut self, id: u64) -> Option<PathBuf> {
        if let Some(known) = self.cgroups.get(&id) {
            return known.clone();
        }
        let there = Cgroup::open(&self.cgroup).map(|cgroup| cgroup.ids()).unwrap_or_default();
        self.cgroups.extend(there.into_iter().map(|(id, path)| (id, Some(path))));
        self.cgroups.entry(id).or_insert(None).clone()
    }
}

fn address(addr: Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), port)
}

fn counter(number: u32) -> Option<&'static str> {
    Counter::ALL.get(number as usize).map(|counter| counter.name())
}

/// Those that connect() refuses with.
fn errno(number: u16) -> String {
    let name = match i32::from(number) {
        libc::EACCES => "EACCES",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EINVAL => "EINVAL",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENOBUFS => "ENOBUFS",
        other => return other.to_string(),
    };
    name.to_owned()
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:<7} {}", self.time, self.event, self.protocol)?;
        if let (Some(pid), Some(comm), Some(uid)) = (self.pid, &self.comm, self.uid) {
            write!(f, " {comm}[{pid}] uid {uid}")?;
        }
        if let Some(name) = self.cgroup.as_ref().and_then(|path| path.file_name()) {
            write!(f, " in {}", name.to_string_lossy())?;
        }
        match self.client.port() {
            0 => write!(f, "  {} -> {}", self.client.ip(), self.destination)?,
            _ => write!(f, "  {} -> {}", self.client, self.destination)?,
        }
        if let Some(to) = self.redirected {
            write!(f, " => {to}")?;
        }
        write!(f, "  {}", self.verdict)?;
        if let Some(rule) = self.rule {
            write!(f, " ({rule})")?;
        }
        if let Some(refused) = self.refused {
            write!(
                f,
                "  refused {}({refused})",
                self.errno.as_ref().map_or_else(String::new, |e| format!("{e} "))
            )?;
        }
        if !self.registered {
            write!(f, "  no listener is registered")?;
        }
        Ok(())
    }
}
