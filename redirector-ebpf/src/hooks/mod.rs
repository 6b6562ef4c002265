//! What each hook does; the entry points are in `main.rs`.

pub mod connect;
pub mod getsockopt;
pub mod outbound;
pub mod setsockopt;
pub mod sk_lookup;
pub mod sock_names;
pub mod sockops;
pub mod tc_guest;
pub mod udp_dns;

use crate::ctx::set_errno;
use crate::maps;

/// The system call goes on.
const ALLOW: i32 = 1;
/// The system call fails, with EPERM unless [`set_errno`] said better.
const REFUSE: i32 = 0;

const EPERM: u16 = 1;
const ENETUNREACH: u16 = 101;
const ENOBUFS: u16 = 105;

#[inline(always)]
fn refuse(errno: u16) -> i32 {
    if maps::has_set_retval() {
        set_errno(errno);
    }
    REFUSE
}
