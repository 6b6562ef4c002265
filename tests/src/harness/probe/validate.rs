//! What Istio's `istio-validation` init container does (`tools/istio-iptables/pkg/validation`), step for step.
//!
//! It listens where the proxy would, connects to a port of its own choice through the rule for the proxy's calls to
//! its own pod, and is content when a listener learns that port from `SO_ORIGINAL_DST`, asked for as Go does it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::Context;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, acceptfrom_with, ipproto, socket_with};
use serde::{Deserialize, Serialize};

use super::sys;

/// Where the validator listens: the proxy's ports.
const PORTS: [u16; 2] = [15001, 15006];
/// The port it looks for.
const PROBE_PORT: u16 = 15002;
/// `os.Exit(constants.ValidationErrorCode)`.
pub const FAILED: i32 = 126;
/// Between two attempts of the client.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A run of the validator.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Validation {
    /// By IPv6: `[::1]` to `[::6]`.
    pub v6: bool,
    /// Go 1.24 and later listen with MPTCP.
    pub mptcp: bool,
    /// Its patience: `--probe-timeout`.
    pub milliseconds: u64,
}

/// Runs it to its end, which is the process's.
pub fn run(validation: Validation) -> anyhow::Result<()> {
    let (content, result) = channel();
    for port in PORTS {
        let listener = listen(validation, port).with_context(|| format!("listening on port {port}"))?;
        let content = content.clone();
        std::thread::spawn(move || serve(&listener, &content));
    }
    std::thread::spawn(move || {
        loop {
            // As in the original nobody looks at the result.
            let _ = connect(validation);
            std::thread::sleep(RETRY_PAUSE);
        }
    });
    match result.recv_timeout(Duration::from_millis(validation.milliseconds)) {
        Ok(listener) => {
            println!("{listener}");
            Ok(())
        }
        Err(_) => std::process::exit(FAILED),
    }
}

fn address(v6: bool, last: u8, port: u16) -> SocketAddr {
    match v6 {
        false => (Ipv4Addr::new(127, 0, 0, last), port).into(),
        true => (Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, last.into()), port).into(),
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::INET6 } else { AddressFamily::INET }
}

/// `net.ListenConfig` with `reuseAddr`.
fn listen(validation: Validation, port: u16) -> anyhow::Result<OwnedFd> {
    let protocol = if validation.mptcp { ipproto::MPTCP } else { ipproto::TCP };
    let fd = socket_with(family(validation.v6), SocketType::STREAM, SocketFlags::CLOEXEC, Some(protocol))?;
    if validation.v6 {
        set_ipv6_v6only(&fd, true)?;
    }
    set_socket_reuseaddr(&fd, true)?;
    set_socket_reuseport(&fd, true)?;
    rustix::net::bind(&fd, &address(validation.v6, 1, port))?;
    rustix::net::listen(&fd, 4096)?;
    Ok(fd)
}

/// `restoreOriginalAddress`.
fn serve(listener: &OwnedFd, content: &Sender<String>) {
    loop {
        let Ok((fd, peer)) = acceptfrom_with(listener, SocketFlags::CLOEXEC) else { continue };
        let Some(Ok(peer)) = peer.map(SocketAddr::try_from) else { continue };
        let level = if peer.ip().to_canonical().is_ipv4() { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 };
        // `unix.GetsockoptIPv6MTUInfo`: 32 bytes, the port where both address families have it.
        match sys::original_port(&fd, level) {
            Ok(port) => {
                let _ = rustix::io::write(&fd, port.to_string().as_bytes());
                if port == PROBE_PORT {
                    let at = rustix::net::getsockname(listener).ok().map(SocketAddr::try_from);
                    let at = at.and_then(Result::ok).map_or(String::new(), |at| at.to_string());
                    let _ = content.send(at);
                    return;
                }
            }
            Err(error) => eprintln!("SO_ORIGINAL_DST from {peer}: {error}"),
        }
    }
}

/// `net.DialTCP` with a local address.
fn connect(validation: Validation) -> anyhow::Result<()> {
    let fd =
        socket_with(family(validation.v6), SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    rustix::net::bind(&fd, &address(validation.v6, 1, 0))?;
    rustix::net::connect(&fd, &address(validation.v6, 6, PROBE_PORT))?;
    Ok(())
}
