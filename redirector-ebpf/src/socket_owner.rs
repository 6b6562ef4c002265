//! Who owns a socket, as netfilter's `owner`, `cgroup` and `mark` matches see it.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use redirector_common::abi::flag;
use redirector_common::routing::Owner;

use crate::active_policy::ActivePolicy;
use crate::ctx::Sock;
use crate::maps::constant;
use crate::verifier::opaque;

#[inline(always)]
pub fn of(sk: Sock, active: &ActivePolicy) -> Owner {
    let (uid, gid) = opaque(credentials(sk));
    let proxy = opaque(active.has(flag::PROXY_CGROUP) && is_in_cgroup(sk, active));
    Owner { uid, gid, proxy, mark: sk.mark() }
}

/// fsuid and fsgid of the credentials the socket's file was opened with (`owner_mt` in
/// net/netfilter/xt_owner.c), [`Owner::NOBODY`] for a socket without a file.
///
/// Neither the caller of connect() nor its current uid counts: a socket that changes hands,
/// or whose process changes its uid, keeps its owner.
#[inline(always)]
fn credentials(sk: Sock) -> (u32, u32) {
    const NONE: (u32, u32) = (Owner::NOBODY, Owner::NOBODY);
    let socket: u64 = read(address_of(sk).wrapping_add(constant!(sock_socket) as u64));
    if socket == 0 {
        return NONE;
    }
    let file: u64 = read(socket.wrapping_add(constant!(socket_file) as u64));
    if file == 0 {
        return NONE;
    }
    let cred: u64 = read(file.wrapping_add(constant!(file_cred) as u64));
    if cred == 0 {
        return NONE;
    }
    let uid = read(cred.wrapping_add(constant!(cred_fsuid) as u64));
    (uid, read(cred.wrapping_add(constant!(cred_fsgid) as u64)))
}

/// How far below the instance's cgroup the proxy's cgroup may be.
const DEPTH: u32 = 16;

/// Whether the socket was created in this cgroup or below, as netfilter's `cgroup` match with
/// `--path` sees it (`cgroup_mt_v2` in net/netfilter/xt_cgroup.c). The cgroup is below that of the instance.
#[inline(always)]
fn is_in_cgroup(sk: Sock, active: &ActivePolicy) -> bool {
    let proxy = active.policy.proxy_cgroup;
    // SAFETY: an element of an array map, written before the instance is activated.
    let Some(own) = active.instance.meta().map(|meta| unsafe { (*meta).cgroup_id }) else { return false };
    let mut cgroup: u64 = read(address_of(sk).wrapping_add(constant!(sock_cgroup) as u64));
    for _ in 0..DEPTH {
        if cgroup == 0 {
            return false;
        }
        let node: u64 = read(cgroup.wrapping_add(constant!(cgroup_node) as u64));
        let id: u64 = read(node.wrapping_add(constant!(node_id) as u64));
        if id == proxy {
            return true;
        }
        if id == own {
            return false;
        }
        cgroup = read(cgroup.wrapping_add(constant!(cgroup_parent) as u64));
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

/// Reads kernel memory; zero if the address is bad (the helper clears its buffer then).
#[inline(always)]
pub fn read<T: bytemuck::Zeroable>(address: u64) -> T {
    let mut value = T::zeroed();
    // SAFETY: the helper checks the source, the destination is a local of that size.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    value
}
