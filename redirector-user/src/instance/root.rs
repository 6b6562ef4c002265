//! Where instances live: `redirector` in a bpffs.

use crate::error::{Context, Error, Result};
use rustix::mount::{MountFlags, mount};
use std::path::{Path, PathBuf};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Directories that begin so are being made or taken down. Names of instances are lower case.
const STAGING: &str = "NEW-";
const LONGEST_NAME: usize = 63;

/// The directory of all instances.
#[derive(Clone, Debug)]
pub struct Root {
    bpffs: PathBuf,
    dir: PathBuf,
}

impl Root {
    /// Below a bpffs mount point, normally `/sys/fs/bpf`.
    pub fn at(bpffs: &Path) -> Self {
        Self { bpffs: bpffs.to_owned(), dir: bpffs.join("redirector") }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Directory of an instance.
    pub fn instance(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where an instance is built before it gets its name.
    pub fn staging(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{STAGING}{name}"))
    }

    /// Makes the directory; mounts the bpffs first if there is none, and says so.
    pub fn create(&self) -> Result<Option<String>> {
        let mut note = None;
        if !self.is_bpffs()? {
            mount("bpf", &self.bpffs, "bpf", MountFlags::empty(), None).context(|| {
                format!("mount a bpffs on {} (mount -t bpf bpf {0})", self.bpffs.display())
            })?;
            note = Some(format!("mounted a bpffs on {}", self.bpffs.display()));
        }
        match std::fs::create_dir(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(e).context(|| format!("create {}", self.dir.display()))
            }
            _ => Ok(note),
        }
    }

    fn is_bpffs(&self) -> Result<bool> {
        let stat = rustix::fs::statfs(&self.bpffs)
            .context(|| format!("statfs {}, where the bpffs is or should be mounted", self.bpffs.display()))?;
        Ok(stat.f_type as i64 == BPF_FS_MAGIC)
    }

    /// Names of the instances, sorted. None at all if nothing was ever attached.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| !name.starts_with(STAGING)).collect())
    }

    /// Directories that a command which was killed has left behind.
    pub fn staged(&self) -> Result<Vec<PathBuf>> {
        let staged = self.entries()?.into_iter().filter(|name| name.starts_with(STAGING));
        Ok(staged.map(|name| self.dir.join(name)).collect())
    }

    fn entries(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::Unsupported(format!("cannot read {}: run as root", self.dir.display())));
            }
            other => other.context(|| format!("read {}", self.dir.display()))?,
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes the directory if it is empty.
    pub fn remove_if_empty(&self) {
        // Not empty or gone: both fine.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// A name that may be given to an instance.
///
/// # Errors
///
/// [`Error::Input`]: bpffs has no dots in names, and upper case is ours.
pub fn check_name(name: &str) -> Result<()> {
    let ok = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if ok {
        return Ok(());
    }
    Err(Error::Input(format!(
        "{name:?} is no name for an instance: use 1 to {LONGEST_NAME} of a-z, 0-9, _ and -"
    )))
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
            assert!(matches!(check_name(bad), Err(Error::Input(_))), "{bad}");
        }
    }
}
