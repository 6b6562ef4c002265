//! Registering the proxy's listeners that were there before the attach.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::{MapData, SkStorage};
use redirector_common::Addr;
use redirector_common::abi::{LISTENER_SLOTS, LISTENERS_OF_POLICY, ListenerRole, Slot, SockKind, SockState};

use super::maps::Instance;
use crate::base::error::{Context, Result};
use crate::netlink::sock_diag::Socket;
use crate::pod::Target;
use crate::pod::cgroup::Cgroup;
use crate::pod::listeners::{self, Found, Listener};
use crate::policy::Policy;
use crate::sys::netns::NetNs;
use crate::sys::sockmap_copy::copy_socket;
use crate::sys::{bpf, sockopt};

/// The ports of the proxy, with the role of their listeners.
pub fn roles(policy: &Policy) -> [(u16, ListenerRole); 3] {
    ListenerRole::ALL.map(|role| match role {
        ListenerRole::Outbound => (policy.outbound_port, role),
        ListenerRole::Inbound => (policy.inbound_port, role),
        ListenerRole::Dns => (policy.dns_port, role),
    })
}

/// The listeners on the policy's ports.
pub fn listening(target: &Target, policy: &Policy) -> Result<Vec<Socket>> {
    listeners::listening(&target.netns, &roles(policy).map(|(port, _)| port))
}

/// Registers each of these listeners of the policy's ports that is not registered in its slot yet;
/// returns what could not be. The registry of a `new` instance is not read: nothing can be in it.
pub fn register(
    instance: &Instance,
    target: &Target,
    policy: &Policy,
    slot: Slot,
    mut listening: Vec<Socket>,
    new: bool,
) -> Result<Vec<String>> {
    let roles = roles(policy);
    let generation = instance.meta()?.generation;
    let mut registry =
        Registry { map: instance.listeners()?, sockets: instance.sockets()?, generation, slot };
    // What is registered is not searched for, unless it has to be made transparent.
    if !new && !needs_transparent(policy) {
        let registered = registry.cookies(&roles, &listening)?;
        listening.retain(|socket| socket.cookie.is_none_or(|cookie| !registered.contains(&cookie)));
    }
    let found = listeners::take_over(listening, &target.cgroup)?;
    let mut notes = missing(&found, target, policy);
    for listener in &found.listeners {
        let role = roles.into_iter().find(|(port, _)| *port == listener.port);
        if let Some((_, role)) = role
            && !registry.add(listener, role, policy)?
        {
            notes.push(format!(
                "{listener} could not be registered: it is an MPTCP listener, or there are more than {LISTENER_SLOTS}; \
                 connections from the network will be refused if there is no other"
            ));
        }
    }
    Ok(notes)
}

/// What the search has not found. What the application sends finds its listener by the address; what comes from the
/// network, by the registry.
fn missing(found: &Found, target: &Target, policy: &Policy) -> Vec<String> {
    let mut notes = Vec::new();
    let cgroup = target.cgroup.path.display();
    if found.incomplete {
        notes.push(format!(
            "the processes of the cgroup {cgroup} have more open files than are searched for the proxy's listeners ({} in \
             one process, {} in all, {} seconds): one that is among the others does not get what comes from the network",
            listeners::MAX_DESCRIPTORS_OF_ONE,
            listeners::MAX_DESCRIPTORS,
            listeners::SEARCH_TIMEOUT.as_secs()
        ));
    } else if found.elsewhere.contains(&policy.inbound_port) {
        notes.push(format!(
            "port {} has a listener that is of no process in the cgroup {cgroup}: it does not get what comes from the network",
            policy.inbound_port,
        ));
    }
    notes.extend(found.made_outside.iter().map(|port| {
        format!(
            "the listener on port {port} was made outside the cgroup {cgroup} (by socket activation, or before its process \
             was moved): what it accepts is not told its original destination (SO_ORIGINAL_DST); start the proxy in the cgroup"
        )
    }));
    if needs_transparent(policy) && !found.listeners.iter().any(|l| l.port == policy.outbound_port) {
        notes.push(format!(
            "-k: no listener of the proxy on port {} yet; what enters a virtual interface over IPv4 is dropped until \
             `redirector refresh` has found one and made it transparent",
            policy.outbound_port
        ));
    }
    notes
}

