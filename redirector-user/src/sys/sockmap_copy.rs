//! Copying a socket from one slot of a sockmap to another.
//!
//! User space can neither take a socket out of a sockmap nor name one that it has no descriptor of; a program can. This
//! one is loaded for a single copy and run once, by BPF_PROG_TEST_RUN.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::bpf::{bpf, owned};

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_TEST_RUN: i32 = 10;
/// May look up and update a sockmap since 5.10 (`may_update_sockmap`), and runs on request everywhere.
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_NOEXIST: i32 = 1;
const PSEUDO_MAP_FD: u8 = 1;
/// Helpers (`enum bpf_func_id`).
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const SK_RELEASE: i32 = 86;
/// What the program returns for an empty slot: no errno.
const EMPTY: u32 = 1;
/// A packet for it, which it does not read.
const PACKET: [u8; 64] = [0; 64];

/// Registers.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R6: u8 = 6;
const R7: u8 = 7;
const FRAME: u8 = 10;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

const fn insn(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Insn {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    Insn { code, registers, offset, value }
}

const fn copy(to: u8, from: u8) -> Insn {
    insn(0xbf, to, from, 0, 0)
}

const fn set(to: u8, value: i32) -> Insn {
    insn(0xb7, to, 0, 0, value)
}

const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

/// The map in R1 and a pointer to a key on the stack in R2.
const fn map_and_key(map: i32, key: u32, offset: i16) -> [Insn; 5] {
    [
        insn(0x62, FRAME, 0, offset, key.cast_signed()),
        copy(R2, FRAME),
        insn(0x07, R2, 0, 0, offset as i32),
        insn(0x18, R1, PSEUDO_MAP_FD, 0, map),
        insn(0, 0, 0, 0, 0),
    ]
}

/// Puts the socket of the slot `from` into the slot `to`, too, if that is empty; false if `from` is.
///
/// # Errors
///
/// The kernel's; EEXIST if `to` is not empty.
pub fn copy_socket(map: BorrowedFd<'_>, from: u32, to: u32) -> io::Result<bool> {
    match run(&load(map.as_raw_fd(), from, to)?)? {
        0 => Ok(true),
        EMPTY => Ok(false),
        errno => Err(io::Error::from_raw_os_error(errno.cast_signed().wrapping_neg())),
    }
}

fn load(map: i32, from: u32, to: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u32; 4],
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
    }
    let program: Vec<Insn> = [
        &map_and_key(map, from, -4)[..],
        &[call(MAP_LOOKUP_ELEM), insn(0x55, R0, 0, 2, 0), set(R0, EMPTY.cast_signed()), EXIT, copy(R6, R0)],
        &map_and_key(map, to, -8),
        &[copy(R3, R6), set(R4, BPF_NOEXIST), call(MAP_UPDATE_ELEM), copy(R7, R0)],
        // What was looked up is held until it is let go of.
        &[copy(R1, R6), call(SK_RELEASE), copy(R0, R7), EXIT],
    ]
    .concat();
    let mut attr = Attr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log: [0; 4],
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"rd_copy_socket\0\0",
    };
    bpf(BPF_PROG_LOAD, &mut attr).map(owned)
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
