//! Virtual destinations. An original destination gets a loopback address of its own, and connections to it go there:
//! the local address of the accepted socket, and the peer's address of the client, tell it. Nothing is stored for a
//! connection.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::BPF_NOEXIST;
use redirector_common::Addr;
use redirector_common::abi::{Destination, OriginalDst, Sequence, VirtualRange, may_be_virtual};
use redirector_common::rule::Counter;

use crate::active_policy::ActivePolicy;
use crate::instance::Instance;
use crate::maps::{CLAIMS, DESTINATIONS, ORIGINAL_DST, SEQUENCE, count, whole};
use crate::verifier::opaque;

/// The sequence may come to addresses that have a meaning: an application has connected there by itself, or another CPU
/// has been quicker.
const ATTEMPTS: u32 = 4;

/// The address of an original destination. None if it has none and cannot get one: the quota is used up.
#[inline(always)]
pub fn give(active: &ActivePolicy, wanted: &Destination) -> Option<Addr> {
    let addr = opaque(match find(active.instance, wanted) {
        Some(addr) => addr,
        None => give_new(active, wanted),
    });
    if addr == NONE { None } else { Some(Addr::v4(addr)) }
}

const NONE: u32 = 0;

#[inline(always)]
fn find(instance: Instance, wanted: &Destination) -> Option<u32> {
    // SAFETY: values are freed after an RCU grace period, and not written in place.
    DESTINATIONS.get(instance, &whole(wanted)).map(|addr| unsafe { *addr.as_ptr() })
}

#[inline(always)]
fn give_new(active: &ActivePolicy, wanted: &Destination) -> u32 {
    let instance = active.instance;
    let (Some(sequence), Some(range)) = (sequence(instance), range(instance)) else { return NONE };
    let Some(known) = DESTINATIONS.of(instance) else { return NONE };
    // SAFETY: an element of an array map.
    let (next, given) = unsafe { (&raw mut (*sequence).destination, &raw const (*sequence).given) };
    // SAFETY: its fields; other CPUs write them.
    let read = |field: *const u64| unsafe { core::ptr::read_volatile(field) };
    if read(given) >= u64::from(active.policy.destinations) {
        return NONE;
    }
    let meaning = wanted.meaning();
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let addr = range.address(read(next) as u32);
        add_one(next);
        if mean(instance, &addr, &meaning) {
            count(instance, Counter::DestinationsGiven);
            // Another CPU may give it an address, too: both mean the same.
            let addr = addr.v4_be();
            let _ = known.insert(&whole(wanted), &addr, 0);
            return addr;
        }
    }
    NONE
}

/// Gives an address its only meaning. False if it has one, is getting one, or there is no memory.
#[inline(always)]
fn mean(instance: Instance, addr: &Addr, meaning: &OriginalDst) -> bool {
    let (Some(sequence), Some(meanings)) = (sequence(instance), ORIGINAL_DST.of(instance)) else {
        return false;
    };
    let claim = u64::from(instance.generation) << 32 | u64::from(addr.v4_be());
    if CLAIMS.insert(claim, 1, BPF_NOEXIST.into()).is_err() {
        return false;
    }
    // Whoever had the claim before has written the meaning before it gave the claim back.
    let key = whole(&addr.v4_be());
    let given = meanings.get(&key).is_none() && meanings.insert(&key, meaning, 0).is_ok();
    // Between 5.11 and 6.0 it may say EBUSY where it is preempted (`htab_lock_bucket`).
    let _ = CLAIMS.remove(claim).or_else(|_| CLAIMS.remove(claim));
    if given {
        // SAFETY: an element of an array map.
        add_one(unsafe { &raw mut (*sequence).given });
    }
    given
}

/// An application connects to an address of the range by itself: if it has no meaning yet, it keeps its own.
#[inline(always)]
pub fn keep(instance: Instance, addr: &Addr) {
    // Not constant zeroes: LLVM would call memset.
    let (none, rule) = opaque((0_u16, 0_u32));
    let itself =
        OriginalDst { addr: *addr, port: none, verdict: none, rule, proxy_port: none, source_bound: none };
    mean(instance, addr, &itself);
}

/// What an address stands for, whatever the port.
#[inline(always)]
pub fn meaning(instance: Instance, addr: &Addr) -> Option<&'static OriginalDst> {
    if !may_be_virtual(addr) {
        return None;
    }
    // SAFETY: values are written once, by insert, and never removed.
    ORIGINAL_DST.get(instance, &whole(&addr.v4_be())).map(|original| unsafe { &*original.as_ptr() })
}

/// What an address and a port stand for.
#[inline(always)]
pub fn original(instance: Instance, addr: &Addr, port: u16) -> Option<&'static OriginalDst> {
    meaning(instance, addr).filter(|original| original.proxy_port == port && port != 0)
}

/// Whether an instance may give this address to a destination or a connection.
#[inline(always)]
pub fn is_given(instance: Instance, addr: &Addr) -> bool {
    may_be_virtual(addr)
        && instance.meta().is_some_and(|meta| {
            // SAFETY: an element of an array map; both are written before the instance is activated.
            let (destinations, connections) = unsafe { ((*meta).destinations, (*meta).connections) };
            destinations.holds(addr) || connections.holds(addr)
        })
}

/// Whether an instance may give this address to a destination.
#[inline(always)]
pub fn is_for_destinations(instance: Instance, addr: &Addr) -> bool {
    range(instance).is_some_and(|range| range.holds(addr))
}

#[inline(always)]
fn range(instance: Instance) -> Option<VirtualRange> {
    let meta = instance.meta()?;
    // SAFETY: as in `is_given`.
    let range = unsafe { (*meta).destinations };
    if range.is_none() { None } else { Some(range) }
}

/// The next address for a single connection; None where the instance has none.
#[inline(always)]
pub fn next_for_connection(instance: Instance) -> Option<Addr> {
    let meta = instance.meta()?;
    // SAFETY: as in `is_given`.
    let range = unsafe { (*meta).connections };
    let sequence = sequence(instance)?;
    // SAFETY: an element of an array map.
    let next = unsafe { &raw mut (*sequence).connection };
    // SAFETY: the same. Two CPUs may read the same number; the kernel tells their connections by the ports.
    let number = unsafe { core::ptr::read_volatile(next) };
    add_one(next);
    if range.is_none() { None } else { Some(range.address(number as u32)) }
}

#[inline(always)]
fn sequence(instance: Instance) -> Option<*mut Sequence> {
    SEQUENCE.get(instance, &0).map(core::ptr::NonNull::as_ptr)
}

/// BPF_XADD, which every kernel has (BPF_FETCH is of 5.12).
#[inline(always)]
fn add_one(value: *mut u64) {
    // SAFETY: a field of an array map's element, aligned to 8 bytes.
    unsafe { atomic_xadd::<_, _, { AtomicOrdering::Relaxed }>(value, 1_u64) };
}
