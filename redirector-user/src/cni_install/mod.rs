//! Putting the plugin onto a node and taking it off again: the binary, and its entry in the list of
//! plugins that the runtime uses.
//!
//! The runtime takes the first file by name (libcni: `.conflist`, `.conf`, `.json`). Every other byte of
//! the list stays; what was there before is kept beside it, so that a node is left as it was.

use crate::base::error::{Context, Error, Result};
use crate::cni::protocol::CNI_VERSIONS;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Name of the binary, and the plugin's type.
pub const TYPE: &str = "redirector";
/// What was there before; the runtime ignores files that end so.
const SAVED: &str = ".before-redirector";

/// Where the plugin goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Directory of the plugins' binaries.
    pub bin_dir: PathBuf,
    /// Directory of the configurations.
    pub conf_dir: PathBuf,
    /// The agent's socket, as the plugin will see it.
    pub socket: PathBuf,
    /// Pods of these namespaces start without asking the agent.
    pub exclude_namespaces: Vec<String>,
}

/// What [`install`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything was in place.
    Unchanged,
    /// This has been written.
    Written(PathBuf),
    /// There is no configuration to chain to yet.
    NoNetwork,
}

/// Installs the plugin, or does nothing if it is installed: to be called as often as one likes.
///
/// # Errors
///
/// If a file cannot be read or written, or is not what it should be. The node is then as it was.
pub fn install(places: &Places) -> Result<State> {
    sweep([&places.bin_dir, &places.conf_dir])?;
    install_binary(&places.bin_dir)?;
    let Some(path) = first(&places.conf_dir)? else { return Ok(State::NoNetwork) };
    let text = read(&path)?;
    let list = List::parse(&text, &path)?;
    if let Err(e) = list.check_version(&path) {
        // Somebody has changed the version under us: without our entry pods start again.
        if list.has_ours() {
            take_out(&path, &list)?;
        }
        return Err(e);
    }
    let next = list.with(&entry(places)?);
    if is_list(&path) && next == list {
        return Ok(State::Unchanged);
    }
    let target = path.with_extension("conflist");
    if !list.has_ours() {
        write(&saved(&path), text.as_bytes(), 0o600)?;
    }
    let text = serde_json::to_string_pretty(&next).map_err(|e| Error::failed(format!("serialise: {e}")))?;
    write(&target, format!("{text}\n").as_bytes(), 0o600)?;
    if target != path {
        // It would come first; its text is kept.
        std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    }
    Ok(State::Written(target))
}

/// Takes the plugin off the node; says what it did. Nothing to do is no error.
///
/// # Errors
///
/// If a file cannot be read or written.
pub fn uninstall(bin_dir: &Path, conf_dir: &Path) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for path in configurations(conf_dir)?.into_iter().filter(|path| is_list(path)) {
        let Ok(list) = read(&path).and_then(|text| List::parse(&text, &path)) else { continue };
        if list.has_ours() {
            done.push(take_out(&path, &list)?);
        }
    }
    for entry in std::fs::read_dir(conf_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(SAVED) {
            remove(&entry.path())?;
        }
    }
    sweep([bin_dir, conf_dir])?;
    // Last: the runtime must not find an entry without its binary.
    if remove(&bin_dir.join(TYPE))? {
        done.push(format!("removed {}", bin_dir.join(TYPE).display()));
    }
    Ok(done)
}

fn take_out(path: &Path, list: &List) -> Result<String> {
    let without = list.without();
    // What was there before, if nobody has changed it since; it may have been a single plugin's file.
    for kind in ["conflist", "conf", "json"] {
        let before = path.with_extension(kind);
        let Ok(text) = read(&saved(&before)) else { continue };
        if List::parse(&text, &before).is_ok_and(|old| old.same(&without)) {
            write(&before, text.as_bytes(), 0o600)?;
            if before != path {
                remove(path)?;
            }
            return Ok(format!("restored {}", before.display()));
        }
    }
    let text =
        serde_json::to_string_pretty(&without).map_err(|e| Error::failed(format!("serialise: {e}")))?;
    write(path, format!("{text}\n").as_bytes(), 0o600)?;
    Ok(format!("took redirector out of {}", path.display()))
}

/// Our entry.
fn entry(places: &Places) -> Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct Entry<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        socket: &'a Path,
        #[serde(rename = "excludeNamespaces", skip_serializing_if = "<[_]>::is_empty")]
        exclude_namespaces: &'a [String],
    }
    let entry = Entry { kind: TYPE, socket: &places.socket, exclude_namespaces: &places.exclude_namespaces };
    to_raw_value(&entry).map_err(|e| Error::failed(format!("serialise: {e}")))
}

fn install_binary(bin_dir: &Path) -> Result<()> {
    let path = bin_dir.join(TYPE);
    let mut compared = COMPARED.lock().unwrap_or_else(PoisonError::into_inner);
    if compared.is_some() && *compared == stamp(&path) {
        return Ok(());
    }
    let me = std::fs::read("/proc/self/exe").context(|| "read the own binary".into())?;
    let executable = std::fs::metadata(&path).is_ok_and(|there| there.permissions().mode() & 0o111 == 0o111);
    match std::fs::read(&path) {
        Ok(there) if there == me && executable => {}
        _ => write(&path, &me, 0o755)?,
    }
    *compared = stamp(&path);
    Ok(())
}

