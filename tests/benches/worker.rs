//! The program inside the pods: this one again, as a server in the proxy's place or as a client in the app's.
//!
//! The server attends to one connection at a time, as there is never more than one. The first byte of each is its
//! [`Mode`]; the answer to it tells the client whether SO_ORIGINAL_DST named the right destination, so that a pod which
//! does not redirect cannot be measured by mistake.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::net::sockopt::{
    ip_original_dst, ipv6_original_dst, set_ipv6_v6only, set_socket_linger, set_tcp_nodelay,
    socket_recv_buffer_size,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// First argument of a worker; the second one is its [`Role`].
pub const WORKER: &str = "worker";
/// The line by which a server tells that it listens.
pub const READY: &str = "ready";

/// Size of a small message and of a bulk write.
const REQUEST_BYTES: usize = 64;
const BULK_BYTES: usize = 64 * 1024;
/// Before the clock starts on a connection that lasts: windows have opened then.
const WARM_UP: Duration = Duration::from_millis(5);
/// Calls of getsockopt() between two looks at the clock.
const CALLS_PER_LOOK: u64 = 64;
const RIGHT: u8 = b'+';
const WRONG: u8 = b'-';

/// A worker, and where it is to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Role {
    pub cpu: usize,
    /// Listeners of a server; a client has none and obeys [`Job`]s on stdin.
    pub listeners: Vec<ExpectingListener>,
}

/// A listener of a server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ExpectingListener {
    pub at: SocketAddr,
    /// The address that SO_ORIGINAL_DST must give for its connections. `None`: an error.
    pub original: Option<SocketAddr>,
}

/// A measurement for a client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Job {
    pub mode: Mode,
    pub to: SocketAddr,
    pub slice: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Mode {
    /// New connections: connect, accept, SO_ORIGINAL_DST, a byte there and back, reset.
    Connections = b'c',
    /// The same, and both ends ask for all names: for the hooks, never for a rate.
    Names = b'n',
    /// Small messages there and back on one connection.
    Requests = b'r',
    /// Large writes on one connection.
    Bulk = b'b',
    /// getsockopt() of a socket that is not redirected; no server is asked.
    Options = b'o',
}

/// The result of a [`Job`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct JobDone {
    /// Connections, requests, bytes, or calls.
    pub amount: u64,
    /// The time it took.
    pub time: Duration,
    /// Median and 99th percentile of the time of one connect() or one request.
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
}

impl JobDone {
    fn new(amount: u64, time: Duration, mut each: Vec<Duration>) -> Self {
        each.sort_unstable();
        let rank = |percent: usize| each.get(each.len() * percent / 100).copied();
        Self { amount, time, p50: rank(50), p99: rank(99) }
    }
}

/// Whether this process is to be a worker.
pub fn asked() -> anyhow::Result<Option<Role>> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(WORKER) {
        return Ok(None);
    }
    let role = arguments.next().context("a worker without a role")?;
    Ok(Some(serde_json::from_str(&role).context("a role")?))
}

/// A worker's `main`.
pub fn run(role: &Role) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(role.cpu);
    sched_setaffinity(None, &cpus).context("pinning to a CPU")?;
    if role.listeners.is_empty() { obey() } else { serve(&role.listeners) }
}

fn serve(listeners: &[ExpectingListener]) -> anyhow::Result<()> {
    let sockets = listeners.iter().map(|listener| listen(listener.at)).collect::<io::Result<Vec<_>>>()?;
    println!("{READY}");
    std::thread::scope(|scope| {
        for (listener, socket) in listeners.iter().zip(&sockets) {
            scope.spawn(move || {
                let mut chunk = vec![0; BULK_BYTES];
                loop {
                    // An error concerns one connection, which its client then misses.
                    if let Ok((stream, _)) = socket.accept() {
                        let _ = attend(stream, listener.original, &mut chunk);
                    }
                }
            });
        }
    });
    Ok(())
}

/// As [`TcpListener::bind`], but for one family only.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if at.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket.into())
}

