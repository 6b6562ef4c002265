//! Going where the probe is to act.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use rustix::process::{
    Gid, Resource, Rlimit, Signal, Uid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// Enters cgroup, namespace and user, in this order: the cgroup of a socket is the one at its creation, and an
/// ordinary user may enter neither of the others.
pub fn enter(
    cgroup: Option<&Path>,
    netns: Option<&Path>,
    uid: Option<u32>,
    gid: Option<u32>,
) -> anyhow::Result<()> {
    if let Some(cgroup) = cgroup {
        let procs = cgroup.join("cgroup.procs");
        std::fs::write(&procs, "0").with_context(|| format!("joining {}", cgroup.display()))?;
    }
    if let Some(netns) = netns {
        let file = File::open(netns).with_context(|| netns.display().to_string())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {}", netns.display()))?;
    }
    // We are still single-threaded, so the thread's ids are the process's.
    if uid.is_some() || gid.is_some() {
        set_thread_groups(&[]).context("dropping supplementary groups")?;
    }
    if let Some(gid) = gid.map(Gid::from_raw) {
        set_thread_res_gid(gid, gid, gid).context("setting the group")?;
    }
    if let Some(uid) = uid.map(Uid::from_raw) {
        set_thread_res_uid(uid, uid, uid).context("setting the user")?;
    }
    Ok(())
}

/// Nobody must outlive a test that was killed, unless that is wanted. After the ids: changing them clears this. Both
/// survive exec.
pub fn bind_life(outlive: bool) -> anyhow::Result<()> {
    if outlive {
        rustix::process::setsid().context("starting a session")?;
        return Ok(());
    }
    set_parent_process_death_signal(Some(Signal::KILL)).context("asking to die with the parent")
}

/// Allows as many open files as we may have: some tests hold thousands of connections.
pub fn raise_limits() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("open files")
}