/// The file that was found to be our binary: not to read both each time anything happens on the node.
static COMPARED: Mutex<Option<Stamp>> = Mutex::new(None);

/// Path, mode, device, inode, size and time of the last change, which some kernels tell by ticks.
type Stamp = (PathBuf, u32, [u64; 3], [i64; 2]);

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    let which = [file.dev(), file.ino(), file.size()];
    Some((path.to_owned(), file.mode(), which, [file.ctime(), file.ctime_nsec()]))
}

/// Removes what a process that was killed has left beside the files it was about to replace.
fn sweep(dirs: [&Path; 2]) -> Result<()> {
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if is_leftover(&entry.file_name().to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Whether a name is one that [`write`] gives to a new file, of another process.
fn is_leftover(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")?.rsplit_once('.'));
    parts.is_some_and(|(of, pid)| {
        let ours = of == TYPE || of.ends_with(SAVED) || of.ends_with(".conflist") || of.ends_with(".conf");
        ours && pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id())
    })
}

/// Configurations in the order of the runtime.
fn configurations(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).context(|| format!("read {}", dir.display()))?;
    let known = |path: &PathBuf| {
        path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") && path.is_file()
    };
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
    all.sort();
    Ok(all)
}

fn first(dir: &Path) -> Result<Option<PathBuf>> {
    Ok(configurations(dir)?.into_iter().next())
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(SAVED);
    path.with_file_name(name)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).context(|| format!("read {}", path.display()))
}

fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other.context(|| format!("remove {}", path.display())).map(|()| true),
    }
}

/// Writes beside and renames: whoever reads meanwhile sees the old file or the new one, whole.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mode = std::fs::metadata(path).map_or(mode, |there| there.permissions().mode() & 0o777 | mode);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let next = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let result = (|| {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&next, path)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    result.context(|| format!("write {}", path.display()))
}

/// A list of plugins: its keys in their order, every value as it is written.
#[derive(Clone, Debug)]
struct List {
    keys: Object,
    plugins: Vec<Box<RawValue>>,
}

/// The keys of an object in their order.
#[derive(Clone, Debug)]
struct Object(Vec<(String, Box<RawValue>)>);

impl List {
    /// Reads a list, or makes one of a single plugin's configuration, as libcni does (`ConfListFromConf`).
    fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |why: String| Error::input(format!("{} is no CNI configuration: {why}", path.display()));
        let Object(keys): Object = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if !is_list(path) {
            let single = to_raw_value(&Object(keys.clone())).map_err(|e| wrong(e.to_string()))?;
            let keys =
                keys.into_iter().filter(|(key, _)| matches!(key.as_str(), "cniVersion" | "name")).collect();
            return Ok(Self { keys: Object(keys), plugins: vec![single] });
        }
        let at = keys.iter().position(|(key, _)| key == "plugins");
        let at = at.ok_or_else(|| wrong("it has no plugins".into()))?;
        let plugins = serde_json::from_str(keys[at].1.get()).map_err(|e| wrong(format!("plugins: {e}")))?;
        let keys = keys.into_iter().filter(|(key, _)| key != "plugins").collect();
        Ok(Self { keys: Object(keys), plugins })
    }

    /// A runtime gives the list's version to every plugin, and one that is none of ours fails each ADD of the node.
    fn check_version(&self, path: &Path) -> Result<()> {
        let text = |value: &RawValue| serde_json::from_str::<String>(value.get()).ok().into_iter().collect();
        let list = |value: &RawValue| serde_json::from_str::<Vec<String>>(value.get()).unwrap_or_default();
        let said: Vec<String> = self.keys.0.iter().fold(Vec::new(), |mut said, (key, value)| {
            said.extend(match key.as_str() {
                "cniVersion" => text(value),
                "cniVersions" => list(value),
                _ => Vec::new(),
            });
            said
        });
        if said.iter().any(|version| CNI_VERSIONS.contains(&version.as_str())) {
            return Ok(());
        }
        Err(Error::input(format!(
            "{} has cniVersion {said:?}, and redirector can be chained in lists of {}; no pod would start, so it is left \
             as it is, and pods start uncaptured until the agent has seen them",
            path.display(),
            CNI_VERSIONS.join(", ")
        )))
    }

    fn has_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| is_ours(plugin))
    }

    fn without(&self) -> Self {
        let plugins = self.plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
        Self { keys: self.keys.clone(), plugins }
    }

    /// With our entry at the end: after all that make interfaces and addresses.
    fn with(&self, entry: &RawValue) -> Self {
        let mut list = self.without();
        list.plugins.push(entry.to_owned());
        list
    }

    /// The same but for blanks and order.
    fn same(&self, other: &Self) -> bool {
        let value = |list: &Self| serde_json::to_value(list).ok();
        value(self).is_some() && value(self) == value(other)
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        // Ours must be last, and be as we write it.
        self.same(other)
            && self.plugins.last().map(|p| is_ours(p)) == other.plugins.last().map(|p| is_ours(p))
    }
}

fn is_ours(plugin: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: String,
    }
    serde_json::from_str::<Typed>(plugin.get()).is_ok_and(|plugin| plugin.kind == TYPE)
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in &self.keys.0 {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("plugins", &self.plugins)?;
        map.end()
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut keys = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    keys.push(pair);
                }
                Ok(Object(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

#[cfg(test)]
mod tests;
