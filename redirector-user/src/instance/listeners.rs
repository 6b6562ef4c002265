//! Registering the proxy's listeners that were there before the attach.

use super::state::Instance;
use crate::config::Policy;
use crate::error::{Context, Result};
use crate::sys::{bpf, sockopt};
use crate::target::{Target, listeners};
use redirector_common::Addr;
use redirector_common::abi::{LISTENER_SLOTS, LISTENERS_OF_POLICY, SockState, listener_slot, sock_kind};
use redirector_common::decide::Verdict;
use std::os::fd::{AsFd, BorrowedFd};

/// Which traffic a port of the proxy takes.
fn roles(policy: &Policy) -> [(u16, Verdict); 3] {
    [
        (policy.outbound_port, Verdict::Outbound),
        (policy.inbound_port, Verdict::Inbound),
        (policy.dns_port, Verdict::Dns),
    ]
}

/// Registers every listener of the policy's ports that is not registered in its slot yet;
/// returns what could not be.
pub fn register(instance: &Instance, target: &Target, policy: &Policy, slot: u32) -> Result<Vec<String>> {
    let roles = roles(policy);
    let found = listeners::find(&target.netns, &target.cgroup, &roles.map(|(port, _)| port))?;
    let map = instance.listeners()?;
    let mut sockets = instance.sockets()?;
    let mut notes = Vec::new();
    for listener in found {
        let Some((port, verdict)) = roles.iter().find(|(port, _)| *port == listener.port) else { continue };
        let state = SockState {
            kind: sock_kind::LISTENER,
            bound_by_us: 0,
            verdict: *verdict as u16,
            orig: Addr::UNSPECIFIED,
            proxy: Addr::UNSPECIFIED,
            orig_port: 0,
            proxy_port: *port,
            rule: 0,
        };
        sockets
            .insert(&listener.socket, state, 0)
            .context(|| format!("attach state to the listener on port {port} of process {}", listener.pid))?;
        let first = listener_slot(slot, *verdict as u32, listener.v6);
        match put(map.as_fd(), first, listener.socket.as_fd()) {
            Ok(true) => {}
            Ok(false) => notes.push(format!(
                "the listener on port {port} of process {} could not be registered: it is an MPTCP listener, or there \
                 are more than {LISTENER_SLOTS}; connections from the network will be refused if there is no other",
                listener.pid
            )),
            Err(e) => return Err(e).context(|| {
                format!("register the listener on port {port} of process {} in LISTENERS", listener.pid)
            }),
        }
    }
    Ok(notes)
}

/// Puts a socket into the first free slot, unless it is in one; false if it cannot be in any.
fn put(map: BorrowedFd<'_>, first: u32, socket: BorrowedFd<'_>) -> std::io::Result<bool> {
    let cookie = sockopt::cookie(socket)?;
    let mut free = None;
    for slot in first..first + LISTENER_SLOTS {
        match bpf::sockmap_cookie(map, slot)? {
            Some(other) if other == cookie => return Ok(true),
            Some(_) => {}
            None => free = free.or(Some(slot)),
        }
    }
    let Some(slot) = free else { return Ok(false) };
    match bpf::sockmap_set(map, slot, socket) {
        // No TCP socket (MPTCP), or one that listens no more.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Empties the registry of a policy slot.
pub fn clear(instance: &Instance, slot: u32) -> Result<()> {
    let map = instance.listeners()?;
    let first = slot * LISTENERS_OF_POLICY;
    for slot in first..first + LISTENERS_OF_POLICY {
        bpf::sockmap_clear(map.as_fd(), slot).context(|| "clear LISTENERS".into())?;
    }
    Ok(())
}

/// How many listeners are registered in a policy slot for a verdict, IPv4 and IPv6 ones.
pub fn count(instance: &Instance, slot: u32, verdict: Verdict) -> Result<[u32; 2]> {
    let map = instance.listeners()?;
    let mut counts = [0; 2];
    for (count, v6) in counts.iter_mut().zip([false, true]) {
        let first = listener_slot(slot, verdict as u32, v6);
        for slot in first..first + LISTENER_SLOTS {
            if bpf::sockmap_cookie(map.as_fd(), slot).context(|| "read LISTENERS".into())?.is_some() {
                *count += 1;
            }
        }
    }
    Ok(counts)
}
