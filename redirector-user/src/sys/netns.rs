//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::thread::on_a_thread;
use super::workers::{self, After};
use crate::base::error::{Context, Result};

/// What tells a network namespace from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetnsId {
    /// The kernel never gives it to another namespace (SO_NETNS_COOKIE, Linux 5.14).
    Cookie(u64),
    /// The inode number on nsfs, before 5.14: a later namespace may get it again.
    Inode(u64),
}

impl NetnsId {
    /// From the numbers that META holds of a namespace: without a cookie the inode number stands for it. A cookie
    /// counts from 1 and never comes near the inode numbers of nsfs, which begin at 0xf0000000.
    pub fn recorded(cookie: u64, inode: u64) -> Self {
        if cookie == inode { Self::Inode(inode) } else { Self::Cookie(cookie) }
    }

    /// The number alone, as META, names of instances and `show` have it.
    pub fn number(self) -> u64 {
        match self {
            Self::Cookie(number) | Self::Inode(number) => number,
        }
    }

    /// Whether no later namespace can have it.
    pub fn is_unique(self) -> bool {
        matches!(self, Self::Cookie(_))
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    /// Inode number on nsfs: what `ls -l /proc/PID/ns/net` shows.
    pub inode: u64,
    /// What tells it from others.
    pub id: NetnsId,
}

impl NetNs {
    /// Opens a namespace file such as `/proc/PID/ns/net` or `/run/netns/NAME`.
    ///
    /// # Errors
    ///
    /// The kernel's, or `InvalidInput` if the file is no network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Not to wait for a writer, should it be a pipe.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let inode = file.metadata()?.ino();
        const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
        // SAFETY: NS_GET_NSTYPE (linux/nsfs.h) takes no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        let id = match enter(file.as_fd(), After::Reusable, cookie)? {
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => NetnsId::Inode(inode),
            other => NetnsId::Cookie(other?),
        };
        Ok(Self { file, inode, id })
    }

    /// Opens a file of the node. Where a mount has not reached this process, it is opened as the first process sees it: `ip netns
    /// add` of newer iproute2 makes `/run/netns` a mount in a peer group of its own, and a process whose mount namespace is
    /// older sees none of the mounts in it.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_of_node(path: &Path) -> io::Result<Self> {
        let as_init_sees_it =
            || Self::open(&Path::new("/proc/1/root").join(path.strip_prefix("/").ok()?)).ok();
        Self::open(path).or_else(|e| as_init_sees_it().ok_or(e))
    }

    /// Runs `f` on another thread inside the namespace. Every request of this program that depends on the
    /// namespace goes through here.
    ///
    /// # Errors
    ///
    /// What `f` returns, or why the namespace could not be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run_and_leave(After::Reusable, f)
    }

    /// The same on a thread that ends afterwards, as one must that has started a process which asks to end with its parent.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_to_the_end<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run_and_leave(After::Spent, f)
    }

    fn run_and_leave<T: Send>(&self, after: After, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.file.as_fd(), after, f)
            .context(|| "enter the network namespace (needs CAP_SYS_ADMIN over it)".into())?
    }
}

/// Runs `f` on a thread of its own inside a new namespace, which ends with the last socket that `f`
/// leaves in it.
pub fn in_new<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        // SAFETY: the thread is ours alone, and a network namespace is a property of the thread.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
        Ok(f())
    };
    on_a_thread(inside).context(|| "make a network namespace".into())?
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter<T: Send>(netns: BorrowedFd<'_>, after: After, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    workers::run(|| {
        HOME.with(|home| {
            // To enter where it is already would take privileges that reading does not.
            if home.as_ref().is_some_and(|home| is_same(home.as_fd(), netns)) {
                return (Ok(f()), after);
            }
            if let Err(e) = move_to(netns) {
                return (Err(e), After::Spent);
            }
            let result = Ok(f());
            // A thread that waits inside would keep the namespace alive.
            let back = home.as_ref().is_some_and(|home| move_to(home.as_fd()).is_ok());
            (result, if back { after } else { After::Spent })
        })
    })?
}

thread_local! {
    /// The namespace of the process, where a worker waits. One that was started from within another begins there.
    static HOME: Option<File> =
        File::open("/proc/self/ns/net").ok().filter(|home| is_or_moves_to(home.as_fd()));
}

fn is_or_moves_to(netns: BorrowedFd<'_>) -> bool {
    let here = File::open("/proc/thread-self/ns/net");
    here.is_ok_and(|here| is_same(here.as_fd(), netns)) || move_to(netns).is_ok()
}

fn move_to(netns: BorrowedFd<'_>) -> io::Result<()> {
    let network = Some(rustix::thread::LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(netns, network)?)
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

fn cookie() -> io::Result<u64> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just above.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    super::sockopt::netns_cookie(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that was started from within a namespace does not wait there, and so does not keep it.
    #[test]
    fn nobody_stays_inside() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let link = |path: &str| std::fs::read_link(path).unwrap();
        let inside = in_new(|| {
            // More at once than there are workers that wait.
            let here = NetNs::open(Path::new("/proc/thread-self/ns/net")).unwrap();
            let nested = || here.run(|| here.run(|| here.run(|| Ok(link("/proc/thread-self/ns/net")))));
            nested()
        });
        let inside = inside.unwrap();
        assert_ne!(inside, link("/proc/self/ns/net"));
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let still =
            tasks.filter(|task| std::fs::read_link(task.path().join("ns/net")).is_ok_and(|it| it == inside));
        assert_eq!(still.count(), 0);
    }
}
