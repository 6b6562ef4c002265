//! Processes, from /proc.

use crate::error::{Context, Result};
use std::os::unix::fs::MetadataExt;

/// Pids of the processes whose network namespace has this inode number. Processes that end
/// meanwhile, and those we may not look at, are left out.
pub fn in_netns(inode: u64) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").context(|| "read /proc".into())?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if netns_inode(pid) == Some(inode) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Inode number of a process's network namespace; None if it has ended.
pub fn netns_inode(pid: u32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|m| m.ino())
}

/// Name of a process as `ps` shows it, for messages.
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".into(), |s| s.trim().to_owned())
}
