//! Original destinations, for proxies written in Rust and for tools.
//!
//! A proxy that runs in the captured cgroup asks its accepted socket with [`of_socket`], as it
//! would under iptables. [`ExposedMaps`] serves everybody else; its layout is in docs/abi.md.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use aya::maps::{LpmTrie, MapData, MapError};
use redirector_common::Addr;
use redirector_common::abi::{Flow, FlowKey, OriginalDst, may_be_virtual};
use redirector_common::rule::Verdict;

use crate::base::error::{Context, Result};
use crate::instance::directory::Directory;
use crate::instance::maps::{Instance, whole};
use crate::sys::sockopt;

/// Original destination of an accepted TCP socket: SO_ORIGINAL_DST at SOL_IP, then at SOL_IPV6.
///
/// A connection that was not redirected has its own local address, as under iptables with conntrack.
///
/// # Errors
///
/// `ENOENT` if the socket is not connected; `EOPNOTSUPP` for an MPTCP connection.
pub fn of_socket(socket: &impl AsFd) -> io::Result<SocketAddr> {
    match sockopt::original_dst4(socket.as_fd()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT)) => {
            sockopt::original_dst6(socket.as_fd()).map_err(|e6| {
                // A socket of family AF_INET has no such option; the first answer is the honest one.
                if e6.raw_os_error() == Some(libc::EOPNOTSUPP) { e } else { e6 }
            })
        }
        other => other,
    }
}

/// The exposed maps of an instance, open for reading.
pub struct ExposedMaps {
    by_address: LpmTrie<MapData, u32, OriginalDst>,
    by_connection: LpmTrie<MapData, FlowKey, Flow>,
}

impl ExposedMaps {
    /// Opens the maps of an instance below a bpffs, normally `/sys/fs/bpf`.
    ///
    /// # Errors
    ///
    /// If there is no such instance ([`crate::base::error::Kind::NothingMatched`]).
    pub fn open(bpffs: &std::path::Path, instance: &str) -> Result<Self> {
        let instance = Instance::open(&Directory::at(bpffs), instance)?;
        Ok(Self { by_address: instance.original_dst()?, by_connection: instance.flows()? })
    }

    /// Original destination of a connection. `client`: as the proxy's accept() shows it;
    /// `proxy`: where the connection was really sent, which a proxy *in* the cgroup does not see
    /// (getsockname shows it 127.0.0.1; use [`of_socket`]).
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn get(&self, client: SocketAddr, proxy: SocketAddr) -> Result<Option<SocketAddr>> {
        let addr = Addr::from(proxy.ip());
        let by_address = || found(self.by_address.get(&whole(addr.v4_be()), 0), "ORIGINAL_DST");
        let found = if may_be_virtual(&addr) { by_address()? } else { None };
        if let Some(found) = found.filter(|found| found.proxy_port == proxy.port()) {
            return Ok(Some(SocketAddr::new(IpAddr::from(found.addr), found.port)));
        }
        let key = FlowKey {
            client: client.ip().into(),
            proxy: addr,
            client_port: client.port(),
            proxy_port: proxy.port(),
        };
        let found = found_flow(self.by_connection.get(&whole(key), 0))?;
        Ok(found.map(|found| SocketAddr::new(IpAddr::from(found.addr), found.port)))
    }
}

fn found<T>(entry: std::result::Result<T, MapError>, map: &str) -> Result<Option<T>> {
    match entry {
        Ok(found) => Ok(Some(found)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(e) => Err(e).context(|| format!("read {map}")),
    }
}

/// A connection that passes between addresses of the pod was not redirected.
fn found_flow(entry: std::result::Result<Flow, MapError>) -> Result<Option<Flow>> {
    Ok(found(entry, "FLOWS")?.filter(|flow| flow.verdict != Verdict::Pass as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_has_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let errno = of_socket(&listener).unwrap_err().raw_os_error();
        // ENOPROTOOPT: a kernel without conntrack, and no instance that answers instead.
        assert!(matches!(errno, Some(libc::ENOENT | libc::ENOPROTOOPT)), "{errno:?}");
    }
}
