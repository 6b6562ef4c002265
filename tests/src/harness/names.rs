//! Names for namespaces and cgroups that cannot collide between threads or processes, and that tell who made them.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNTER: AtomicU32 = AtomicU32::new(0);

const PREFIX: &str = "redirtest-";

/// A fresh name: `redirtest-<pid>-<counter>`.
pub fn unique() -> String {
    format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether `name` was made by [`unique`] in a process that no longer exists.
///
/// `Drop` cleans up after failed tests; only a killed process leaves something behind, and the next run removes it.
pub fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let pid = rest.split('-').next().unwrap_or_default();
    !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) && !Path::new("/proc").join(pid).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_is_not_stale() {
        assert!(!is_stale(&unique()));
        assert!(!is_stale("somebody-else"));
        assert!(!is_stale("redirtest-"));
        assert!(!is_stale("redirtest-x-1"));
        assert!(is_stale("redirtest-999999999-1-client"));
    }
}
