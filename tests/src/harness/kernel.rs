//! Features of the running kernel on which the tests depend.

use std::path::Path;

/// Whether the kernel's version is at least this one.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    version().is_some_and(|version| version >= (major, minor))
}

fn version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// The errno of a refused connect() that should be `errno`: before 5.18 (`bpf_set_retval`) a program can only say
/// EPERM, and have the kernel itself say ENETUNREACH.
pub fn refusal(errno: &str) -> &str {
    if is_at_least(5, 18) || errno == "ENETUNREACH" { errno } else { "EPERM" }
}

/// Since when sk_lookup tells the interface a connection arrives on, without which there is neither `-c` nor `-k`.
pub const TELLS_INTERFACES: (u32, u32) = (5, 17);
/// Since when a socket leads to its cgroup by a pointer, without which there is no `--proxy-cgroup`.
pub const TELLS_CGROUPS: (u32, u32) = (5, 15);

/// Whether it does, as far as the version tells.
pub fn tells_interfaces() -> bool {
    is_at_least(TELLS_INTERFACES.0, TELLS_INTERFACES.1)
}

/// Whether the kernel speaks MPTCP. Debian's 5.10 does not; one from 5.15 on must, or the tests are red.
pub fn has_mptcp() -> bool {
    is_at_least(5, 15) || Path::new("/proc/sys/net/mptcp").exists()
}

/// Whether the kernel speaks IPv6 (`ipv6.disable=1` and it does not).
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
