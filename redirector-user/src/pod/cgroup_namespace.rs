//! The host's cgroup namespace.
//!
//! On a unified layout container runtimes give each container that is not privileged a cgroup namespace of
//! its own, in which /proc/PID/cgroup of other pods is no path. Kubernetes has no setting for it.

use std::fs::{File, metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::base::error::{Context, Error, Result};

const HOST: &str = "/proc/1/ns/cgroup";

/// Enters the cgroup namespace of process 1 (the host's, with the host's pid namespace), if this one is
/// another. Before there are threads: each would have to.
///
/// # Errors
///
/// If it is another and cannot be entered.
pub fn enter_hosts() -> Result<()> {
    // Who may not look at process 1 is in no container with the host's pids and CAP_SYS_PTRACE.
    let (Ok(own), Ok(host)) = (metadata("/proc/self/ns/cgroup"), metadata(HOST)) else { return Ok(()) };
    if (own.dev(), own.ino()) == (host.dev(), host.ino()) {
        return Ok(());
    }
    let file = File::open(HOST).context(|| format!("open {HOST}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::ControlGroup)).map_err(|e| {
        Error::failed(format!("enter the cgroup namespace of process 1 ({HOST}): {e}"))
            .remedy("it needs CAP_SYS_ADMIN")
    })
}
