//! Many connections from many threads, each to its own destination, each checked at the proxy.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use serde::{Deserialize, Serialize};

use super::connect::greeting;
use super::storm::End;
use crate::harness::pair::matrix::SERVED;
use crate::harness::probe::observation::{Accepted, errno_name};
use crate::harness::retry::long_enough;

/// Mistakes that are told in full; the rest is counted.
const MAX_EXAMPLES: usize = 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// One connection to each.
    pub destinations: Vec<SocketAddr>,
    /// From so many threads.
    pub threads: usize,
    pub end: End,
    /// Whether the proxy must see the client's own source port. netfilter replaces it when its NAT tuple is taken.
    pub same_port: bool,
}

impl Load {
    /// Short connections from two threads.
    pub fn to(destinations: Vec<SocketAddr>) -> Self {
        Self { destinations, threads: 2, end: End::Reset, same_port: true }
    }

    /// To so many services outside the pod, of IPv4.
    pub fn services(count: u16) -> Self {
        let to = |number: u16| {
            let [high, low] = number.to_be_bytes();
            (Ipv4Addr::new(10, 96, high, low), SERVED).into()
        };
        Self::to((0..count).map(to).collect())
    }
}

/// The result of a [`Load`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Connections of which every end saw the right addresses.
    pub right: usize,
    /// Connections of which somebody saw a wrong address.
    pub wrong: usize,
    /// The first of them.
    pub examples: Vec<String>,
    /// Connections that failed, by reason.
    pub failed: BTreeMap<String, usize>,
    /// Connections by role and listening port of the server they ended at.
    pub reached: HashMap<String, usize>,
}

/// Makes all the connections.
pub fn run(load: &Load) -> LoadReport {
    let next = AtomicUsize::new(0);
    let report = Mutex::new(LoadReport::default());
    let held = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..load.threads {
            scope.spawn(|| {
                while let Some(destination) = load.destinations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(*destination, load.end);
                    let Ok(mut report) = report.lock() else { return };
                    let open = note(&mut report, load, *destination, result);
                    drop(report);
                    if let (true, Some(open), Ok(mut held)) = (load.end == End::Keep, open, held.lock()) {
                        held.push(open);
                    }
                }
            });
        }
    });
    report.into_inner().unwrap_or_default()
}

struct Connected {
    stream: TcpStream,
    local: SocketAddr,
    peer: SocketAddr,
    accepted: Result<Accepted, String>,
}

fn one(destination: SocketAddr, end: End) -> io::Result<Connected> {
    let stream = TcpStream::connect(destination)?;
    if end != End::Close {
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    stream.set_read_timeout(Some(long_enough(Duration::from_secs(10))))?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let accepted = greeting(&mut BufReader::new(stream.try_clone()?));
    Ok(Connected { stream, local, peer, accepted })
}

fn note(
    report: &mut LoadReport,
    load: &Load,
    destination: SocketAddr,
    result: io::Result<Connected>,
) -> Option<TcpStream> {
    let done = match result {
        Ok(done) => done,
        Err(error) => {
            *report.failed.entry(errno_name(&error)).or_default() += 1;
            return None;
        }
    };
    let accepted = match done.accepted {
        Ok(accepted) => accepted,
        Err(instead) => {
            *report.failed.entry(format!("no report: {instead}")).or_default() += 1;
            return None;
        }
    };
    *report.reached.entry(format!("{}:{}", accepted.role, accepted.listener.port())).or_default() += 1;
    let original = if destination.is_ipv4() { &accepted.original_dst } else { &accepted.original_dst6 };
    if original.address() == Some(destination)
        && done.peer == destination
        && accepted.accept_peer == accepted.peer
        && accepted.peer.address().is_some_and(|peer| {
            peer.ip() == done.local.ip() && (peer.port() == done.local.port() || !load.same_port)
        })
    {
        report.right += 1;
    } else {
        report.wrong += 1;
        if report.examples.len() < MAX_EXAMPLES {
            report
                .examples
                .push(format!("{destination}: client {} -> {}, server {accepted:?}", done.local, done.peer));
        }
    }
    Some(done.stream)
}
