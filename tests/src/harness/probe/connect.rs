//! The client's side: makes one connection as described and tells everything that could be seen of it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{
    Timeout, set_socket_linger, set_socket_reuseaddr, set_socket_timeout, socket_error,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, socket_with};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use super::sys;
use crate::harness::probe::observation::{
    Accepted, AddressOrErrno, Earlier, OK, Observation, Question, errno_name, outcome,
};
use crate::harness::probe::scenario::{Family, How, Owner, Scenario};
use crate::harness::retry::long_enough;

/// A handshake on this machine takes microseconds, and no process takes part in it: after this long it is unanswered,
/// which is then what is observed. (Some destinations are never answered, so this is also what a test run waits for.)
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// A server's report needs the server to be scheduled, which on a busy machine may take a while.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The Fast Open scenarios send this with the first packet.
const EARLY_DATA: &[u8] = b"early data\n";

pub fn observe(scenario: &Scenario) -> Observation {
    let mut seen = Observation { scenario: scenario.name.clone(), ..Observation::default() };
    let created = acting_as(scenario.created_by, || create(scenario));
    seen.socket = Some(outcome(created.as_ref().map_err(clone_error)));
    if let Ok(fd) = created {
        run(scenario, fd, &mut seen);
    }
    seen
}

fn run(scenario: &Scenario, fd: OwnedFd, seen: &mut Observation) {
    if let Some(bind) = scenario.bind {
        let bound = rustix::net::bind(&fd, &as_written(scenario.family, bind));
        seen.bind = Some(outcome(bound));
        if seen.bind.as_deref() != Some(OK) {
            return;
        }
    }
    if let Some(option) = &scenario.option
        && let Err(error) = sys::set_bytes(&fd, option.level, option.name, &option.value)
    {
        seen.bind = Some(format!("option: {}", errno_name(&error)));
        return;
    }
    if scenario.full_memory
        && let Err(error) = sys::fill_option_memory(&fd)
    {
        seen.bind = Some(format!("its option memory: {error}"));
        return;
    }
    seen.local_before = Some(local_name(&fd));
    if let Some(way) = scenario.udp {
        let to = as_written(scenario.family, scenario.to);
        // The owner of a socket is who made it, so nobody else needs to act here.
        return super::udp::query(way, &fd, to, seen);
    }
    seen.before = scenario.ask_before.iter().map(|question| sys::ask(&fd, *question)).collect();
    for attempt in &scenario.earlier {
        let to = as_written(scenario.family, attempt.to);
        let connected = acting_as(scenario.connected_by, || Ok(rustix::net::connect(&fd, &to)?));
        let mut earlier = Earlier {
            connect: outcome(connected.as_ref().map_err(clone_error)),
            local: local_name(&fd),
            peer: peer_name(&fd),
            reached: None,
            disconnect: None,
            local_disconnected: None,
            peer_disconnected: None,
        };
        if connected.is_ok() {
            earlier.reached = fd.try_clone().ok().and_then(|copy| greeting(&mut reader(copy)).ok());
        }
        if attempt.disconnect {
            earlier.disconnect = Some(outcome(rustix::net::connect_unspec(&fd)));
            earlier.local_disconnected = Some(local_name(&fd));
            earlier.peer_disconnected = Some(peer_name(&fd));
        }
        seen.earlier.push(earlier);
    }
    let to = as_written(scenario.family, scenario.to);
    let connected = acting_as(scenario.connected_by, || connect(scenario.how, &fd, to));
    seen.connect = Some(outcome(connected.as_ref().map_err(clone_error)));
    if scenario.how == How::Nonblocking {
        seen.finished = Some(finish(&fd));
    }
    seen.local = Some(local_name(&fd));
    seen.peer = Some(peer_name(&fd));
    // While the handshake is unanswered conntrack's entry comes and goes with every repetition.
    if seen.connect.as_deref() != Some("EINPROGRESS") || seen.finished.as_deref() == Some(OK) {
        seen.original_dst = Some(sys::original_dst(&fd, libc::SOL_IP));
        seen.original_dst6 = Some(sys::original_dst(&fd, libc::SOL_IPV6));
    }
    if seen.failure().is_some() {
        return;
    }
    converse(scenario, fd, seen);
}

/// Creates the socket so that it cannot block for ever and leaves no `TIME_WAIT` behind that would make one
/// scenario depend on another.
fn create(scenario: &Scenario) -> io::Result<OwnedFd> {
    let family = match scenario.family {
        Family::V4 => AddressFamily::INET,
        Family::V6 | Family::Mapped => AddressFamily::INET6,
    };
    if scenario.udp.is_some() {
        return super::udp::socket(family, SocketFlags::CLOEXEC);
    }
    let protocol = if scenario.mptcp { ipproto::MPTCP } else { ipproto::TCP };
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(protocol))?;
    set_socket_timeout(&fd, Timeout::Send, Some(HANDSHAKE_TIMEOUT))?;
    set_socket_timeout(&fd, Timeout::Recv, Some(long_enough(REPORT_TIMEOUT)))?;
    set_socket_linger(&fd, Some(Duration::ZERO))?;
    if scenario.bind.is_some_and(|bind| bind.port() != 0) {
        set_socket_reuseaddr(&fd, true)?;
    }
    Ok(fd)
}

