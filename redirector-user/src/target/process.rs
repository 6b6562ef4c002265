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
    std::fs::read(format!("/proc/{pid}/comm")).map_or_else(|_| "?".into(), |name| printable(&name))
}

/// A process gives itself its name (PR_SET_NAME), of any bytes, and a terminal would do what they say.
fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name.trim_ascii_end());
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_only_shown() {
        for (name, shown) in [
            (&b"nginx: worker\n"[..], "nginx: worker"),
            (b"\x1b[2J\ra\nb\n", "\u{fffd}[2J\u{fffd}a\u{fffd}b"),
            (b"\xffx\xc2\x9b\n", "\u{fffd}x\u{fffd}"),
            ("zürich\n".as_bytes(), "zürich"),
        ] {
            assert_eq!(printable(name), shown);
        }
    }
}
