//! The sk_lookup program of a network namespace. All instances share what it does; but the kernel tells sk_lookup nothing of
//! its namespace, so each has an entry of its own, which says whose it is and goes on in the shared program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::insn::{
    EXIT, Insn, Kind, MAP_LOOKUP_ELEM, R0, R1, R2, R3, R6, TAIL_CALL, call, copy, load, load_word, map,
    map_and_key, set, skip_unless_zero, store, store_register,
};

const KIND: Kind = Kind { program: 30, attach: 36, name: "rd_sk_lookup" };
/// SK_DROP: without the shared program nothing may go past the proxy.
const DROP: i32 = 0;

/// Loads the entry of an instance. `looked_up` is the array of one number for each CPU that tells the instance, `shared`
/// the PROG_ARRAY with the shared program.
///
/// # Errors
///
/// The kernel's.
pub fn load_entry(instance: u32, looked_up: BorrowedFd<'_>, shared: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program: Vec<Insn> = [
        &[copy(R6, R1)][..],
        &map_and_key(looked_up.as_raw_fd(), 0, -4),
        &[call(MAP_LOOKUP_ELEM), skip_unless_zero(R0, 2), set(R0, DROP), EXIT],
        // `LookedUp`: what was there is `before`.
        &[load_word(R1, R0, 0), store_register(R0, 4, R1), store(R0, 0, instance), copy(R1, R6)],
        &map(R2, shared.as_raw_fd()),
        &[set(R3, 0), call(TAIL_CALL), set(R0, DROP), EXIT],
    ]
    .concat();
    load(&KIND, &program)
}
