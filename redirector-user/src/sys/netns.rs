//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::thread::on_a_thread;
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
        let id = match enter(file.as_fd(), cookie)? {
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => NetnsId::Inode(inode),
            other => NetnsId::Cookie(other?),
        };
        Ok(Self { file, inode, id })
    }

    /// Runs `f` on a thread of its own inside the namespace. Every request of this program that depends on the
    /// namespace goes through here.
    ///
    /// # Errors
    ///
    /// What `f` returns, or why the namespace could not be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.file.as_fd(), f)
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

fn enter<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(move || {
        if !is_current(netns) {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns, network)?;
        }
        Ok(f())
    })
}

/// Whether the calling thread is in the namespace: to enter it again would take privileges that reading does not.
fn is_current(netns: BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(netns), rustix::fs::stat("/proc/thread-self/ns/net")) {
        (Ok(theirs), Ok(ours)) => (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino),
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
