//! What was asked for, kept with the instance: JSON in an array map, because bpffs holds no files.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use redirector_common::abi::Slot;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::error::{Context, Error, Result, chain};
use crate::netdev::time_wait::TimeWaitBound;
use crate::pod::Target;
use crate::pod::name::PodName;
use crate::policy::Policy;
use crate::programs::object;

/// What an instance was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Version of the program that wrote this.
    pub version: String,
    /// [`object::ID`] of the programs that it runs; empty in a record of before there was one.
    #[serde(default)]
    pub programs: String,
    /// The namespace file that was given.
    pub netns: PathBuf,
    /// The cgroup.
    pub cgroup: PathBuf,
    /// The process that was given, if one was.
    pub pid: Option<u32>,
    /// The pod of Kubernetes that it is, if it is known to be one.
    #[serde(default)]
    pub pod: Option<PodName>,
    /// What attach made of the namespace's bound on TIME_WAIT sockets, if it lowered it.
    #[serde(default)]
    pub time_wait: Option<TimeWaitBound>,
    /// The policy after all defaults.
    pub policy: Policy,
}

impl Record {
    /// What an instance for this target and policy is made from.
    pub fn of(target: &Target, policy: &Policy) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            programs: object::ID.to_owned(),
            netns: target.netns_path.clone(),
            cgroup: target.cgroup.path.clone(),
            pid: target.pid,
            pod: target.pod.clone(),
            time_wait: None,
            policy: policy.clone(),
        }
    }
}

const CHUNK: usize = 4096;

/// Name of the pin for a policy slot.
pub fn pin_name(slot: Slot) -> String {
    format!("RECORD_{}", slot.index() + 1)
}

/// Writes the record of a policy slot into an instance's directory, replacing an older one.
pub fn write(dir: &Path, slot: Slot, record: &Record) -> Result<()> {
    let mut bytes =
        serde_json::to_vec(record).map_err(|e| Error::failed(format!("serialise the record: {e}")))?;
    // Zeroes after the JSON end it.
    bytes.resize(bytes.len().next_multiple_of(CHUNK), 0);
    let path = dir.join(pin_name(slot));
    let entries = (bytes.len() / CHUNK) as u32;
    let mut map: Array<MapData, [u8; CHUNK]> =
        Array::create(entries, 0).context(|| "create the record's map".into())?;
    for (index, chunk) in bytes.chunks_exact(CHUNK).enumerate() {
        let mut value = [0; CHUNK];
        value.copy_from_slice(chunk);
        map.set(index as u32, value, 0).context(|| "write the record".into())?;
    }
    remove(dir, slot)?;
    map.pin(&path).map_err(|e| Error::failed(format!("pin {}: {}", path.display(), chain(&e))))
}

/// Removes the record of a slot, if there is one.
pub fn remove(dir: &Path, slot: Slot) -> Result<()> {
    let path = dir.join(pin_name(slot));
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Reads the record of a policy slot.
pub fn read(dir: &Path, slot: Slot) -> Result<Record> {
    let path = dir.join(pin_name(slot));
    let data = MapData::from_pin(&path).context(|| format!("open {}", path.display()))?;
    let map: Array<MapData, [u8; CHUNK]> =
        Array::try_from(Map::Array(data)).context(|| format!("read {}", path.display()))?;
    let mut bytes = Vec::new();
    for chunk in map.iter() {
        bytes.extend(chunk.context(|| format!("read {}", path.display()))?);
    }
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    serde_json::from_slice(&bytes[..end])
        .map_err(|e| Error::failed(format!("{}: not a record of this version: {e}", path.display())))
}

/// The record of a slot; None if there is none, or none that makes sense.
///
/// # Errors
///
/// If it cannot be read now.
pub fn find(dir: &Path, slot: Slot) -> Result<Option<Record>> {
    match read(dir, slot) {
        Err(e) if e.is_no_verdict() => Err(e),
        other => Ok(other.ok()),
    }
}

/// The records of both slots: of the policy in force and, if a change was killed, of another.
///
/// # Errors
///
/// If one cannot be read now.
pub fn all(dir: &Path) -> Result<Vec<Record>> {
    Slot::BOTH.into_iter().filter_map(|slot| find(dir, slot).transpose()).collect()
}