/// The registry of a policy slot.
struct Registry {
    map: OwnedFd,
    sockets: SkStorage<MapData, SockState>,
    /// Of the instance.
    generation: u32,
    slot: Slot,
}

impl Registry {
    /// Cookies of these listeners that are in it. Only elements where one can be are looked at, until all are found.
    fn cookies(&self, roles: &[(u16, ListenerRole)], listening: &[Socket]) -> Result<HashSet<u64>> {
        let mut registered = HashSet::new();
        for ((port, role), v6) in roles.iter().flat_map(|role| [(role, false), (role, true)]) {
            let of_port = |socket: &&Socket| socket.local.port() == *port && socket.v6 == v6;
            let mut left: HashSet<u64> =
                listening.iter().filter(of_port).filter_map(|socket| socket.cookie).collect();
            let first = role.first_element(self.slot, v6);
            for element in first..first + LISTENER_SLOTS {
                if left.is_empty() {
                    break;
                }
                let cookie = bpf::sockmap_cookie(self.map.as_fd(), element);
                if let Some(cookie) = cookie.context(|| "read LISTENERS".into())?
                    && left.remove(&cookie)
                {
                    registered.insert(cookie);
                }
            }
        }
        Ok(registered)
    }

    /// Adds a listener; false if it cannot be in any place.
    fn add(&mut self, listener: &Listener, role: ListenerRole, policy: &Policy) -> Result<bool> {
        let transparent = role == ListenerRole::Outbound && needs_transparent(policy);
        let make = transparent && !sockopt::is_transparent(listener.socket.as_fd()).unwrap_or(false);
        // As the programs do (`listeners::register`): what is accepted inherits it.
        let from_network = listener.port == policy.inbound_port || needs_transparent(policy);
        if from_network || self.sockets.get(&listener.socket, 0).is_ok() {
            self.note(listener, role, make)?;
        }
        if make {
            // Noted in its state first.
            sockopt::set_transparent(listener.socket.as_fd(), true)
                .context(|| format!("set IP_TRANSPARENT on {listener}"))?;
        }
        let first = role.first_element(self.slot, listener.v6);
        put(self.map.as_fd(), first, listener.socket.as_fd())
            .context(|| format!("register {listener} in LISTENERS"))
    }

    fn note(&mut self, listener: &Listener, role: ListenerRole, make: bool) -> Result<()> {
        let made = make || is_made_transparent(&self.sockets, self.generation, listener);
        let state = SockState {
            kind: SockKind::LISTENER,
            bound_by_us: u8::from(made),
            pending: 0,
            verdict: role as u16,
            orig: Addr::UNSPECIFIED,
            proxy: Addr::UNSPECIFIED,
            orig_port: 0,
            proxy_port: listener.port,
            rule: 0,
            instance: self.generation,
        };
        let stored = self.sockets.insert(&listener.socket, state, 0);
        stored.context(|| format!("attach state to {listener}"))
    }
}

/// The kernel answers no SYN from an address that is not its own (`inet_csk_route_req`), unless the
/// listener is transparent. Over IPv6 it does (`inet6_csk_route_req`).
fn needs_transparent(policy: &Policy) -> bool {
    !policy.virtual_interfaces.is_empty()
}

fn is_made_transparent(
    sockets: &SkStorage<MapData, SockState>,
    generation: u32,
    listener: &Listener,
) -> bool {
    let ours = |s: SockState| s.instance == generation && s.kind == SockKind::LISTENER && s.bound_by_us != 0;
    sockets.get(&listener.socket, 0).is_ok_and(ours)
}