fn connect(how: How, fd: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    match how {
        How::Blocking => rustix::net::connect(fd, &to)?,
        How::Nonblocking => {
            rustix::io::ioctl_fionbio(fd, true)?;
            rustix::net::connect(fd, &to)?;
        }
        How::FastOpenSend => {
            let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);
            rustix::net::sendto(fd, EARLY_DATA, fast_open, &to)?;
        }
        How::FastOpenConnect => {
            sys::switch_on(fd, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT)?;
            rustix::net::connect(fd, &to)?;
            rustix::net::send(fd, EARLY_DATA, SendFlags::NOSIGNAL)?;
        }
        How::IoUring => sys::io_uring_connect(fd, to)?,
    }
    Ok(())
}

/// Waits for a non-blocking connection and makes the socket blocking again.
fn finish(fd: &OwnedFd) -> String {
    let limit = Timespec { tv_sec: HANDSHAKE_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&limit));
    let finished = match (ready, socket_error(fd)) {
        (Ok(0), _) => "still pending".to_owned(),
        (_, Ok(result)) => outcome(result),
        (_, Err(error)) => outcome::<(), _>(Err(error)),
    };
    let _ = rustix::io::ioctl_fionbio(fd, false);
    finished
}

/// Reads the server's report, and asks what is to be asked at both ends.
fn converse(scenario: &Scenario, fd: OwnedFd, seen: &mut Observation) {
    let Ok(mut writer) = fd.try_clone().map(TcpStream::from) else { return };
    let mut reader = reader(fd);
    match greeting(&mut reader) {
        Ok(accepted) => seen.reached = Some(accepted),
        Err(instead) => seen.greeting = Some(instead),
    }
    for question in &scenario.ask_server {
        let Ok(answer) = ask_server(&mut writer, &mut reader, question) else { break };
        seen.server.push(answer);
    }
    seen.client = scenario.ask_client.iter().map(|question| sys::ask(&writer, *question)).collect();
}

fn reader(fd: OwnedFd) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::from(fd))
}

/// The first line a server of ours sends is its report.
pub(super) fn greeting(reader: &mut BufReader<TcpStream>) -> Result<Accepted, String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(0) => Err("closed".to_owned()),
        Ok(_) => serde_json::from_str(&line).map_err(|_| line.trim_end().to_owned()),
        Err(error) => Err(crate::harness::probe::observation::errno_name(&error)),
    }
}

fn ask_server(
    writer: &mut TcpStream,
    reader: &mut BufReader<TcpStream>,
    question: &Question,
) -> anyhow::Result<crate::harness::probe::observation::Answer> {
    // In one piece: small writes one after the other wait for each other's acknowledgement.
    writer.write_all(format!("{}\n", serde_json::to_string(question)?).as_bytes())?;
    loop {
        let mut line = String::new();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "the server closed");
        // Any other line is an echo: early data comes back before the first answer.
        if line.starts_with('{') {
            return Ok(serde_json::from_str(&line)?);
        }
    }
}

/// The address as the application writes it on a socket of this family.
fn as_written(family: Family, address: SocketAddr) -> SocketAddr {
    match (family, address) {
        (Family::Mapped, SocketAddr::V4(v4)) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        _ => address,
    }
}

pub(super) fn local_name(fd: impl AsFd) -> AddressOrErrno {
    let name = rustix::net::getsockname(fd).map_err(io::Error::from);
    name.and_then(|any| SocketAddr::try_from(any).map_err(io::Error::from)).into()
}

pub(super) fn peer_name(fd: impl AsFd) -> AddressOrErrno {
    let name = rustix::net::getpeername(fd).map_err(io::Error::from);
    // rustix turns an empty address into `None`.
    name.and_then(|any| match any {
        Some(any) => SocketAddr::try_from(any).map_err(io::Error::from),
        None => Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)),
    })
    .into()
}

/// Runs `work` with other effective ids (which are also those of the files it opens), then becomes root again.
fn acting_as<T>(owner: Option<Owner>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(owner) = owner else { return work() };
    set_effective(Some(owner.gid), None)?;
    set_effective(None, Some(owner.uid))?;
    let result = work();
    set_effective(None, Some(0))?;
    set_effective(Some(0), None)?;
    result
}

/// Only the effective ids: the saved ones stay root's, so that one can return.
fn set_effective(gid: Option<u32>, uid: Option<u32>) -> io::Result<()> {
    if let Some(gid) = gid {
        set_thread_res_gid(None::<Gid>, Gid::from_raw(gid), None::<Gid>)?;
    }
    if let Some(uid) = uid {
        set_thread_res_uid(None::<Uid>, Uid::from_raw(uid), None::<Uid>)?;
    }
    Ok(())
}

fn clone_error(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}
