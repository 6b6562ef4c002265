//! Processes, from /proc.

use std::time::Duration;

use crate::base::error::{Context, Result};
use crate::base::input;
use crate::base::text::printable;

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

/// Inode number of a process's network namespace; None if it has ended. The link's text has it, and to read that costs less
/// than to follow it.
pub fn netns_inode(pid: u32) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// A process that is being forked is for so long in the root cgroup, though its parent is elsewhere.
pub const FORKING: Duration = Duration::from_millis(2);
/// So often is looked before it is believed.
pub const LOOKS: u32 = 5;

/// `PF_EXITING` of include/linux/sched.h, which /proc/PID/stat shows in its ninth field.
const PF_EXITING: u64 = 4;

/// Whether a process is ending or has ended: it opens no more connections.
pub fn is_ending(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/stat"))
        .map_or(true, |stat| says_exiting(&String::from_utf8_lossy(&stat)))
}

/// The same by the text of its `stat`. The second field, the name, may hold spaces and brackets; the last bracket ends it.
pub fn says_exiting(stat: &str) -> bool {
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse().ok());
    flags.is_some_and(|flags: u64| flags & PF_EXITING != 0)
}

/// What /proc/PID/cgroup says; None if it has ended.
pub fn cgroups(pid: u32) -> Option<String> {
    let read = || input::of_the_kernel(format!("/proc/{pid}/cgroup")).ok();
    let mut text = read()?;
    for _ in 1..LOOKS {
        if !text.lines().any(|line| line == "0::/") {
            break;
        }
        std::thread::sleep(FORKING);
        text = read()?;
    }
    Some(text)
}

/// Name of a process as `ps` shows it, for messages.
pub fn name(pid: u32) -> String {
    std::fs::read(format!("/proc/{pid}/comm")).map_or_else(|_| "?".into(), |name| printable_name(&name))
}

/// A process gives itself its name (PR_SET_NAME), of any bytes.
fn printable_name(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name.trim_ascii_end())).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A process that calls itself like the rest of the line is not taken for another's state.
        #[test]
        fn flags_are_told_apart_from_any_name(name in "[^\n]{0,15}|[()RZ 0-9]{0,15}", flags: u32) {
            let stat = format!("8136 ({name}) R 8130 8120 8120 0 -1 {flags} 59 0 0 0");
            prop_assert_eq!(says_exiting(&stat), u64::from(flags) & PF_EXITING != 0);
        }

        #[test]
        fn no_stat_makes_it_panic(stat in ".*") {
            says_exiting(&stat);
        }
    }

    #[test]
    fn ending() {
        assert!(!is_ending(std::process::id()));
        assert!(says_exiting("8136 (true) R 8130 8120 8120 0 -1 4228100 59 0 0 0 0 0"));
        assert!(!says_exiting("8136 (a) R 1 1 1 0 -1 4) R 8130 8120 8120 0 -1 4194560 59 0"));
        assert!(!says_exiting("8136 (true"));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_ending(child.id()) {
            assert!(std::time::Instant::now() < deadline, "a zombie is not ending");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_ending(child.id()));
    }

    #[test]
    fn the_namespace_by_its_link() {
        use std::os::unix::fs::MetadataExt;
        let followed = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(netns_inode(std::process::id()), Some(followed));
        assert_eq!(netns_inode(0), None);
    }

    #[test]
    fn names_are_only_shown() {
        for (name, shown) in [
            (&b"nginx: worker\n"[..], "nginx: worker"),
            (b"\x1b[2J\ra\nb\n", "\u{fffd}[2J\u{fffd}a\u{fffd}b"),
            (b"\xffx\xc2\x9b\n", "\u{fffd}x\u{fffd}"),
            ("zürich\n".as_bytes(), "zürich"),
        ] {
            assert_eq!(printable_name(name), shown);
        }
    }
}
