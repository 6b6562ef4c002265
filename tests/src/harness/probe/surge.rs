//! Any number of connections, from several threads of one process that is clients and proxy: each accepted socket is asked
//! where its client wanted to go, however soon the client has ended it.
//!
//! Most clients write the connection's number, by which the proxy knows what must be told. Those that end at once without a
//! word are counted for each destination, at both ends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use serde::{Deserialize, Serialize};

use super::sys;
use crate::harness::kernel;
use crate::harness::pair::matrix::SERVED;
use crate::harness::probe::observation::errno_name;
use crate::harness::retry;
use crate::harness::server::OUTBOUND;

/// Mistakes that are told in full; the rest is counted.
const MAX_EXAMPLES: usize = 5;

/// Which connections to make.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Surge {
    /// Number of the first connection, and how many.
    pub first: u64,
    pub count: u64,
    /// How many destinations there are; they take turns.
    pub destinations: u32,
    pub threads: u32,
}

/// What came of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurgeReport {
    pub right: u64,
    pub wrong: u64,
    /// Without any destination, or not accepted at all.
    pub missing: u64,
    /// Why clients could not connect.
    pub refused: BTreeMap<String, u64>,
    /// What was told wrongly, or instead of a destination.
    pub examples: Vec<String>,
}

impl SurgeReport {
    pub fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.missing += other.missing;
        for (why, count) in other.refused {
            *self.refused.entry(why).or_default() += count;
        }
        self.examples.extend(other.examples);
        self.examples.truncate(MAX_EXAMPLES);
    }
}

/// How a client ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Reset,
    Close,
    /// It is reset after the accepted socket was asked.
    Late,
    /// It is reset, and has sent nothing.
    Wordless,
}

impl Surge {
    /// One of ten is of IPv6.
    fn destination(&self, number: u64) -> SocketAddr {
        let index = (number % u64::from(self.destinations)) as u32;
        let [_, port, high, low] = index.to_be_bytes();
        let ip: IpAddr = if index % 10 == 9 && kernel::has_ipv6() {
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, u16::from_be_bytes([high, low])).into()
        } else {
            Ipv4Addr::new(10, 96, high, low).into()
        };
        SocketAddr::new(ip, SERVED + u16::from(port))
    }

    /// The inverse.
    fn index(&self, destination: SocketAddr) -> Option<u32> {
        let (high, low) = match destination.ip() {
            IpAddr::V4(ip) => (ip.octets()[2], ip.octets()[3]),
            IpAddr::V6(ip) => (ip.octets()[14], ip.octets()[15]),
        };
        let port = destination.port().checked_sub(SERVED)?.try_into().ok()?;
        let index = u32::from_be_bytes([0, port, high, low]);
        (index < self.destinations && self.destination(index.into()) == destination).then_some(index)
    }

    /// Another one for each destination in each round.
    fn ending(&self, number: u64) -> Ending {
        let all = [Ending::Reset, Ending::Close, Ending::Late, Ending::Wordless];
        all[((number + number / u64::from(self.destinations)) % 4) as usize]
    }
}

/// What the threads share.
struct Shared<'a> {
    surge: &'a Surge,
    next: AtomicU64,
    proxy: TcpListener,
    /// By destination: one for each connection without a word that was made, and one less for each that was told.
    owed: Vec<AtomicI32>,
}

/// Makes them.
pub fn run(surge: &Surge) -> anyhow::Result<SurgeReport> {
    let any: IpAddr =
        if kernel::has_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let proxy = TcpListener::bind(SocketAddr::new(any, OUTBOUND)).context("the proxy's port")?;
    set_socket_timeout(&proxy, Timeout::Recv, Some(retry::patience()))?;
    let owed = (0..surge.destinations).map(|_| AtomicI32::new(0)).collect();
    let shared = Shared { surge, next: AtomicU64::new(surge.first), proxy, owed };
    let mut report = SurgeReport::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..surge.threads).map(|_| scope.spawn(|| shared.work())).collect();
        threads.into_iter().try_for_each(|thread| {
            report.add(thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            anyhow::Ok(())
        })
    })?;
    for (index, owed) in (0_u64..).zip(shared.owed) {
        // More were told than made: as many others were taken for it.
        let excess = u64::from(owed.into_inner().min(0).unsigned_abs());
        report.right -= excess;
        report.wrong += excess;
        if excess > 0 && report.examples.len() < MAX_EXAMPLES {
            report.examples.push(format!("{} told {excess} times too often", surge.destination(index)));
        }
    }
    Ok(report)
}

impl Shared<'_> {
    fn work(&self) -> SurgeReport {
        let mut report = SurgeReport::default();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.surge.first + self.surge.count {
                return report;
            }
            let client = match self.client(number) {
                Ok(client) => client,
                Err(error) => {
                    *report.refused.entry(errno_name(&error)).or_default() += 1;
                    continue;
                }
            };
            let one = self.accept();
            report.add(one.unwrap_or_else(|error| missing(format!("accept: {}", errno_name(&error)))));
            drop(client);
        }
    }

    /// Makes a connection, and ends it unless that is for later.
    fn client(&self, number: u64) -> std::io::Result<Option<TcpStream>> {
        let (to, ending) = (self.surge.destination(number), self.surge.ending(number));
        let mut stream = TcpStream::connect(to)?;
        if ending != Ending::Close {
            set_socket_linger(&stream, Some(Duration::ZERO))?;
        }
        if ending == Ending::Wordless {
            self.owed[(number % u64::from(self.surge.destinations)) as usize].fetch_add(1, Ordering::Relaxed);
        } else {
            stream.write_all(&number.to_be_bytes())?;
        }
        Ok(Some(stream).filter(|_| ending == Ending::Late))
    }

    /// Asks an accepted socket, not always that of the thread's own client.
    fn accept(&self) -> std::io::Result<SurgeReport> {
        let (mut server, peer) = self.proxy.accept()?;
        let level = if peer.ip().to_canonical().is_ipv4() { libc::SOL_IP } else { libc::SOL_IPV6 };
        let told = sys::original_dst(&server, level);
        let mut word = [0; 8];
        let number = server.read_exact(&mut word).ok().map(|()| u64::from_be_bytes(word));
        let Some(to) = told.address() else {
            return Ok(missing(format!("connection {number:?}: told {told}")));
        };
        let is_right = match (number, self.surge.index(to)) {
            (Some(number), _) => to == self.surge.destination(number),
            (None, Some(index)) => {
                self.owed[index as usize].fetch_sub(1, Ordering::Relaxed);
                true
            }
            (None, None) => false,
        };
        if is_right {
            return Ok(SurgeReport { right: 1, ..SurgeReport::default() });
        }
        let examples = vec![format!("connection {number:?}: told {told}")];
        Ok(SurgeReport { wrong: 1, examples, ..SurgeReport::default() })
    }
}

fn missing(how: String) -> SurgeReport {
    SurgeReport { missing: 1, examples: vec![how], ..SurgeReport::default() }
}