fn attend(mut stream: TcpStream, expected: Option<SocketAddr>, chunk: &mut [u8]) -> io::Result<()> {
    let original = match expected {
        Some(SocketAddr::V6(_)) => ipv6_original_dst(&stream).map(SocketAddr::V6),
        _ => ip_original_dst(&stream).map(SocketAddr::V4),
    };
    let right = if original.ok() == expected { RIGHT } else { WRONG };
    let mode = read_byte(&mut stream)?;
    if mode == Mode::Names as u8 {
        names(&stream)?;
    }
    if mode == Mode::Bulk as u8 {
        while stream.read(chunk)? > 0 {}
        return stream.write_all(&[right]);
    }
    stream.write_all(&[right])?;
    // Until the client leaves: with a reset, so that no port is kept in TIME_WAIT.
    if mode == Mode::Requests as u8 {
        set_tcp_nodelay(&stream, true)?;
    }
    loop {
        let message = &mut chunk[..REQUEST_BYTES];
        stream.read_exact(message)?;
        stream.write_all(message)?;
    }
}

fn obey() -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?).context("a job")?;
        let done = job.run().with_context(|| format!("{:?} with {}", job.mode, job.to))?;
        println!("{}", serde_json::to_string(&done)?);
    }
    Ok(())
}

impl Job {
    fn run(&self) -> anyhow::Result<JobDone> {
        match self.mode {
            Mode::Connections | Mode::Names => self.connections(),
            Mode::Requests => self.requests(),
            Mode::Bulk => self.bulk(),
            Mode::Options => self.options(),
        }
    }

    fn open(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.to)?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        (&stream).write_all(&[self.mode as u8])?;
        Ok(stream)
    }

    fn connections(&self) -> anyhow::Result<JobDone> {
        let start = Instant::now();
        let (mut amount, mut each) = (0, Vec::new());
        while start.elapsed() < self.slice {
            let begun = Instant::now();
            let mut stream = TcpStream::connect(self.to)?;
            each.push(begun.elapsed());
            set_socket_linger(&stream, Some(Duration::ZERO))?;
            stream.write_all(&[self.mode as u8])?;
            check(&mut stream)?;
            if self.mode == Mode::Names {
                names(&stream)?;
            }
            drop(stream);
            amount += 1;
        }
        Ok(JobDone::new(amount, start.elapsed(), each))
    }

    fn requests(&self) -> anyhow::Result<JobDone> {
        let mut stream = self.open()?;
        set_tcp_nodelay(&stream, true)?;
        check(&mut stream)?;
        let mut message = [b'x'; REQUEST_BYTES];
        let (mut start, mut warm, mut each) = (Instant::now(), false, Vec::new());
        let mut last = start;
        loop {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            let now = Instant::now();
            each.push(now - last);
            last = now;
            let time = now - start;
            if !warm && time >= WARM_UP {
                (start, warm) = (now, true);
                each.clear();
            } else if warm && time >= self.slice {
                return Ok(JobDone::new(each.len() as u64, time, each));
            }
        }
    }

    fn bulk(&self) -> anyhow::Result<JobDone> {
        let mut stream = self.open()?;
        let chunk = vec![b'x'; BULK_BYTES];
        let (mut start, mut amount, mut warm) = (Instant::now(), 0, false);
        loop {
            stream.write_all(&chunk)?;
            amount += BULK_BYTES as u64;
            let time = start.elapsed();
            if !warm && time >= WARM_UP {
                (start, amount, warm) = (Instant::now(), 0, true);
            } else if warm && time >= self.slice {
                break;
            }
        }
        // It counts when the other end has read it.
        stream.shutdown(Shutdown::Write)?;
        check(&mut stream)?;
        Ok(JobDone::new(amount, start.elapsed(), Vec::new()))
    }

    fn options(&self) -> anyhow::Result<JobDone> {
        let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let (start, mut amount) = (Instant::now(), 0);
        while start.elapsed() < self.slice {
            // As many as make the clock's share small.
            for _ in 0..CALLS_PER_LOOK {
                socket_recv_buffer_size(&socket)?;
            }
            amount += CALLS_PER_LOOK;
        }
        Ok(JobDone::new(amount, start.elapsed(), Vec::new()))
    }
}

/// Reads the answer to a mode.
fn check(stream: &mut TcpStream) -> anyhow::Result<()> {
    ensure!(
        read_byte(stream)? == RIGHT,
        "the server was told another original destination: the pod does not redirect"
    );
    Ok(())
}

fn read_byte(stream: &mut TcpStream) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn names(stream: &TcpStream) -> io::Result<()> {
    stream.peer_addr()?;
    stream.local_addr()?;
    Ok(())
}
