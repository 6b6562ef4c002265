//! Throw-away cgroups in the cgroup v2 tree, wherever that is mounted.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{names, retry};

/// A cgroup (v2) and everything below it; removed on drop.
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup directly below the mount point.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let root = mount_point()?;
        remove_stale(&root);
        let directory = root.join(name);
        std::fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        Ok(Self { directory })
    }

    /// One directly below the mount point that exists already and is ours from now on.
    pub fn existing(name: &str) -> anyhow::Result<Option<Self>> {
        let directory = mount_point()?.join(name);
        Ok(directory.exists().then_some(Self { directory }))
    }

    /// Lets it stay after this process, with all that runs in it.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Makes (or finds) a cgroup inside this one, as a container's is inside its pod's.
    pub fn child(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.directory.join(name);
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(directory)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// Removes a cgroup of ours with what is below. Whatever still runs there was started by a test: nobody else can know
/// the directory, and the pids are read from it.
fn remove(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    retry::until(&format!("removing {}", directory.display()), || {
        for pid in processes(directory) {
            let _ = kill_process(pid, Signal::KILL);
        }
        match std::fs::remove_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => None,
            _ => Some(()),
        }
    })
}

fn processes(directory: &Path) -> Vec<Pid> {
    std::fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
        .collect()
}

/// Where the cgroup v2 tree is mounted: not everywhere at /sys/fs/cgroup (hybrid layouts put it below).
pub fn mount_point() -> anyhow::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    find_mount_point(&mounts).context("no cgroup2 file system is mounted")
}

/// mountinfo: `id parent major:minor root mount-point options [optional...] - type source super-options`.
fn find_mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.split(' ').next()? == "cgroup2" && root == "/").then(|| PathBuf::from(point))
    })
}

/// Removes what a killed test process left behind: only names of ours whose process is gone, only if empty.
fn remove_stale(root: &Path) {
    let Ok(entries) = std::fs::read_dir(root) else { return };
    for entry in entries.filter_map(Result::ok) {
        if names::is_stale(&entry.file_name().to_string_lossy()) {
            if let Ok(children) = std::fs::read_dir(entry.path()) {
                for child in children.filter_map(Result::ok) {
                    let _ = std::fs::remove_dir(child.path());
                }
            }
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_v2_tree_in_hybrid_and_unified_layouts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw shared:3 - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "35 24 0:30 / /sys/fs/cgroup rw shared:9 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount_point(unified), Some("/sys/fs/cgroup".into()));
        let only_a_part = "35 24 0:30 /docker/x /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount_point(only_a_part), None);
    }
}
