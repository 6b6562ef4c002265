//! How a file names its target, and how the target is found on the node.

use std::path::{Path, PathBuf};

use super::pid_file::{self, Named};
use crate::agent::file_events::{Names, Signs};
use crate::base::error::{Error, Result};
use crate::pod::cgroup::{self, Cgroup};
use crate::pod::{Target, process};

/// A way to name a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPath {
    /// A cgroup v2 directory, and the file of the network namespace if the processes in the cgroup do
    /// not tell it.
    Cgroup {
        /// The directory.
        dir: PathBuf,
        /// The namespace's file.
        netns: Option<PathBuf>,
    },
    /// A systemd unit.
    Unit {
        /// Its full name, such as `shop.service`.
        name: String,
        /// The namespace's file.
        netns: Option<PathBuf>,
    },
    /// A file that holds a pid.
    PidFile {
        /// The file.
        file: PathBuf,
        /// The cgroup or unit in which its process must be, if others than root can write the file.
        within: Option<Box<TargetPath>>,
    },
}

impl TargetPath {
    /// The target; None if it is not there (yet).
    ///
    /// # Errors
    ///
    /// If it is there and cannot be captured.
    pub fn find(&self) -> Result<Option<Target>> {
        match self {
            Self::Cgroup { dir, netns } => in_cgroup(dir, netns.as_deref()),
            Self::Unit { name, netns } => match unit(&cgroup::mount()?, name)? {
                Some(dir) => in_cgroup(&dir, netns.as_deref()),
                None => Ok(None),
            },
            Self::PidFile { file, within } => by_pid_file(file, within.as_deref()),
        }
    }

    /// The cgroup, if it is there.
    fn directory(&self) -> Result<Option<PathBuf>> {
        match self {
            Self::Cgroup { dir, .. } => Ok(dir.exists().then(|| dir.clone())),
            Self::Unit { name, .. } => unit(&cgroup::mount()?, name),
            Self::PidFile { .. } => Ok(None),
        }
    }

    /// What is not there, where [`TargetPath::find`] finds nothing.
    pub fn missing(&self) -> String {
        let no_netns = |netns: &Option<PathBuf>| {
            let netns = netns.as_ref().filter(|netns| !netns.exists() || is_placeholder(netns));
            netns.map(|netns| format!("no network namespace {}", netns.display()))
        };
        let no_process = |what: String, netns: &Option<PathBuf>| {
            no_netns(netns).unwrap_or(format!("no process in {what}"))
        };
        match self {
            Self::Cgroup { dir, netns } if dir.exists() => {
                no_process(format!("the cgroup {}", dir.display()), netns)
            }
            Self::Cgroup { dir, .. } => format!("no cgroup {}", dir.display()),
            Self::Unit { name, netns } => match cgroup::mount().and_then(|mount| unit(&mount, name)) {
                Ok(Some(_)) => no_process(format!("the cgroup of the unit {name}"), netns),
                _ => format!("no cgroup of a unit {name}"),
            },
            Self::PidFile { file, .. } if file.exists() => {
                format!("no process that {} names", file.display())
            }
            Self::PidFile { file, .. } => format!("no pid file {}", file.display()),
        }
    }

    /// Whether the namespace's file is there and the namespace not mounted on it: `ip netns` is making or
    /// removing it, and no event will tell when it has.
    pub fn is_in_transition(&self) -> bool {
        match self {
            Self::Cgroup { netns: Some(netns), .. } | Self::Unit { netns: Some(netns), .. } => {
                is_placeholder(netns)
            }
            _ => false,
        }
    }

    /// What changes when the target appears or goes.
    pub fn signs(&self) -> Signs {
        let mut signs = Signs::new();
        let mut cgroup = |dir: &Path| {
            signs.insert(dir.join("cgroup.events"), Names::default());
            approach(dir, &mut signs);
        };
        match self {
            Self::Cgroup { dir, .. } => cgroup(dir),
            Self::Unit { name, .. } => {
                let mount = cgroup::mount().unwrap_or_default();
                match unit(&mount, name) {
                    Ok(Some(dir)) => cgroup(&dir),
                    // It appears in one of the slices, those to come included.
                    _ => slices(&mount).into_iter().for_each(|slice| {
                        let names = signs.entry(slice).or_default();
                        names.add(Names::one(name.as_ref()));
                        names.add(Names::suffix(".slice"));
                    }),
                }
            }
            Self::PidFile { file, within } => {
                approach(file, &mut signs);
                signs.extend(within.iter().flat_map(|within| within.signs()));
            }
        }
        if let Self::Cgroup { netns: Some(path), .. } | Self::Unit { netns: Some(path), .. } = self {
            approach(path, &mut signs);
        }
        signs
    }
}

