//! Raw and packet sockets of a pod (CAP_NET_RAW): what they send, no hook sees.

use std::collections::BTreeSet;
use std::io;

use super::finding::{Finding, some_of};
use crate::base::error::{Context, Result};
use crate::sys::netns::NetNs;

/// A socket: its kind, as people call it, its owner's user and its inode number.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    kind: &'static str,
    uid: u32,
    inode: u64,
}

/// Names who has some. `owners`: the processes that have a socket, by its inode number.
///
/// # Errors
///
/// If the namespace cannot be entered, or the kernel does not list them.
pub(super) fn judge(netns: &NetNs, owners: impl Fn(u64) -> Vec<String>) -> Result<Option<Finding>> {
    // In order, and each process once.
    let mut all = BTreeSet::new();
    for Socket { kind, uid, inode } in netns.run(list)? {
        let processes = owners(inode);
        if processes.is_empty() {
            all.insert(format!("user {uid}: a {kind} socket"));
        }
        all.extend(processes.into_iter().map(|process| format!("{process}: a {kind} socket")));
    }
    let all: Vec<String> = all.into_iter().collect();
    Ok((!all.is_empty()).then(|| {
        Finding::notice(
            "raw_socket",
            some_of(&all, 8),
            "what is sent by it goes past the proxy, TCP too",
            "drop the capability NET_RAW from the container, unless it is meant (ping, tcpdump)".into(),
        )
    }))
}

fn list() -> Result<Vec<Socket>> {
    // Columns of the user and of the inode number (`raw_sock_seq_show`, `packet_seq_show`).
    let files = [("raw", "raw", (7, 9)), ("raw6", "raw", (7, 9)), ("packet", "packet", (7, 8))];
    let mut all = Vec::new();
    for (file, kind, columns) in files {
        let path = format!("/proc/thread-self/net/{file}");
        match std::fs::read_to_string(&path) {
            Ok(text) => all.extend(text.lines().skip(1).filter_map(|line| parse(line, kind, columns))),
            // A kernel without IPv6, or whose packet sockets are a module that is not loaded.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(|| format!("read {path}")),
        }
    }
    Ok(all)
}

fn parse(line: &str, kind: &'static str, (uid, inode): (usize, usize)) -> Option<Socket> {
    let columns: Vec<&str> = line.split_ascii_whitespace().collect();
    Some(Socket { kind, uid: columns.get(uid)?.parse().ok()?, inode: columns.get(inode)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as kernels print them.
    #[test]
    fn lines_of_both_kinds() {
        let raw = "  255: 00000000:00FF 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 48123 2 0000000000000000 0";
        let packet = "0000000000000000 3      3    0003   2     1 0      0      48124 ";
        assert_eq!(parse(raw, "raw", (7, 9)), Some(Socket { kind: "raw", uid: 1000, inode: 48123 }));
        assert_eq!(parse(packet, "packet", (7, 8)), Some(Socket { kind: "packet", uid: 0, inode: 48124 }));
    }
}
