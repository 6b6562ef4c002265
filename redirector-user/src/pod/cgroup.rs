//! Cgroup v2 directories. The tree may be mounted anywhere (hybrid layouts have it below
//! `/sys/fs/cgroup/unified`), so it is looked up and never assumed.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::base::error::{Context, Error, Result};
use crate::base::input;

const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
const CGROUP_SUPER_MAGIC: i64 = 0x0027_e0eb;

/// An open cgroup v2 directory, never the root.
#[derive(Debug)]
pub struct Cgroup {
    dir: File,
    /// Where it is.
    pub path: PathBuf,
    /// Its id (inode number), as bpftool and the kernel call it.
    pub id: u64,
}

impl Cgroup {
    /// Opens a directory below the cgroup v2 mount.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if it does not exist, is of cgroup v1, or is the root.
    pub fn open(path: &Path) -> Result<Self> {
        let remedy = || "give the directory of the pod's cgroup, in the v2 tree";
        let dir = match input::directory(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(
                    Error::input(format!("the cgroup {} does not exist", path.display())).remedy(remedy())
                );
            }
            Err(e) if e.kind() == ErrorKind::NotADirectory => {
                return Err(Error::input(format!("{} is no directory", path.display())).remedy(remedy()));
            }
            other => other.context(|| format!("open the cgroup {}", path.display()))?,
        };
        let kind = rustix::fs::fstatfs(&dir).context(|| format!("statfs {}", path.display()))?.f_type as i64;
        if kind != CGROUP2_SUPER_MAGIC {
            let what = if kind == CGROUP_SUPER_MAGIC { "of cgroup v1" } else { "not a cgroup" };
            let tree = mount().map_or_else(|e| e.to_string(), |m| format!("the v2 tree is {}", m.display()));
            return Err(Error::input(format!("{} is {what}", path.display()))
                .remedy(format!("give a cgroup v2 directory: {tree}")));
        }
        // Every cgroup has this file, except the root.
        if !path.join("cgroup.events").exists() {
            return Err(Error::input(format!(
                "{} is the root cgroup, which holds the whole machine",
                path.display()
            ))
            .remedy("give the cgroup of the pod"));
        }
        let id = dir.metadata().context(|| format!("stat {}", path.display()))?.ino();
        let path = path.canonicalize().context(|| format!("resolve {}", path.display()))?;
        Ok(Self { dir, path, id })
    }

    /// Pids of the processes in it and below.
    pub fn processes(&self) -> Result<BTreeSet<u32>> {
        let mut pids = BTreeSet::new();
        collect(&self.path, &mut pids)?;
        Ok(pids)
    }
}

impl Cgroup {
    /// The directories of it and of those below, by their ids.
    pub fn ids(&self) -> HashMap<u64, PathBuf> {
        let mut ids = HashMap::new();
        walk(&self.path, &mut ids);
        ids
    }
}

fn walk(dir: &Path, ids: &mut HashMap<u64, PathBuf>) {
    // One that goes meanwhile has no processes any more.
    let Ok(metadata) = std::fs::metadata(dir) else { return };
    ids.insert(metadata.ino(), dir.to_owned());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        walk(&entry.path(), ids);
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn collect(dir: &Path, pids: &mut BTreeSet<u32>) -> Result<()> {
    let gone = |e: &std::io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
    // cgroup.procs of a threaded cgroup cannot be read; its threads' processes are listed above it.
    match input::of_the_kernel(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        Err(e) if gone(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(e).context(|| format!("read {}/cgroup.procs", dir.display())),
    }
    let entries = match std::fs::read_dir(dir) {
        Err(e) if gone(&e) => return Ok(()),
        other => other.context(|| format!("read {}", dir.display()))?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// Where cgroup v2 is mounted.
///
/// # Errors
///
/// [`Error::unsupported`] if it is not.
pub fn mount() -> Result<PathBuf> {
    let text = input::of_the_kernel("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".into())?;
    find_mount(&text).ok_or_else(|| {
        Error::unsupported("cgroup v2 is not mounted").remedy(
            "mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    })
}

/// Where the trees of cgroup v1 are mounted; none in a unified layout.
pub fn v1_mounts() -> Vec<PathBuf> {
    let text = input::of_the_kernel("/proc/self/mountinfo").unwrap_or_default();
    let mounts = text.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (back.split(' ').next()? == "cgroup").then_some(front.split(' ').nth(4)?)
    });
    mounts.map(PathBuf::from).collect()
}

/// Mount point of the first cgroup2 whose root is the whole tree, else of the first.
pub fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts: Vec<(&str, &str)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            (back.split(' ').next()? == "cgroup2").then_some((front.next()?, front.next()?))
        })
        .collect();
    let whole = mounts.iter().find(|(root, _)| *root == "/");
    whole.or(mounts.first()).map(|(_, point)| PathBuf::from(point))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any user of FUSE chooses the rest of a line.
        #[test]
        fn the_whole_tree_is_found_among_any_mounts(
            before in "([^\n]*\n){0,3}",
            kinds in prop::collection::vec("[a-z]{1,8}[.][ -~]{0,20}", 0..3),
        ) {
            let others = kinds.iter().map(|kind| format!("9 8 0:7 / /mnt rw - {kind} x rw\n"));
            let text = others.collect::<String>() + "29 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
            prop_assert_eq!(find_mount(&text), Some("/sys/fs/cgroup".into()));
            find_mount(&before);
        }
    }

    /// A FIFO without a writer would be waited for.
    #[test]
    fn what_is_no_directory_is_refused() {
        let path = std::env::temp_dir().join(format!("redirector-cgroup-{}", std::process::id()));
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).unwrap();
        assert!(Cgroup::open(&path).unwrap_err().to_string().contains("is no directory"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn hybrid_and_unified_mounts_are_found() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n\
                      31 23 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let unified = "29 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        let bind =
            "28 22 0:26 /pod1 /mnt rw - cgroup2 cgroup2 rw\n29 22 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n";
        assert_eq!(find_mount(bind).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_mount("28 22 0:26 / /proc rw - proc proc rw\n"), None);
    }
}
