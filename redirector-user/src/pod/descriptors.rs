//! The descriptors of other processes: which of them are sockets, found out without taking them.
//!
//! A descriptor that is taken (pidfd_getfd) is closed again, which asks its file system (`filp_flush` in fs/open.c): one of FUSE or
//! NFS may never answer.

use std::collections::HashMap;
use std::fs::{DirEntry, read_dir, read_link, read_to_string};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::base::input;

/// So many descriptors of a process are looked at: a pod may have millions.
pub const MAX_DESCRIPTORS_OF_ONE: usize = 65_536;
/// And of all together.
pub const MAX_DESCRIPTORS: usize = 250_000;
/// And no longer than this: what the kernel tells of a descriptor may be long (`ep_show_fdinfo` in fs/eventpoll.c).
pub const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A socket with this inode.
    Socket(u64),
    /// Anything else, or closed by now.
    Other,
    /// Only whoever takes it can say.
    Unknown,
}

/// The numbers of a process's descriptors, each looked at when it is asked for; none of one that has ended.
///
/// The directory fd of another user's process is closed to whoever lacks CAP_DAC_READ_SEARCH, as the agent in its container
/// does. Its fdinfo is open to CAP_SYS_PTRACE (`proc_fdinfo_access_allowed` in fs/proc/fd.c, Linux 5.14), and tells the
/// inode since then. Before there is only every number that the process may have.
pub(super) fn of(pid: u32, sockets: Option<u64>) -> Box<dyn Iterator<Item = (i32, Descriptor)>> {
    let dir = format!("/proc/{pid}/fd");
    match (read_dir(&dir), sockets) {
        (Ok(entries), _) => {
            Box::new(entries.flatten().filter_map(|entry| Some((number(&entry)?, linked(&entry.path())))))
        }
        (Err(e), Some(mount)) if e.kind() == ErrorKind::PermissionDenied => {
            let entries = read_dir(format!("{dir}info")).into_iter().flatten().flatten();
            Box::new(entries.filter_map(move |entry| {
                let text = read_to_string(entry.path()).unwrap_or_default();
                Some((number(&entry)?, from_fdinfo(&text, mount)))
            }))
        }
        (Err(e), None) if e.kind() == ErrorKind::PermissionDenied => {
            let status = input::of_the_kernel(format!("/proc/{pid}/status")).unwrap_or_default();
            Box::new((0..table_size(&status)).map(|number| (number, Descriptor::Unknown)))
        }
        (Err(_), _) => Box::new(std::iter::empty()),
    }
}

/// Whose sockets they are: inode → the processes that have it open. False if not all descriptors could be looked at.
pub(crate) fn owners_of_sockets(pids: impl Iterator<Item = u32>) -> (HashMap<u64, Vec<u32>>, bool) {
    let mount = mount_of_sockets();
    let (mut owners, mut budget, mut all) = (HashMap::<u64, Vec<u32>>::new(), Budget::new(), true);
    for pid in pids {
        for (before, (_, seen)) in of(pid, mount).enumerate() {
            if !budget.allows(before) {
                break;
            }
            match seen {
                Descriptor::Socket(inode) => owners.entry(inode).or_default().push(pid),
                Descriptor::Unknown => all = false,
                Descriptor::Other => {}
            }
        }
    }
    owners.values_mut().for_each(Vec::dedup);
    (owners, all && !budget.exceeded)
}

fn number(entry: &DirEntry) -> Option<i32> {
    entry.file_name().to_str()?.parse().ok()
}

fn linked(link: &Path) -> Descriptor {
    let target = read_link(link).ok();
    target
        .and_then(|target| socket_inode(&target.to_string_lossy()))
        .map_or(Descriptor::Other, Descriptor::Socket)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// From the text of an fdinfo: inodes of other mounts are other numbers.
pub fn from_fdinfo(fdinfo: &str, sockets: u64) -> Descriptor {
    match (field(fdinfo, "ino:"), field(fdinfo, "mnt_id:")) {
        (Some(inode), Some(mount)) if mount == sockets => Descriptor::Socket(inode),
        _ => Descriptor::Other,
    }
}

/// The first: what is about the file itself comes before what is about that kind of file (`seq_show` in fs/proc/fd.c).
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// How many descriptors a process has room for (`FDSize` of its status).
fn table_size(status: &str) -> i32 {
    field(status, "FDSize:").and_then(|number| number.try_into().ok()).unwrap_or(0)
}

/// The mount of all sockets, of every namespace (`sock_mnt` in net/socket.c), from a socket of our own; None where fdinfo
/// does not tell inodes (before Linux 5.14).
pub(super) fn mount_of_sockets() -> Option<u64> {
    let own = UnixDatagram::unbound().ok()?;
    let path = format!("/proc/self/fd/{}", own.as_raw_fd());
    let inode = std::fs::metadata(&path).ok()?.ino();
    let text = read_to_string(path.replace("/fd/", "/fdinfo/")).ok()?;
    (field(&text, "ino:") == Some(inode)).then(|| field(&text, "mnt_id:")).flatten()
}

/// What a search may cost.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    end: Instant,
    /// Something was not looked at.
    pub exceeded: bool,
}

