//! Tables of legacy iptables, as the kernel keeps them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::base::error::{Context, Result};

const NAME: usize = 32;
/// `struct ipt_getinfo`, and where its `size` is.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries` without its entries, and where its `size` is.
const ENTRIES: usize = 40;
const ENTRIES_SIZE: usize = 32;
/// IPT_SO_GET_INFO and IP6T_SO_GET_INFO, IPT_SO_GET_ENTRIES and IP6T_SO_GET_ENTRIES.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;

/// By NF_INET_PRE_ROUTING, _LOCAL_IN, _FORWARD, _LOCAL_OUT and _POST_ROUTING.
pub type Hooks = [Option<(usize, usize)>; 5];

/// A table of legacy iptables.
pub struct Table {
    /// Whether it is of IPv6.
    pub v6: bool,
    /// `nat`, `mangle` and so on.
    pub name: String,
    /// Where the first rule of each hook is among them, and the last, which is the policy.
    pub hooks: Hooks,
    /// Its rules, as the kernel keeps them.
    pub entries: Vec<u8>,
}

/// The tables of the calling thread's network namespace; a kernel without legacy iptables has none.
///
/// # Errors
///
/// If the kernel does not give one.
pub fn tables() -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for (v6, file) in
        [(false, "/proc/thread-self/net/ip_tables_names"), (true, "/proc/thread-self/net/ip6_tables_names")]
    {
        for name in std::fs::read_to_string(file).unwrap_or_default().lines() {
            let (hooks, entries) = entries(v6, name).context(|| {
                format!("read the legacy iptables table {name} ({})", if v6 { "IPv6" } else { "IPv4" })
            })?;
            tables.push(Table { v6, name: name.to_owned(), hooks, entries });
        }
    }
    Ok(tables)
}

/// `valid_hooks`, `hook_entry` and `underflow` of `struct ipt_getinfo`.
fn hooks(info: &[u8]) -> Hooks {
    let number = |at: usize| {
        let at = NAME + 4 * at;
        info.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four) as usize)
    };
    let valid = number(0).unwrap_or_default();
    std::array::from_fn(|hook| {
        if valid & 1 << hook == 0 { None } else { Some((number(1 + hook)?, number(6 + hook)?)) }
    })
}

/// The entries of a table. Asking for a table that is not there makes it.
fn entries(v6: bool, table: &str) -> io::Result<(Hooks, Vec<u8>)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    // Any socket will do (`nf_getsockopt`), and a raw one takes CAP_NET_RAW.
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let level = if v6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    loop {
        let mut info = request(table, INFO);
        get(&socket, level, GET_INFO, &mut info)?;
        let size = &info[INFO_SIZE..INFO_SIZE + 4];
        let len = u32::from_ne_bytes([size[0], size[1], size[2], size[3]]) as usize;
        let mut answer = request(table, ENTRIES + len);
        answer[ENTRIES_SIZE..ENTRIES_SIZE + 4].copy_from_slice(size);
        match get(&socket, level, GET_ENTRIES, &mut answer) {
            // The table has changed in between.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other.map(|()| (hooks(&info), answer.split_off(ENTRIES))),
        }
    }
}

fn request(table: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let name = &table.as_bytes()[..table.len().min(NAME - 1)];
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

fn get(socket: &impl AsFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: the pointers are to a buffer of `len` bytes, and to `len`.
    let ret = unsafe { libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
