//! Where instances live: `redirector` in a bpffs.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, FsWord, flock, fstatfs, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::base::error::{Context, Error, Kind, Result};
use crate::base::input;
use crate::programs::node::Node;

const BPF_FS_MAGIC: FsWord = 0xcafe_4a11;
/// Directories that begin so are being made or taken down. Names of instances are lower case.
const STAGING: &str = "NEW-";
const LONGEST_NAME: usize = 63;

/// The directory of all instances.
#[derive(Clone, Debug)]
pub struct Directory {
    bpffs: PathBuf,
    dir: PathBuf,
    mounts: bool,
    keeps_programs: bool,
    pub(super) tell: Option<fn(&str)>,
}

impl Directory {
    /// Below a bpffs mount point, normally `/sys/fs/bpf`.
    pub fn at(bpffs: &Path) -> Self {
        Self {
            bpffs: bpffs.to_owned(),
            dir: bpffs.join("redirector"),
            mounts: true,
            keeps_programs: false,
            tell: None,
        }
    }

    /// The same for somebody who sits before it: is told what takes long.
    pub fn telling(self, tell: fn(&str)) -> Self {
        Self { tell: Some(tell), ..self }
    }

    /// The same, for a process that stays: what instances share is kept without instances, for the next one. A bpffs is never
    /// mounted, and is there already.
    ///
    /// What is mounted in a container is the container's own (its mount namespace gets no mounts of the node without
    /// mountPropagation, and gives it none): it ends with the container, and with it whatever is pinned there.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if there is none.
    pub fn on_prepared_node(self) -> Result<Self> {
        let root = Self { mounts: false, keeps_programs: true, ..self };
        root.mount().map(|_| root)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of an instance.
    pub fn instance(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What tells an instance from a later one of the same name: the inode of its directory, which keeps it through every
    /// change of policy and of programs.
    pub fn identity(&self, name: &str) -> Option<u64> {
        std::fs::metadata(self.instance(name)).ok().map(|directory| directory.ino())
    }

    /// Where an instance is built before it gets its name.
    pub fn staging(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{STAGING}{name}"))
    }

    /// Makes the directory; mounts the bpffs first if there is none, and says so.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if the mount point is not there, or holds something else.
    pub fn create(&self) -> Result<Option<String>> {
        let note = self.mount()?;
        // Whoever can open it can lock it.
        match make_dir(&self.dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                Err(e).context(|| format!("create {}", self.dir.display()))
            }
            _ => Ok(note),
        }
    }

    fn mount(&self) -> Result<Option<String>> {
        let point = self.bpffs.display();
        let open = || match input::directory(&self.bpffs) {
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                Err(Error::input(format!("{point} is no directory"))
                    .usage("give the mount point of a bpffs with --bpffs"))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::input(format!("{point} does not exist"))
                .usage("create it, or give the mount point of a bpffs with --bpffs")),
            other => other.context(|| format!("open {point}, where the bpffs is or should be mounted")),
        };
        let below = open()?;
        if is_bpffs(&below)? {
            return Ok(None);
        }
        if !self.mounts {
            return Err(Error::unsupported(format!(
                "{point} is not a bpffs on this node, and one that is mounted here would end with \
                 this container, and all capture with it"
            ))
            .usage(format!(
                "mount it on the node before the agent starts (mount -t bpf bpf {point}, or systemd's \
                 sys-fs-bpf.mount), or give the mount point of one with --bpffs"
            )));
        }
        // One at a time: a second mount would hide the instances on the first.
        flock(&below, FlockOperation::LockExclusive).context(|| format!("lock {point}"))?;
        if is_bpffs(&open()?)? {
            return Ok(None);
        }
        let mut entries = std::fs::read_dir(&self.bpffs).context(|| format!("read {point}"))?;
        if entries.next().is_some() {
            return Err(Error::input(format!("{point} is not a bpffs, and not empty either"))
                .usage("give the mount point of one with --bpffs"));
        }
        mount("bpf", &self.bpffs, "bpf", MountFlags::empty(), None)
            .context(|| format!("mount a bpffs (mount -t bpf bpf {point})"))?;
        Ok(Some(format!("mounted a bpffs on {point}")))
    }

