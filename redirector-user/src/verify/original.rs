//! What the init container `istio-validation` does, in this process and without privileges: it knows of no instance
//! and would pass under iptables, too (`tools/istio-iptables/pkg/validation`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use redirector_common::Addr;

use super::sockets;
use crate::base::error::{Context, Error, Result};

/// Exit code of the original when it is not content (`constants.ValidationErrorCode`); Istio's repair controller
/// looks for it.
pub const FAILED: u8 = 126;
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens on the proxy's ports, and connects until a listener learns the probe's port from SO_ORIGINAL_DST. IPv6 is
/// tried where `::6` is an address of the namespace.
///
/// # Errors
///
/// [`Error::validation`] when the time is over, or if nobody can listen.
pub fn validate(ports: [u16; 2], probe_port: u16, patience: Duration) -> Result<Vec<IpAddr>> {
    let [passthrough4, passthrough6] = [Addr::PASSTHROUGH_V4, Addr::PASSTHROUGH_V6].map(IpAddr::from);
    let v4 = (Ipv4Addr::LOCALHOST.into(), passthrough4);
    let v6 = sockets::listen(SocketAddr::new(passthrough6, 0))
        .is_ok()
        .then_some((Ipv6Addr::LOCALHOST.into(), passthrough6));
    let end = Instant::now() + patience;
    let families = [v4].into_iter().chain(v6);
    families
        .map(|(local, to)| family(local, SocketAddr::new(to, probe_port), ports, end).map(|()| to))
        .collect()
}

fn family(local: IpAddr, to: SocketAddr, ports: [u16; 2], end: Instant) -> Result<()> {
    let mut listeners = Vec::new();
    for address in ports.map(|port| SocketAddr::new(local, port)) {
        listeners.push(sockets::listen(address).context(|| format!("listen on {address}"))?);
    }
    let mut last = "nothing arrived".to_owned();
    while Instant::now() < end {
        let next = end.min(Instant::now() + PAUSE);
        let connection = sockets::connect(Some(local), to, next.saturating_duration_since(Instant::now()));
        let (_open, connected) = connection.context(|| format!("make a socket for {to}"))?;
        if let Some(error) = connected.error {
            last = format!("connect: {error}");
        }
        let content = sockets::accept_until(&listeners, next, |accepted| {
            let original = accepted.original.map_or("none".into(), |original| original.to_string());
            last = format!("{} arrived at {} with original destination {original}", to, accepted.listener);
            accepted.original.is_some_and(|original| original.port() == to.port()).then_some(())
        })
        .context(|| "accept".into())?;
        if content.is_some() {
            return Ok(());
        }
    }
    Err(Error::validation(format!(
        "validation timed out: a connection from {local} to {to} is not redirected to a listener on port {} or {}; \
         the last attempt: {last}",
        ports[0], ports[1]
    )))
}
