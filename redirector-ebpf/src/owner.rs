//! Who owns a socket, as netfilter's `owner` match sees it.

use crate::ctx::Sock;
use crate::maps::target;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use redirector_common::decide::NOBODY;

/// fsuid and fsgid of the credentials the socket's file was opened with (`owner_mt` in
/// net/netfilter/xt_owner.c), [`NOBODY`] for a socket without a file.
///
/// Neither the caller of connect() nor its current uid counts: a socket that changes hands,
/// or whose process changes its uid, keeps its owner.
#[inline(always)]
pub fn of(sk: Sock) -> (u32, u32) {
    let socket: u64 = read(address_of(sk).wrapping_add(target!(sock_socket) as u64));
    if socket == 0 {
        return (NOBODY, NOBODY);
    }
    let file: u64 = read(socket.wrapping_add(target!(socket_file) as u64));
    if file == 0 {
        return (NOBODY, NOBODY);
    }
    let cred: u64 = read(file.wrapping_add(target!(file_cred) as u64));
    if cred == 0 {
        return (NOBODY, NOBODY);
    }
    (read(cred.wrapping_add(target!(cred_fsuid) as u64)), read(cred.wrapping_add(target!(cred_fsgid) as u64)))
}

/// How far below the instance's cgroup one of the proxy's may be.
const DEPTH: u32 = 16;

/// Whether the socket was created in this cgroup or below, as netfilter's `cgroup` match with
/// `--path` sees it (`cgroup_mt_v2` in net/netfilter/xt_cgroup.c). The cgroup is below that of the instance.
#[inline(always)]
pub fn is_in_cgroup(sk: Sock, wanted: u64) -> bool {
    let mut cgroup: u64 = read(address_of(sk).wrapping_add(target!(sock_cgroup) as u64));
    for _ in 0..DEPTH {
        if cgroup == 0 {
            return false;
        }
        let node: u64 = read(cgroup.wrapping_add(target!(cgroup_node) as u64));
        let id: u64 = read(node.wrapping_add(target!(node_id) as u64));
        if id == wanted {
            return true;
        }
        if id == target!(cgroup_id) {
            return false;
        }
        cgroup = read(cgroup.wrapping_add(target!(cgroup_parent) as u64));
    }
    false
}

/// Where the kernel's `sock` is. The verifier forbids arithmetic on a socket pointer; read back from the
/// stack it is a number.
#[inline(always)]
pub fn address_of(sk: Sock) -> u64 {
    let pointer = sk.0;
    read((&raw const pointer) as u64)
}

pub trait Zero: Copy {
    const ZERO: Self;
}
impl Zero for u64 {
    const ZERO: Self = 0;
}
impl Zero for u32 {
    const ZERO: Self = 0;
}

/// Reads kernel memory; zero if the address is bad (the helper clears its buffer then).
#[inline(always)]
pub fn read<T: Zero>(address: u64) -> T {
    let mut value = T::ZERO;
    // SAFETY: the helper checks the source, the destination is a local of that size.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    value
}
