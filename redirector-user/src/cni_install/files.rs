//! Files of the runtime: replaced whole, kept beside, and put back with bytes, mode, owner and kind.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::base::error::{Context, Result};
use crate::cni::protocol::PLUGIN_TYPE;

/// A file that was replaced is kept under its name with this at the end, which the runtime ignores.
const SAVED: &str = ".before-redirector";
const NEW: &str = ".new";

/// Where a replaced file is kept.
pub fn saved(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(SAVED);
    path.with_file_name(name)
}

/// All kept files of a directory, by the names they had.
pub fn all_saved(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| Some(dir.join(name.to_str()?.strip_suffix(SAVED)?))).collect()
}

/// Keeps a file or a symbolic link. A hard link is the file itself, with its mode, owner and labels.
pub fn save(path: &Path) -> Result<()> {
    let next = new_name(&saved(path));
    remove(&next)?;
    let linked = std::fs::hard_link(path, &next).and_then(|()| std::fs::rename(&next, saved(path)));
    // rename(2) does nothing if both are one file.
    remove(&next)?;
    linked.context(|| format!("keep {} as {}", path.display(), saved(path).display()))
}

/// Puts a kept file back.
pub fn restore(path: &Path) -> Result<()> {
    std::fs::rename(saved(path), path).context(|| format!("restore {}", path.display()))
}

/// A regular file of at most 1 MiB, or a link to one.
pub fn read(path: &Path) -> Result<String> {
    crate::base::input::file(path).context(|| format!("read {}", path.display()))
}

/// True if there was a file.
pub fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other.context(|| format!("remove {}", path.display())).map(|()| true),
    }
}

/// Writes beside and renames: a reader sees the old file or the new one, whole. `like` gives the owner, and its mode is
/// added to `mode`.
pub fn write(path: &Path, bytes: &[u8], mode: u32, like: Option<&Metadata>) -> Result<()> {
    let next = new_name(path);
    let result = write_new(&next, bytes, mode, like).and_then(|()| std::fs::rename(&next, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    result.context(|| format!("write {}", path.display()))
}

/// The file is closed before it has its name: execve(2) of a file that is open for writing fails with ETXTBSY.
fn write_new(path: &Path, bytes: &[u8], mode: u32, like: Option<&Metadata>) -> std::io::Result<()> {
    let mode = like.map_or(mode, |like| like.mode() & 0o777 | mode);
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let own = file.metadata()?;
    if let Some(like) = like.filter(|like| (like.uid(), like.gid()) != (own.uid(), own.gid())) {
        // Without CAP_CHOWN the file is root's until the kept one is back.
        let _ = chown(path, Some(like.uid()), Some(like.gid()));
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Removes what a process that was killed has left beside the files it was about to replace.
pub fn sweep(dirs: [&Path; 2]) -> Result<()> {
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if is_leftover(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn new_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}{NEW}", std::process::id()))
}

/// Whether a name is one that [`new_name`] gives in another process.
fn is_leftover(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|name| name.strip_suffix(NEW)?.rsplit_once('.'));
    parts.is_some_and(|(of, pid)| {
        let ours =
            of == PLUGIN_TYPE || of.ends_with(SAVED) || of.ends_with(".conflist") || of.ends_with(".conf");
        ours && pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id())
    })
}

/// The files that a list may have been made of.
pub(super) fn originals(list: &Path) -> impl Iterator<Item = PathBuf> {
    ["conflist", "conf", "json"].into_iter().map(|kind| list.with_extension(kind))
}
