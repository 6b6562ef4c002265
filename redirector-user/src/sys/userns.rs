//! User namespaces: which one owns a network namespace, and how it maps ids.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// The user namespace that owns a namespace; None if it is the one we are in.
///
/// # Errors
///
/// The kernel's; EPERM if it is outside of ours.
pub fn owner_of(namespace: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    related(namespace, NS_GET_USERNS)
}

/// The user namespace that owns a namespace and those that this one is in, by device and inode number, up to ours,
/// which is not among them.
///
/// # Errors
///
/// As [`owner_of`].
pub fn owners_of(namespace: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    let mut owners = Vec::new();
    let mut next = owner_of(namespace)?;
    while let Some(owner) = next {
        owners.push(number(&owner)?);
        next = related(owner.as_fd(), NS_GET_PARENT)?;
    }
    Ok(owners)
}

fn related(namespace: BorrowedFd<'_>, which: libc::Ioctl) -> io::Result<Option<OwnedFd>> {
    // SAFETY: NS_GET_USERNS and NS_GET_PARENT (linux/nsfs.h) take no argument and give a descriptor.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), which) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor made just above.
    let found = unsafe { OwnedFd::from_raw_fd(fd) };
    let own = File::open("/proc/self/ns/user")?.into();
    Ok((number(&found)? != number(&own)?).then_some(found))
}

fn number(namespace: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(namespace)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// The texts of `uid_map` and `gid_map` of a user namespace, as seen from ours: who opens the file
/// decides how its second column is shown (`proc_id_map_open`), so that to the initial namespace
/// these are the kernel's ids, however deep the namespace is.
///
/// The files are those of a process, and the namespace may have none: a child of ours goes there.
pub fn maps(namespace: BorrowedFd<'_>) -> io::Result<[String; 2]> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: the child makes system calls only (fork of a process with threads), and never returns.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        stay_in(namespace, ours.as_fd(), theirs.as_fd());
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(theirs);
    let maps = read_maps(&ours, pid);
    // The child ends with its connection.
    drop(ours);
    // SAFETY: a child of ours that nobody else waits for; no status is asked for.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    maps
}

fn read_maps(mut child: &UnixStream, pid: i32) -> io::Result<[String; 2]> {
    let mut errno = [0; 4];
    child.read_exact(&mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            Ok([read("uid_map")?, read("gid_map")?])
        }
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The child: enters the namespace, tells the errno (or 0), stays until the parent lets go of the connection.
fn stay_in(namespace: BorrowedFd<'_>, parents: BorrowedFd<'_>, mine: BorrowedFd<'_>) -> ! {
    // SAFETY: descriptors that are open, a buffer of the size that is given, and no return.
    unsafe {
        libc::close(parents.as_raw_fd());
        let entered = libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) == 0;
        let mut word: i32 = if entered { 0 } else { *libc::__errno_location() };
        libc::write(mine.as_raw_fd(), (&raw const word).cast(), size_of::<i32>());
        libc::read(mine.as_raw_fd(), (&raw mut word).cast(), size_of::<i32>());
        libc::_exit(0)
    }
}
