//! Copying a socket from one slot of a sockmap to another.
//!
//! User space can neither take a socket out of a sockmap nor name one that it has no descriptor of; a program can. This
//! one is loaded for a single copy and run once, by BPF_PROG_TEST_RUN.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::bpf::bpf;
use super::insn::{
    EXIT, Insn, Kind, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, R0, R1, R3, R4, R6, R7, SK_RELEASE, call, copy, load,
    map_and_key, set, skip_unless_zero,
};

const BPF_PROG_TEST_RUN: i32 = 10;
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
    match run(&load(&KIND, &program(map.as_raw_fd(), from, to))?)? {
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

/// What the program returns.
fn run(program: &OwnedFd) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut attr = Attr {
        prog_fd: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: PACKET.len() as u32,
        data_size_out: 0,
        data_in: PACKET.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}