impl Budget {
    pub fn new() -> Self {
        Self { left: MAX_DESCRIPTORS, end: Instant::now() + SEARCH_TIMEOUT, exceeded: false }
    }

    /// Whether one more may be looked at, before which there were so many of its process.
    pub fn allows(&mut self, before: usize) -> bool {
        let allowed = before < MAX_DESCRIPTORS_OF_ONE && !self.is_spent();
        self.left -= usize::from(allowed);
        self.exceeded |= !allowed;
        allowed
    }

    /// Whether nothing more may be looked at, for somebody who would.
    pub fn is_spent(&mut self) -> bool {
        let spent = self.left == 0 || Instant::now() >= self.end;
        self.exceeded |= spent;
        spent
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is about the kind of file comes after, and may look like anything.
        #[test]
        fn inodes_are_those_of_the_file(inode: u64, mount: u64, rest in "(ino:\t[0-9]{1,3}\n|mnt_id:\t[0-9]\n|.*\n){0,4}") {
            let text = format!("pos:\t0\nflags:\t02\nmnt_id:\t{mount}\nino:\t{inode}\n{rest}");
            prop_assert_eq!(from_fdinfo(&text, mount), Descriptor::Socket(inode));
            from_fdinfo(&rest, mount);
        }
    }

    #[test]
    fn what_the_kernel_writes() {
        assert_eq!((socket_inode("socket:[77]"), socket_inode("pipe:[77]")), (Some(77), None));
        assert_eq!((table_size("Name:\tx\nFDSize:\t256\n"), table_size("")), (256, 0));
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t10\nino:\t7917627\nscm_fds: 0\n";
        assert_eq!(from_fdinfo(text, 10), Descriptor::Socket(7_917_627));
        assert_eq!(from_fdinfo(text, 11), Descriptor::Other);
        // Before 5.14.
        assert_eq!(from_fdinfo("pos:\t0\nflags:\t02\nmnt_id:\t10\n", 10), Descriptor::Other);
        // What an epoll watches is not itself.
        let epoll = "pos:\t0\nflags:\t02\nmnt_id:\t16\nino:\t5\ntfd: 4 events: 19 data: 4  pos:0 ino:7 sdev:8\nmnt_id:\t10\n";
        assert_eq!(
            (from_fdinfo(epoll, 10), from_fdinfo("", 10), from_fdinfo("ino:\tx\nmnt_id:\t10", 10)),
            (Descriptor::Other, Descriptor::Other, Descriptor::Other)
        );
    }

    #[test]
    fn both_directories_tell_the_same() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let (dev_null, number) = (std::fs::File::open("/dev/null").unwrap(), socket.as_raw_fd());
        let seen =
            |wanted: i32| of(std::process::id(), None).find(|(number, _)| *number == wanted).unwrap().1;
        assert!(matches!(seen(number), Descriptor::Socket(_)));
        assert_eq!(seen(dev_null.as_raw_fd()), Descriptor::Other);
        // None before 5.14.
        if let Some(mount) = mount_of_sockets() {
            let of = |number: i32| {
                from_fdinfo(&read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap(), mount)
            };
            assert_eq!((of(number), of(dev_null.as_raw_fd())), (seen(number), Descriptor::Other));
        }
    }

    #[test]
    fn a_search_has_an_end() {
        let mut budget = Budget { left: 3, ..Budget::new() };
        assert!(budget.allows(0) && budget.allows(MAX_DESCRIPTORS_OF_ONE - 1) && !budget.exceeded);
        assert!(!budget.allows(MAX_DESCRIPTORS_OF_ONE) && budget.exceeded && !budget.is_spent());
        assert!(budget.allows(0) && budget.is_spent() && !budget.allows(0));
        let mut late = Budget { end: Instant::now(), ..Budget::new() };
        assert!(late.is_spent() && !late.allows(0) && late.exceeded);
    }
}
