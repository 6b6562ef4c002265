//! System calls that no safe crate offers in the raw form the tests need. All `unsafe` of the package is here.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::harness::probe::observation::{AddressOrErrno, Answer, OK, Question, errno_name};

/// `SO_ORIGINAL_DST`, and equal to it `IP6T_SO_ORIGINAL_DST`.
pub const SO_ORIGINAL_DST: i32 = 80;

/// Fills buffers before they are given to the kernel, to show what was not written.
const UNWRITTEN: u8 = 0xaa;

/// `getsockopt` with exactly the given buffer. Returns the length the kernel left, also on failure.
fn getsockopt(fd: impl AsFd, level: i32, name: i32, buffer: &mut [u8]) -> (io::Result<()>, u32) {
    let mut length = libc::socklen_t::try_from(buffer.len()).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: `buffer` is valid for writes of `length` bytes, and both pointers live through the call.
    let result = unsafe {
        libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    (if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }, length)
}

/// Asks a question, showing everything that can be seen of the answer.
pub fn ask(fd: impl AsFd, question: Question) -> Answer {
    let mut buffer = vec![UNWRITTEN; question.length as usize];
    let (result, length) = getsockopt(fd, question.level, question.name, &mut buffer);
    Answer {
        question,
        outcome: result.map_or_else(|error| errno_name(&error), |()| OK.to_owned()),
        length,
        bytes: hex(buffer.get(..question.shown.unwrap_or(u32::MAX) as usize).unwrap_or(&buffer)),
    }
}

/// Hexadecimal digits, with the zeroes or fill bytes at the end counted: `02001f90 +12*aa`.
fn hex(bytes: &[u8]) -> String {
    let Some(last) = bytes.last().filter(|last| [UNWRITTEN, 0].contains(last)) else { return digits(bytes) };
    let start = bytes.iter().rposition(|byte| byte != last).map_or(0, |position| position + 1);
    format!("{} +{}*{last:02x}", digits(&bytes[..start]), bytes.len() - start)
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `SO_ORIGINAL_DST` at a level (`SOL_IP` or `SOL_IPV6`), with the size of buffer that Envoy uses.
pub fn original_dst(fd: impl AsFd, level: i32) -> AddressOrErrno {
    let mut buffer = [0_u8; 128];
    let (result, length) = getsockopt(fd, level, SO_ORIGINAL_DST, &mut buffer);
    match result {
        Ok(()) => decode(&buffer).map_or_else(
            || AddressOrErrno::Error(format!("{length} undecodable bytes")),
            AddressOrErrno::Address,
        ),
        Err(error) => AddressOrErrno::Error(errno_name(&error)),
    }
}

/// The port in `SO_ORIGINAL_DST` at a level, asked for as Go's `GetsockoptIPv6MTUInfo` does: with a buffer of 32 bytes.
pub fn original_port(fd: impl AsFd, level: i32) -> io::Result<u16> {
    let mut info = [0_u8; 32];
    getsockopt(fd, level, SO_ORIGINAL_DST, &mut info).0?;
    Ok(u16::from_be_bytes([info[2], info[3]]))
}

/// Reads a `sockaddr_in` or `sockaddr_in6`.
fn decode(bytes: &[u8; 128]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes[4..8].try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(octets), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(bytes[4..8].try_into().ok()?);
            let octets: [u8; 16] = bytes[8..24].try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope).into())
        }
        _ => None,
    }
}

/// Switches an integer option on.
pub fn switch_on(fd: impl AsFd, level: i32, name: i32) -> io::Result<()> {
    set(fd, level, name, 1)
}

/// Uses up the memory that the kernel allows a TCP socket's options (net.core.optmem_max), by keys for peers that it never has
/// (`tcp_md5_do_add`).
pub fn fill_option_memory(fd: impl AsFd) -> io::Result<()> {
    const MOST: u32 = 100_000;
    /// `struct tcp_md5sig`: an address (`struct sockaddr_storage`), the length of the key, the key.
    #[repr(C)]
    struct Key {
        peer: [u8; 128],
        flags: u16,
        length: u16,
        interface: i32,
        key: [u8; 80],
    }
    let raw = fd.as_fd().as_raw_fd();
    let family = rustix::net::sockopt::socket_domain(&fd)?.as_raw();
    let is_v6 = i32::from(family) == libc::AF_INET6;
    for number in 0..MOST {
        let mut peer = [0; 128];
        let address = (0x0a80_0000 + number).to_be_bytes();
        peer[..2].copy_from_slice(&family.to_ne_bytes());
        if is_v6 {
            // Behind the flow label, as ::ffff:a.b.c.d.
            peer[18..20].fill(0xff);
            peer[20..24].copy_from_slice(&address);
        } else {
            peer[4..8].copy_from_slice(&address);
        }
        let key = Key { peer, flags: 0, length: 1, interface: 0, key: [1; 80] };
        let size = size_of::<Key>() as libc::socklen_t;
        // SAFETY: the key lives through the call, and the length is its own.
        let result = unsafe {
            libc::setsockopt(raw, libc::IPPROTO_TCP, libc::TCP_MD5SIG, (&raw const key).cast(), size)
        };
        match io::Error::last_os_error() {
            _ if result == 0 => {}
            error if error.raw_os_error() == Some(libc::ENOMEM) => return Ok(()),
            error => return Err(error),
        }
    }
    Err(io::Error::other("it cannot be used up"))
}

