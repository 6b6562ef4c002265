//! Parameters of the network namespace that the calling thread is in.

use std::fs::File;
use std::io::{Result, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

const PROC: &str = "/proc/";

/// Writes to a file of /proc/sys, also where that is mounted read-only, as runtimes do in containers (`readonlyPaths` of the
/// OCI runtime specification).
pub(super) fn write(path: &str, value: &str) -> Result<()> {
    match std::fs::write(path, value) {
        Err(e) if e.raw_os_error() == Some(libc::EROFS) => write_past_mounts(path, value),
        other => other,
    }
}

/// Writes in a procfs that is mounted nowhere, so that nothing is mounted over its files.
fn write_past_mounts(path: &str, value: &str) -> Result<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let procfs = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let path = path.strip_prefix(PROC).unwrap_or(path);
    let file = openat(&procfs, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).write_all(value.as_bytes())
}
