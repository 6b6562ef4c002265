//! Capabilities of this process.

use crate::error::{Error, Result};

/// What attach and detach need, and why; the same table is in SECURITY.md.
pub const NEEDED: [(&str, u32, &str); 5] = [
    ("CAP_NET_ADMIN", 12, "attach to a network namespace and to cgroup hooks, read its routes"),
    ("CAP_SYS_PTRACE", 19, "take over listeners that are older than the attach"),
    ("CAP_SYS_ADMIN", 21, "enter network namespaces, mount a bpffs, open pinned objects of others"),
    ("CAP_PERFMON", 38, "read the owner of a socket (bpf_probe_read_kernel)"),
    ("CAP_BPF", 39, "load programs and maps"),
];

/// Names of the capabilities that are missing.
pub fn missing() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective(&status);
    NEEDED.iter().filter(|(_, bit, _)| effective >> bit & 1 == 0).map(|(name, ..)| *name).collect()
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Refuses to go on without them.
///
/// # Errors
///
/// [`Error::Unsupported`] with the names of what is missing.
pub fn require() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "not enough privileges: {} missing; run as root, or give the container these capabilities",
        missing.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001fffeffffff\n"), 0x1ff_feff_ffff);
        assert_eq!(effective("nothing"), 0);
    }
}
