//! Copying a socket from one slot of a sockmap to another.
//!
//! User space can neither take a socket out of a sockmap nor name one that it has no descriptor of; a program can. This
//! one is loaded for a single copy and run once, by BPF_PROG_TEST_RUN.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::insn::{
    EXIT, Insn, Kind, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, R0, R1, R3, R4, R6, R7, SK_RELEASE, call, copy, load,
    map_and_key, set, skip_unless_zero,
};
use super::test_run;

/// SCHED_CLS may look up and update a sockmap since 5.10 (`may_update_sockmap`), and runs on request everywhere.
const KIND: Kind = Kind { program: 3, attach: 0, name: "rd_copy_socket" };
const BPF_NOEXIST: i32 = 1;
/// What the program returns for an empty slot: no errno.
const EMPTY: u32 = 1;
/// A packet for it, which it does not read.
const PACKET: [u8; 64] = [0; 64];

/// Puts the socket of the slot `from` into the slot `to`, too, if that is empty; false if `from` is.
///
/// # Errors
///
/// The kernel's; EEXIST if `to` is not empty.
pub fn copy_socket(map: BorrowedFd<'_>, from: u32, to: u32) -> io::Result<bool> {
    let program = load(&KIND, &program(map.as_raw_fd(), from, to))?;
    match test_run::packet(program.as_fd(), &PACKET)? {
        0 => Ok(true),
        EMPTY => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno.cast_signed().wrapping_neg())),
    }
}

fn program(map: i32, from: u32, to: u32) -> Vec<Insn> {
    [
        &map_and_key(map, from, -4)[..],
        &[call(MAP_LOOKUP_ELEM), skip_unless_zero(R0, 2), set(R0, EMPTY.cast_signed()), EXIT, copy(R6, R0)],
        &map_and_key(map, to, -8),
        &[copy(R3, R6), set(R4, BPF_NOEXIST), call(MAP_UPDATE_ELEM), copy(R7, R0)],
        // What was looked up is held until it is let go of.
        &[copy(R1, R6), call(SK_RELEASE), copy(R0, R7), EXIT],
    ]
    .concat()
}