/// Watches for a path where the first part of it that is not there will appear, or the path go.
fn approach(path: &Path, signs: &mut Signs) {
    let mut ancestors = path.ancestors();
    let mut part = ancestors.next();
    for dir in ancestors {
        if dir.is_dir() {
            let name = part.and_then(Path::file_name).unwrap_or_default();
            signs.entry(dir.to_owned()).or_default().add(Names::one(name));
            return;
        }
        part = Some(dir);
    }
}

fn is_placeholder(path: &Path) -> bool {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    let empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    empty && rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type != NSFS_MAGIC)
}

fn in_cgroup(dir: &Path, netns: Option<&Path>) -> Result<Option<Target>> {
    if !dir.exists() {
        return Ok(None);
    }
    match netns {
        Some(netns) if !netns.exists() || is_placeholder(netns) => Ok(None),
        Some(netns) => Target::of_paths(netns, dir).map(Some),
        None => Target::of_cgroup(Cgroup::open(dir)?),
    }
}

fn by_pid_file(path: &Path, within: Option<&TargetPath>) -> Result<Option<Target>> {
    let within = match within {
        Some(within) => match within.directory()? {
            Some(dir) => Some(dir),
            None => return Ok(None),
        },
        None => None,
    };
    let Some(Named { pid, is_roots }) = pid_file::read(path, within.as_deref())? else { return Ok(None) };
    if process::netns_inode(pid).is_none() {
        return Ok(None);
    }
    match within {
        None => Target::of_pid(pid).map(Some),
        Some(dir) if is_roots => in_cgroup(&dir, Some(&PathBuf::from(format!("/proc/{pid}/ns/net")))),
        // The process may be in a namespace that it has made itself.
        Some(dir) => in_cgroup(&dir, None),
    }
}

/// Cgroup of a systemd unit: the directory of its name in one of the slices. systemd names the cgroup of
/// a unit after it; only the slice is a matter of configuration.
fn unit(mount: &Path, name: &str) -> Result<Option<PathBuf>> {
    let found: Vec<PathBuf> =
        slices(mount).iter().map(|dir| dir.join(name)).filter(|dir| dir.is_dir()).collect();
    match found.as_slice() {
        [] => Ok(None),
        [dir] => Ok(Some(dir.clone())),
        several => Err(Error::input(format!(
            "several cgroups are named {name} ({})",
            several.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
        ))
        .remedy("say which with cgroup = \"...\"")),
    }
}

/// The root of the tree and every slice in it.
fn slices(mount: &Path) -> Vec<PathBuf> {
    let mut all = vec![mount.to_owned()];
    let mut next = 0;
    while let Some(dir) = all.get(next) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "slice"))
            .collect();
        all.extend(below);
        next += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::Kind;

    #[test]
    fn a_unit_is_found_in_whatever_slice_it_is() {
        let root = std::env::temp_dir().join(format!("redirector-slices-{}", std::process::id()));
        let home = root.join("system.slice/system-shop.slice/shop.service");
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(root.join("system.slice/other.service/shop.service")).unwrap();
        assert_eq!(unit(&root, "shop.service").unwrap(), Some(home));
        assert_eq!(unit(&root, "none.service").unwrap(), None);
        std::fs::create_dir_all(root.join("user.slice/shop.service")).unwrap();
        assert_eq!(unit(&root, "shop.service").unwrap_err().kind(), Kind::Input);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_namespace_that_is_being_made() {
        let file = std::env::temp_dir().join(format!("redirector-placeholder-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        assert!(is_placeholder(&file));
        std::fs::write(&file, "something else").unwrap();
        assert!(!is_placeholder(&file));
        std::fs::remove_file(&file).unwrap();
        assert!(!is_placeholder(&file) && !is_placeholder(Path::new("/proc/self/ns/net")));
    }

    #[test]
    fn what_is_not_there_is_waited_for_where_it_will_appear() {
        let path = TargetPath::Cgroup { dir: "/proc/self/none/such".into(), netns: None };
        assert!(path.find().unwrap().is_none());
        let signs = path.signs();
        assert_eq!(signs.get(Path::new("/proc/self")), Some(&Names::one("none".as_ref())));
    }
}
