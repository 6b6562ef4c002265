//! Capabilities of this process.

use rustix::process::{Resource, getrlimit};

use crate::base::error::{Error, Result};
use crate::base::input;

/// What attach and detach need, and why; the same table is in SECURITY.md.
pub const NEEDED: [(&str, u32, &str); 5] = [
    ("CAP_NET_ADMIN", 12, "attach to a network namespace and to cgroup hooks, read its routes"),
    ("CAP_SYS_PTRACE", 19, "take over listeners that are older than the attach"),
    ("CAP_SYS_ADMIN", 21, "enter network namespaces, mount a bpffs, open pinned objects of others"),
    ("CAP_PERFMON", 38, "read the owner of a socket (bpf_probe_read_kernel)"),
    ("CAP_BPF", 39, "load programs and maps"),
];

/// What verify needs to make connections as the proxy's user and as an application's.
pub const NEEDED_TO_VERIFY: [(&str, u32, &str); 2] = [
    ("CAP_SETGID", 6, "connect as a member of the proxy's group and of an application's"),
    ("CAP_SETUID", 7, "connect as the proxy's user and as an application's"),
];

/// Before Linux 5.11 maps count against RLIMIT_MEMLOCK, which a container's runtime sets to some kilobytes: whoever may
/// not raise it cannot attach (kernel commit 97306be45fbe and those before it).
const OLD: (&str, u32) = ("CAP_SYS_RESOURCE (or an unlimited RLIMIT_MEMLOCK: this is Linux before 5.11)", 24);

fn read(file: &str) -> String {
    input::of_the_kernel(file).unwrap_or_default()
}

/// Names of the capabilities that are missing.
pub fn missing() -> Vec<&'static str> {
    let effective = effective(&read("/proc/self/status"));
    let lacks = |bit: u32| effective >> bit & 1 == 0;
    let needed = NEEDED.iter().filter(|(_, bit, _)| lacks(*bit)).map(|(name, ..)| *name);
    let limited = counts_maps(&read("/proc/sys/kernel/osrelease"))
        && getrlimit(Resource::Memlock).maximum.is_some()
        && lacks(OLD.1);
    needed.chain(limited.then_some(OLD.0)).collect()
}

/// Of those that are missing, the ones without which the kernel loads no program and so says nothing of what it has.
pub fn blinding(missing: &[&'static str]) -> Vec<&'static str> {
    missing.iter().copied().filter(|name| !matches!(*name, "CAP_SYS_PTRACE" | "CAP_SYS_ADMIN")).collect()
}

/// Whether a kernel of this release counts maps against RLIMIT_MEMLOCK.
fn counts_maps(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version < (5, 11))
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Refuses to go on without them.
///
/// # Errors
///
/// [`Error::unsupported`] with the names of what is missing.
pub fn require() -> Result<()> {
    refuse(&missing())
}

/// Names of the capabilities that this process lacks to make connections as other users.
pub fn missing_to_verify() -> Vec<&'static str> {
    let effective = effective(&read("/proc/self/status"));
    NEEDED_TO_VERIFY.iter().filter(|(_, bit, _)| effective >> bit & 1 == 0).map(|(name, ..)| *name).collect()
}

/// As [`require`], for a validation as Istio's, which connects as the proxy's user.
///
/// # Errors
///
/// [`Error::unsupported`] with the names of what is missing.
pub fn require_to_validate() -> Result<()> {
    refuse(&missing().into_iter().chain(missing_to_verify()).collect::<Vec<_>>())
}

fn refuse(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::unsupported(format!("not enough privileges: {} missing", missing.join(", ")))
        .remedy("run as root, or give the container these capabilities"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001fffeffffff\n"), 0x1ff_feff_ffff);
        assert_eq!(effective("nothing"), 0);
    }

    #[test]
    fn old_kernels_count_maps() {
        for (release, counts) in
            [("5.10.0-46-cloud-amd64", true), ("5.11.0", false), ("6.1.0-56", false), ("4.19.1", true)]
        {
            assert_eq!(counts_maps(release), counts, "{release}");
        }
    }
}