    /// Why attach could not keep an instance here, and what to do. An empty directory is fine: it gets a bpffs.
    pub fn obstacle(&self) -> Option<String> {
        let why = self.require().err().filter(|e| e.kind() == Kind::Input)?;
        let empty = std::fs::read_dir(&self.bpffs).is_ok_and(|mut entries| entries.next().is_none());
        (!empty).then(|| why.on_command_line())
    }

    /// Refuses a place that is no bpffs: somebody has named it, and has named the wrong one.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if it is none.
    pub fn require(&self) -> Result<()> {
        let point = self.bpffs.display();
        let why = match statfs(&self.bpffs) {
            Ok(stat) if stat.f_type == BPF_FS_MAGIC => return Ok(()),
            Ok(_) | Err(Errno::NOTDIR) => "is not a bpffs",
            Err(Errno::NOENT) => "does not exist",
            Err(e) => return Err(e).context(|| format!("look at {point}")),
        };
        Err(Error::input(format!("{point} {why}")).usage("give the mount point of a bpffs with --bpffs"))
    }

    /// Opens the directory; None if it is not there, which means that nothing is attached.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if it is no directory of ours: what is in it gets swept.
    pub(super) fn open(&self) -> Result<Option<File>> {
        let shown = self.dir.display();
        let dir = match File::open(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("open {shown} (run as root)"))?,
        };
        if !is_bpffs(&dir)? {
            return Err(Error::input(format!("{shown} is not in a bpffs"))
                .usage("give the mount point of one with --bpffs"));
        }
        // Anybody may make directories in a bpffs.
        let owner = dir.metadata().context(|| format!("stat {shown}"))?.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(Error::failed(format!("{shown} was made by user {owner}, who is not trusted"))
                .remedy("remove it"));
        }
        Ok(Some(dir))
    }

    /// Names of the instances, sorted. None at all if nothing was ever attached.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| check_name(name).is_ok()).collect())
    }

    /// Directories that a command which was killed has left behind.
    pub fn staged(&self) -> Result<Vec<PathBuf>> {
        let staged = self.entries()?.into_iter().filter(|name| name.starts_with(STAGING));
        Ok(staged.map(|name| self.dir.join(name)).collect())
    }

    /// Names of the directories; whatever else somebody has put there is not ours.
    fn entries(&self) -> Result<Vec<String>> {
        if self.open()?.is_none() {
            return Ok(Vec::new());
        }
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.context(|| format!("read {}", self.dir.display()))?,
        };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        let mut names: Vec<String> =
            directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes the directory, with what instances share, if there is no instance. The caller holds the lock.
    pub fn remove_if_empty(&self) {
        // Without instances what they share serves nothing.
        if !self.keeps_programs
            && matches!((self.names(), self.staged()), (Ok(names), Ok(staged)) if names.is_empty() && staged.is_empty())
        {
            let _ = Node::of(&self.dir).remove();
        }
        // Not empty or gone: both fine.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn is_bpffs(file: &File) -> Result<bool> {
    let stat = fstatfs(file).context(|| "statfs of the bpffs".into())?;
    Ok(stat.f_type == BPF_FS_MAGIC)
}

/// A name that may be given to an instance.
///
/// # Errors
///
/// [`Error::input`]: bpffs has no dots in names, and upper case is ours.
pub fn check_name(name: &str) -> Result<()> {
    let ok = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if ok {
        return Ok(());
    }
    Err(Error::input(format!(
        "{name:?} is no name for an instance: use 1 to {LONGEST_NAME} of a-z, 0-9, _ and -"
    )))
}

/// Makes a directory that is root's alone.
pub fn make_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "n123", "pod_1-x", &"x".repeat(63)] {
            check_name(good).unwrap();
        }
        for bad in ["", "A", "a.b", "a/b", "..", "ü", &"x".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Input, "{bad}");
        }
    }
}
