//! Installing the plugin: its binary, and its entry in each list that a runtime takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::list::List;
use super::network::{self, Network, has_ours};
use super::uninstall::take_out;
use super::{binary, files};
use crate::base::error::{Context, Error, Result};
use crate::cni::protocol::{PLUGIN_TYPE, POD_ANNOTATIONS};

/// Where the plugin goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The program that becomes the plugin's binary.
    pub program: PathBuf,
    /// Directory of the plugins' binaries.
    pub bin_dir: PathBuf,
    /// Directory of the configurations.
    pub conf_dir: PathBuf,
    /// Name of the network of pods; None: the one that the runtime takes.
    pub network: Option<String>,
    /// The agent's socket, as the plugin will see it.
    pub socket: PathBuf,
    /// Pods of these namespaces start without asking the agent.
    pub exclude_namespaces: Vec<String>,
}

/// What [`install`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Lists that have got the entry now.
    pub written: Vec<PathBuf>,
    /// What else there is to say: files that no runtime takes.
    pub notes: Vec<String>,
}

/// Installs the plugin, or does nothing if it is installed.
///
/// # Errors
///
/// If there is no network to chain to, or if a file cannot be read or written.
pub fn install(places: &Places) -> Result<Installed> {
    files::sweep([&places.bin_dir, &places.conf_dir])?;
    binary::install(&places.program, &places.bin_dir)?;
    let networks = network::find(&places.conf_dir, &places.bin_dir, places.network.as_deref())?;
    if networks.chosen.is_empty() {
        return Err(no_network(places, &networks.unusable));
    }
    let entry = entry(places)?;
    let mut written = Vec::new();
    for network in &networks.chosen {
        written.extend(chain(network, &entry)?);
    }
    Ok(Installed { written, notes: networks.unusable })
}

/// Whether the plugin could be installed: directories that can be written to, and a network.
///
/// # Errors
///
/// If it could not.
pub fn check(places: &Places) -> Result<()> {
    for dir in [&places.bin_dir, &places.conf_dir] {
        access(dir, Access::WRITE_OK | Access::EXEC_OK).context(|| format!("write to {}", dir.display()))?;
    }
    let networks = network::find(&places.conf_dir, &places.bin_dir, places.network.as_deref())?;
    if networks.chosen.is_empty() {
        return Err(no_network(places, &networks.unusable));
    }
    Ok(())
}

fn no_network(places: &Places, unusable: &[String]) -> Error {
    let named = places.network.as_ref().map(|name| format!(" named {name:?}")).unwrap_or_default();
    let dir = places.conf_dir.display();
    let what = format!("there is no network's configuration{named} in {dir} to chain to");
    match unusable {
        [] => Error::failed(what),
        reasons => Error::failed(format!("{what}: {}", reasons.join("; "))),
    }
}

/// Gives a network our entry; returns the file that was written.
fn chain(Network { path, list }: &Network, entry: &RawValue) -> Result<Option<PathBuf>> {
    if let Err(e) = list.check_version(path) {
        // The version has changed after the entry was made: with it no pod would start.
        if list.has_ours() {
            take_out(path, list)?;
        }
        return Err(e);
    }
    let next = linked_original(path, list)?.as_ref().unwrap_or(list).with(entry);
    if network::is_list(path) && next == *list {
        return Ok(None);
    }
    let target = path.with_extension("conflist");
    if target != *path && std::fs::symlink_metadata(&target).is_ok() && !has_ours(&target) {
        return Err(Error::failed(format!(
            "{} would become {}, which is another network",
            path.display(),
            target.display()
        ))
        .remedy("remove one of the two"));
    }
    if !list.has_ours() {
        files::save(path)?;
    }
    let like = std::fs::metadata(path).ok();
    files::write(&target, next.text()?.as_bytes(), 0o600, like.as_ref())?;
    if target != *path {
        // It would come first; it is kept.
        files::remove(path)?;
    }
    Ok(Some(target))
}

/// What a list was made of, if that was a link: the file behind it may have changed since.
fn linked_original(path: &Path, list: &List) -> Result<Option<List>> {
    let Some(original) = files::originals(path).find(|path| files::saved(path).is_symlink()) else {
        return Ok(None);
    };
    if !list.has_ours() {
        return Ok(None);
    }
    let saved = files::saved(&original);
    let list = List::parse(&files::read(&saved)?, network::is_list(&original));
    list.map(Some).map_err(|why| Error::failed(format!("{} is no network: {why}", saved.display())))
}

/// Types of the other plugins of a list.
pub fn other_plugins(path: &Path) -> Vec<String> {
    let list = files::read(path).ok().and_then(|text| List::parse(&text, true).ok());
    list.iter().flat_map(List::types).collect()
}

/// Files outside of the directory that lists of ours are made of.
pub fn linked_files(conf_dir: &Path) -> Vec<PathBuf> {
    let saved = files::all_saved(conf_dir).into_iter().map(|path| files::saved(&path));
    saved.filter(|path| path.is_symlink()).filter_map(|path| path.canonicalize().ok()).collect()
}

/// Our entry.
fn entry(places: &Places) -> Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        socket: &'a Path,
        #[serde(rename = "confDir")]
        conf_dir: &'a Path,
        capabilities: BTreeMap<&'a str, bool>,
        #[serde(rename = "excludeNamespaces", skip_serializing_if = "<[_]>::is_empty")]
        exclude_namespaces: &'a [String],
    }
    let Places { socket, conf_dir, exclude_namespaces, .. } = places;
    let capabilities = BTreeMap::from([(POD_ANNOTATIONS, true)]);
    let entry = Entry { kind: PLUGIN_TYPE, socket, conf_dir, capabilities, exclude_namespaces };
    to_raw_value(&entry).map_err(|e| Error::failed(format!("serialise: {e}")))
}