/// `SO_MARK`.
pub fn set_mark(fd: impl AsFd, mark: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

/// `SO_BINDTODEVICE`, by the interface's index, which takes no privileges.
pub fn bind_to_device(fd: impl AsFd, device: &str) -> io::Result<()> {
    let index = rustix::net::netdevice::name_to_index(&fd, device)?;
    set(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index.cast_signed())
}

fn set(fd: impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

/// Sets an option to a value as the kernel is given it.
pub fn set_bytes(fd: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value lives through the call, and the length is its own.
    let result =
        unsafe { libc::setsockopt(fd.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `connect()` through io_uring, waiting for its completion.
pub fn io_uring_connect(fd: impl AsFd, to: SocketAddr) -> io::Result<()> {
    let (storage, length) = encode(to);
    let mut ring = io_uring::IoUring::new(2)?;
    let fd = io_uring::types::Fd(fd.as_fd().as_raw_fd());
    let entry = io_uring::opcode::Connect::new(fd, (&raw const storage).cast(), length).build();
    // SAFETY: `storage` and the descriptor outlive the completion, which is awaited below.
    unsafe { ring.submission().push(&entry) }.map_err(|error| io::Error::other(error.to_string()))?;
    ring.submit_and_wait(1)?;
    let completion = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?;
    if completion.result() < 0 { Err(io::Error::from_raw_os_error(-completion.result())) } else { Ok(()) }
}

/// Writes an address the way the kernel reads it.
fn encode(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid `sockaddr_storage`.
    let mut storage: libc::sockaddr_storage = unsafe { MaybeUninit::zeroed().assume_init() };
    let length = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

/// Attaches a program that lets every IPv4 connect() through to a cgroup, as somebody else's load balancer would. It stays
/// as long as the cgroup.
///
/// # Errors
/// What `bpf` says.
pub fn attach_foreign_connect4(cgroup: impl AsFd, name: &str) -> io::Result<()> {
    const BPF_F_ALLOW_MULTI: u32 = 2;
    attach_foreign_connect4_with(cgroup, name, BPF_F_ALLOW_MULTI)
}

/// The same with other flags, of which some suffer no program beside it.
pub fn attach_foreign_connect4_with(cgroup: impl AsFd, name: &str, flags: u32) -> io::Result<()> {
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    attach_foreign(cgroup, name, (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT), flags, 1)
}

/// Attaches a program of some type, at some hook of a cgroup, that returns a number.
///
/// # Errors
/// What `bpf` says.
pub fn attach_foreign(
    cgroup: impl AsFd,
    name: &str,
    (kind, at): (u32, u32),
    flags: u32,
    returns: u32,
) -> io::Result<()> {
    const BPF_PROG_ATTACH: i32 = 8;
    let program = load_foreign(name, (kind, at), returns)?;
    let mut attach = [cgroup.as_fd().as_raw_fd() as u32, program.as_raw_fd() as u32, at, flags];
    // SAFETY: the attributes live through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw mut attach, size_of_val(&attach)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches such a program to an interface of this thread's network namespace, until the link is closed.
///
/// # Errors
/// What `bpf` says.
pub fn link_foreign(interface: u32, name: &str, (kind, at): (u32, u32), returns: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: i32 = 28;
    let program = load_foreign(name, (kind, at), returns)?;
    let mut link = [program.as_raw_fd() as u32, interface, at, 0];
    // SAFETY: the attributes live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut link, size_of_val(&link)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins such a program in a bpffs, for a tool to attach it.
///
/// # Errors
/// What `bpf` says.
pub fn pin_foreign(path: &CStr, name: &str, kind: u32, returns: u32) -> io::Result<()> {
    const BPF_OBJ_PIN: i32 = 6;
    let program = load_foreign(name, (kind, 0), returns)?;
    let mut pin = [path.as_ptr() as u64, program.as_raw_fd() as u64];
    // SAFETY: the attributes and the path live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, &raw mut pin, size_of_val(&pin)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load_foreign(name: &str, (kind, at): (u32, u32), returns: u32) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: i32 = 5;
    /// The head of `union bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        log: [u64; 2],
        version_and_flags: [u32; 2],
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    // r0 = returns; exit
    let code: [u64; 2] = [u64::from(returns) << 32 | 0xb7, 0x95];
    let mut text = [0; 16];
    for (to, from) in text.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut load = Load {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
        name: text,
        interface: 0,
        attach_type: at,
    };
    // SAFETY: the attributes and what they point to live through the call.
    let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut load, size_of::<Load>()) };
    if program < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just above.
    Ok(unsafe { OwnedFd::from_raw_fd(program as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_tails_are_counted() {
        assert_eq!(hex(&[1, 2, UNWRITTEN, UNWRITTEN]), "0102 +2*aa");
        assert_eq!(hex(&[0, 0, 0]), " +3*00");
        assert_eq!(hex(&[1, 2]), "0102");
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn socket_addresses_survive_their_raw_form() -> Result<(), std::net::AddrParseError> {
        for text in ["10.96.0.10:8080", "[fd00:96::10]:8080", "[fe80::1%7]:80"] {
            let address: SocketAddr = text.parse()?;
            let (storage, _) = encode(address);
            // SAFETY: a `sockaddr_storage` is 128 initialised bytes.
            let bytes: [u8; 128] = unsafe { std::mem::transmute(storage) };
            assert_eq!(decode(&bytes), Some(address));
        }
        Ok(())
    }
}
