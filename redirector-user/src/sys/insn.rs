//! Programs of a few instructions, that are written here and not in redirector-ebpf: they hold a number that only the one
//! who loads them knows.

use std::io;
use std::os::fd::OwnedFd;

use super::bpf::{bpf, counted, owned};

const BPF_PROG_LOAD: i32 = 5;
const PSEUDO_MAP_FD: u8 = 1;

/// Registers.
pub(super) const R0: u8 = 0;
pub(super) const R1: u8 = 1;
pub(super) const R2: u8 = 2;
pub(super) const R3: u8 = 3;
pub(super) const R4: u8 = 4;
pub(super) const R6: u8 = 6;
pub(super) const R7: u8 = 7;
pub(super) const FRAME: u8 = 10;

/// Helpers (`enum bpf_func_id`).
pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
pub(super) const MAP_UPDATE_ELEM: i32 = 2;
pub(super) const TAIL_CALL: i32 = 12;
pub(super) const SK_RELEASE: i32 = 86;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Insn {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

pub(super) const fn insn(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Insn {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    Insn { code, registers, offset, value }
}

pub(super) const fn copy(to: u8, from: u8) -> Insn {
    insn(0xbf, to, from, 0, 0)
}

pub(super) const fn set(to: u8, value: i32) -> Insn {
    insn(0xb7, to, 0, 0, value)
}

/// Stores four bytes at an address.
pub(super) const fn store(at: u8, offset: i16, value: u32) -> Insn {
    insn(0x62, at, 0, offset, value.cast_signed())
}

/// Loads four bytes from an address.
pub(super) const fn load_word(to: u8, at: u8, offset: i16) -> Insn {
    insn(0x61, to, at, offset, 0)
}

/// Stores four bytes of a register at an address.
pub(super) const fn store_register(at: u8, offset: i16, from: u8) -> Insn {
    insn(0x63, at, from, offset, 0)
}

/// Skips so many instructions unless a register is zero.
pub(super) const fn skip_unless_zero(register: u8, instructions: i16) -> Insn {
    insn(0x55, register, 0, instructions, 0)
}

pub(super) const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

pub(super) const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

/// A map in a register.
pub(super) const fn map(to: u8, map: i32) -> [Insn; 2] {
    [insn(0x18, to, PSEUDO_MAP_FD, 0, map), insn(0, 0, 0, 0, 0)]
}

/// The map in R1 and a pointer to a key on the stack in R2.
pub(super) fn map_and_key(fd: i32, key: u32, offset: i16) -> Vec<Insn> {
    let key = [store(FRAME, offset, key), copy(R2, FRAME), insn(0x07, R2, 0, 0, offset.into())];
    [&key[..], &map(R1, fd)].concat()
}

/// What kind of program it is.
pub(super) struct Kind {
    /// `enum bpf_prog_type`.
    pub program: u32,
    /// `enum bpf_attach_type`.
    pub attach: u32,
    /// At most 15 bytes.
    pub name: &'static str,
}

pub(super) fn load(kind: &Kind, program: &[Insn]) -> io::Result<OwnedFd> {
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
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let mut prog_name = [0; 16];
    prog_name[..kind.name.len()].copy_from_slice(kind.name.as_bytes());
    let mut attr = Attr {
        prog_type: kind.program,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log: [0; 4],
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: kind.attach,
    };
    counted(|| bpf(BPF_PROG_LOAD, &mut attr).map(owned))
}
