//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    /// Inode number on nsfs: what `ls -l /proc/PID/ns/net` shows.
    pub inode: u64,
    /// Cookie: never reused while the machine runs. Before 5.14 the inode number, which is unique only
    /// among the namespaces that are there.
    pub cookie: u64,
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
        let cookie = match enter(file.as_fd(), cookie)? {
            // SO_NETNS_COOKIE is of 5.14.
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => inode,
            other => other?,
        };
        Ok(Self { file, inode, cookie })
    }

    /// Runs `f` on a thread of its own inside the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        enter(self.file.as_fd(), f)
    }
}

/// Runs `f` on a thread of its own inside a new namespace, which ends with the last socket that `f`
/// leaves in it.
pub fn in_new<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            // SAFETY: the thread is ours alone, and a network namespace is a property of the thread.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
            Ok(f())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            rustix::thread::move_into_link_name_space(
                netns,
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            Ok(f())
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
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
