//! A file that holds a pid, and whom it can be believed to name.
//!
//! A user who can write the file, or replace it or a directory or link on the way to it, chooses the process. What only root
//! can write may name any. Else the rule is systemd's for PIDFile=: the process must be the owner's, and in the unit or
//! cgroup that the target names beside it. What is in the file is never repeated in a message: it may be a link to
//! anything.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::base::error::{Context, Error, Result};
use crate::pod::cgroup::Cgroup;

const MAX_LINKS: u32 = 40;

/// Whom a pid file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub pid: u32,
    /// Root alone has chosen the process, and so its namespace.
    pub is_roots: bool,
}

/// The pid in a file that may name it; None if the file, the pid or the process is not there (yet).
///
/// # Errors
///
/// If it holds no pid, or names a process that its writer has no right to name.
pub fn read(path: &Path, within: Option<&Path>) -> Result<Option<Named>> {
    let (file, writers) = match resolve(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("find the pid file {}", path.display()))?,
    };
    let text = match crate::base::input::file(&file) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("read the pid file {}", path.display()))?,
    };
    // Programs make the file first and write it then.
    if text.trim().is_empty() {
        return Ok(None);
    }
    let pid: u32 =
        text.trim().parse().map_err(|_| Error::input(format!("{} holds no pid", path.display())))?;
    let Some(owner) = owner(pid) else { return Ok(None) };
    let inside = match within {
        Some(dir) => Cgroup::open(dir)?.processes()?.contains(&pid),
        None => false,
    };
    judge(path, &writers, owner, within, inside)
        .map(|()| Some(Named { pid, is_roots: writers.users.is_empty() }))
}

/// Who can choose what a path leads to, besides root.
#[derive(Debug, Default, PartialEq, Eq)]
struct Writers {
    users: BTreeSet<u32>,
    /// A group, or everybody.
    others: bool,
}

fn judge(path: &Path, writers: &Writers, owner: u32, within: Option<&Path>, inside: bool) -> Result<()> {
    let path = path.display();
    if writers.others {
        return Err(Error::input(format!("the pid file {path} can be written by more than its owner"))
            .remedy("keep it where only root or the service can write"));
    }
    if writers.users.is_empty() {
        return Ok(());
    }
    let Some(within) = within else {
        return Err(Error::input(format!("the pid file {path} can be written by user {:?}", writers.users))
            .remedy("name the unit or the cgroup of the process beside pid_file, or keep the file where only root can write"));
    };
    if !inside {
        return Err(Error::input(format!("the process that {path} names is not in {}", within.display())));
    }
    if !writers.users.iter().all(|user| *user == owner) {
        return Err(Error::input(format!(
            "{path} can be written by user {:?}, and names a process of user {owner}",
            writers.users
        )));
    }
    Ok(())
}

/// The user of a process that has one user only: 0 if its users differ.
fn owner(pid: u32) -> Option<u32> {
    let status = crate::base::input::of_the_kernel(format!("/proc/{pid}/status")).ok()?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let uids: BTreeSet<u32> = uids.split_ascii_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    if uids.len() == 1 { uids.first().copied() } else { Some(0) }
}

/// Follows a path, and notes who can write to each directory and link on the way, and to the file at its end.
fn resolve(path: &Path) -> std::io::Result<(PathBuf, Writers)> {
    let mut writers = Writers::default();
    let mut rest: Vec<std::ffi::OsString> = components(path);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let dir = std::fs::symlink_metadata(&at)?;
        let next = at.join(&name);
        let found = std::fs::symlink_metadata(&next)?;
        // In a sticky directory everybody makes files, and only their owner replaces them.
        let is_sticky = dir.mode() & 0o1000 != 0;
        writers.add(&dir, is_sticky);
        if !found.is_symlink() {
            // A directory counts when something is looked up in it.
            if rest.is_empty() {
                writers.add(&found, false);
            }
            at = next;
            continue;
        }
        writers.add_owner(&found);
        links += 1;
        if links > MAX_LINKS {
            return Err(std::io::Error::from_raw_os_error(libc::ELOOP));
        }
        let target = std::fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        rest.extend(components(&target));
    }
    Ok((at, writers))
}

/// The names of a path, the first at the end.
fn components(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

impl Writers {
    fn add(&mut self, file: &std::fs::Metadata, is_sticky: bool) {
        self.add_owner(file);
        let by_group = file.mode() & 0o020 != 0 && file.gid() != 0;
        self.others |= !is_sticky && (by_group || file.mode() & 0o002 != 0);
    }

    fn add_owner(&mut self, file: &std::fs::Metadata) {
        if file.uid() != 0 {
            self.users.insert(file.uid());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn whoever_can_write_on_the_way_chooses() {
        let dir = std::env::temp_dir().join(format!("redirector-pid-file-{}", std::process::id()));
        let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        // As the kubelet writes a ConfigMap: the file is a link through a link.
        let versioned = dir.join("..2026_11_30");
        std::fs::create_dir_all(&versioned).unwrap();
        mode(&dir, 0o755);
        mode(&versioned, 0o755);
        let (file, link) = (versioned.join("pid"), dir.join("pid"));
        std::fs::write(&file, "1").unwrap();
        mode(&file, 0o644);
        symlink("..2026_11_30", dir.join("..data")).unwrap();
        symlink("..data/../..data/pid", &link).unwrap();
        let own = std::fs::metadata(&file).unwrap().uid();
        let users: BTreeSet<u32> = [own].into_iter().filter(|uid| *uid != 0).collect();
        for path in [&file, &link] {
            let (found, writers) = resolve(path).unwrap();
            assert_eq!((found, &writers), (file.clone(), &Writers { users: users.clone(), others: false }));
        }
        for path in [&file, &versioned] {
            let before = std::fs::metadata(path).unwrap().mode() & 0o777;
            mode(path, before | 0o002);
            assert!(resolve(&link).unwrap().1.others, "{}", path.display());
            mode(path, before);
        }
        symlink("loop", dir.join("loop")).unwrap();
        assert!(resolve(&dir.join("loop")).is_err());
        assert_eq!(resolve(&dir.join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_of_a_user_names_his_own_processes_of_the_unit() {
        let of = |users: &[u32]| Writers { users: users.iter().copied().collect(), others: false };
        let (path, dir) = (Path::new("/run/shop.pid"), Some(Path::new("/sys/fs/cgroup/shop")));
        assert!(judge(path, &of(&[]), 1001, None, false).is_ok());
        assert!(judge(path, &of(&[1000]), 1000, dir, true).is_ok());
        for (writers, owner, within, inside) in [
            (of(&[1000]), 1000, None, false),
            (of(&[1000]), 1000, dir, false),
            (of(&[1000]), 1001, dir, true),
            (of(&[1000]), 0, dir, true),
            (of(&[1000, 1001]), 1000, dir, true),
            (Writers { others: true, ..Writers::default() }, 0, dir, true),
        ] {
            let error = judge(path, &writers, owner, within, inside).unwrap_err();
            assert!(error.to_string().contains("shop.pid"), "{error}");
        }
    }
}