/// Takes IP_TRANSPARENT from the listeners on `ports` to which [`register`] gave it.
pub fn clear_transparent(instance: &Instance, netns: &NetNs, cgroup: &Cgroup, ports: &[u16]) -> Result<()> {
    let (mut sockets, generation) = (instance.sockets()?, instance.meta()?.generation);
    for listener in listeners::find(netns, cgroup, ports)?.listeners {
        if !is_made_transparent(&sockets, generation, &listener) {
            continue;
        }
        let what = || format!("clear IP_TRANSPARENT of {listener}");
        sockopt::set_transparent(listener.socket.as_fd(), false).context(what)?;
        let state = sockets.get(&listener.socket, 0).context(what)?;
        sockets.insert(&listener.socket, SockState { bound_by_us: 0, ..state }, 0).context(what)?;
    }
    Ok(())
}

/// What is wrong with the outbound listeners of a policy with virtual interfaces.
pub fn problem_of_transparency(netns: &NetNs, cgroup: &Cgroup, policy: &Policy) -> Option<String> {
    if !needs_transparent(policy) {
        return None;
    }
    let found = match listeners::find(netns, cgroup, &[policy.outbound_port]) {
        Ok(found) => found.listeners,
        Err(e) => return Some(format!("whether they are transparent (-k) is not known: {e}")),
    };
    let opaque = |l: &&Listener| !sockopt::is_transparent(l.socket.as_fd()).unwrap_or(false);
    let listener = found.iter().find(opaque)?;
    Some(format!(
        "{listener} is not transparent: what enters a virtual interface over IPv4 is dropped; run `redirector refresh`"
    ))
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
    match bpf::sockmap_fill(map, slot, socket) {
        // No TCP socket (MPTCP), or one that listens no more.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        // Another listener has registered itself there meanwhile. There are no more slots than turns.
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => put(map, first, socket),
        other => other.map(|()| true),
    }
}

/// Registers in a slot what is registered in the other one, under the same ports. A listener need not be found among the
/// descriptors again: an application in the pod may have more of them than are searched.
pub fn carry_over(
    instance: &Instance,
    policy: &Policy,
    old: &Policy,
    new: Slot,
    listening: &[Socket],
) -> Result<()> {
    let map = instance.listeners()?;
    let same = roles(policy).into_iter().zip(roles(old)).filter(|(new, old)| new == old);
    for ((port, role), _) in same {
        let is_there = |v6: &bool| listening.iter().any(|it| it.local.port() == port && it.v6 == *v6);
        for first in [false, true].into_iter().filter(is_there).map(|v6| role.first_element(new.other(), v6))
        {
            let to = new.index() * LISTENERS_OF_POLICY;
            let from = new.other().index() * LISTENERS_OF_POLICY;
            for element in first..first + LISTENER_SLOTS {
                if bpf::sockmap_cookie(map.as_fd(), element).context(|| "read LISTENERS".into())?.is_none() {
                    continue;
                }
                match copy_socket(map.as_fd(), element, element - from + to) {
                    // Before 5.10 no program may: they are searched for.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EACCES)) => return Ok(()),
                    other => drop(other.context(|| "copy a listener in LISTENERS".into())?),
                }
            }
        }
    }
    Ok(())
}

/// The elements of LISTENERS that are a policy slot's.
fn elements(slot: Slot) -> std::ops::Range<u32> {
    let first = slot.index() * LISTENERS_OF_POLICY;
    first..first + LISTENERS_OF_POLICY
}

/// Empties the registry of a policy slot.
pub fn clear(instance: &Instance, slot: Slot) -> Result<()> {
    let map = instance.listeners()?;
    for element in elements(slot) {
        bpf::sockmap_clear(map.as_fd(), element).context(|| "clear LISTENERS".into())?;
    }
    Ok(())
}

/// How many listeners are registered in a policy slot for a role, IPv4 and IPv6 ones.
pub fn count(instance: &Instance, slot: Slot, role: ListenerRole) -> Result<[u32; 2]> {
    let role = role.registered(&instance.policy(slot)?);
    let map = instance.listeners()?;
    let mut counts = [0; 2];
    for (count, v6) in counts.iter_mut().zip([false, true]) {
        let first = role.first_element(slot, v6);
        for element in first..first + LISTENER_SLOTS {
            if bpf::sockmap_cookie(map.as_fd(), element).context(|| "read LISTENERS".into())?.is_some() {
                *count += 1;
            }
        }
    }
    Ok(counts)
}
