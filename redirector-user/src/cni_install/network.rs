//! Which files of the runtime's directory describe the network of pods.
//!
//! Files count in the order of their names (libcni: `.conflist`, `.conf`, `.json`). containerd takes the first and stops
//! if it is unusable (`loadFromConfDir` of go-cni). CRI-O passes over unusable ones, and over those that name a plugin
//! which it does not find (`loadNetworks` of ocicni). So that both find the entry, every file gets it up to the first that
//! is sure to be taken.

use std::path::{Path, PathBuf};

use super::files;
use super::list::List;
use crate::base::error::{Context, Error, Result};

/// A file that a runtime can use.
pub struct Network {
    pub path: PathBuf,
    pub list: List,
}

/// What a directory holds.
#[derive(Default)]
pub struct Networks {
    /// Those that a runtime on this node may take.
    pub chosen: Vec<Network>,
    /// Files that no runtime takes, and why.
    pub unusable: Vec<String>,
}

/// Finds the networks that pods may get: of this name, if it is given.
///
/// # Errors
///
/// If a file cannot be read: it may be the one that the runtime takes.
pub fn find(conf_dir: &Path, bin_dir: &Path, name: Option<&str>) -> Result<Networks> {
    let mut found = Networks::default();
    for path in configurations(conf_dir)? {
        if !path.exists() && path.is_symlink() {
            return Err(Error::failed(format!("{} is a link to a file that is not there", path.display()))
                .remedy("remove it, or mount its directory for the agent, too"));
        }
        let list = match List::parse(&files::read(&path)?, is_list(&path)) {
            Ok(list) => list,
            Err(why) => {
                found.unusable.push(format!("{} is no network: {why}", path.display()));
                continue;
            }
        };
        if name.is_some_and(|name| list.name().as_deref() != Some(name)) {
            continue;
        }
        let is_sure = list.types().all(|kind| bin_dir.join(kind).exists());
        found.chosen.push(Network { path, list });
        if is_sure {
            break;
        }
    }
    Ok(found)
}

/// All configurations in the order of the runtime.
pub fn configurations(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).context(|| format!("read {}", dir.display()))?;
    let is_configuration = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") && !path.is_dir()
    };
    let mut all: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_configuration).collect();
    all.sort();
    Ok(all)
}

/// Whether a runtime has a network there at all.
///
/// # Errors
///
/// If the directory cannot be read.
pub fn has_network(dir: &Path) -> Result<bool> {
    Ok(!configurations(dir)?.is_empty())
}

/// The first file that is a network, and whether it has our entry.
pub fn first_network(dir: &Path) -> Option<(PathBuf, bool)> {
    let parsed = |path: PathBuf| {
        let list = List::parse(&files::read(&path).ok()?, is_list(&path)).ok()?;
        Some((path, list.has_ours()))
    };
    configurations(dir).ok()?.into_iter().find_map(parsed)
}

pub fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

/// Whether a file is a list that holds our entry.
pub(super) fn has_ours(path: &Path) -> bool {
    files::read(path).is_ok_and(|text| List::parse(&text, true).is_ok_and(|list| list.has_ours()))
}
