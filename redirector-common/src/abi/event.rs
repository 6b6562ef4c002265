//! What the programs tell `redirector trace`.

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// What happened.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct EventKind(u16);

impl EventKind {
    /// A socket connects.
    pub const CONNECT: Self = Self(0);
    /// A UDP socket sends to an address of its own.
    pub const SEND: Self = Self(1);
    /// A connection arrives: from the network, or over lo if nobody takes it.
    pub const ACCEPT: Self = Self(2);
    /// As [`Self::ACCEPT`], for a listener that is not registered: the kernel looks at the port by itself.
    pub const UNREGISTERED: Self = Self(3);
}

/// Entry of the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// Cookie of the socket, 0 where there is none.
    pub cookie: u64,
    /// The caller's cgroup; 0, as the following three, where a packet is the cause.
    pub cgroup: u64,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Name of its thread, ended by a zero.
    pub comm: [u8; 16],
    /// Whose connection it is.
    pub client: Addr,
    /// Where it was going.
    pub destination: Addr,
    /// Where it goes.
    pub redirected: Addr,
    /// Host byte order; 0 while the socket has none.
    pub client_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Host byte order.
    pub redirected_port: u16,
    /// What happened.
    pub kind: EventKind,
    /// [`crate::rule::Verdict`] as a number.
    pub verdict: u16,
    /// By which the system call fails, 0 if it does not.
    pub errno: u16,
    /// [`crate::rule::Counter`] of the rule that decided, [`NO_RULE`] if none did.
    pub rule: u32,
    /// [`crate::rule::Counter`] of the refusal, [`NO_RULE`] if nothing was refused.
    pub refused: u32,
    /// 6 or 17.
    pub protocol: u32,
}

/// No number of a counter.
pub const NO_RULE: u32 = u32::MAX;

const _: () = assert!(size_of::<Event>() == 120);
