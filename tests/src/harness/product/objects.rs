//! The kernel's objects of an instance, by their pins and by `bpftool`.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::bpffs::Bpffs;
use super::runs;
use crate::harness::command::{output, run};
use crate::harness::retry;
use crate::harness::world::Pod;
use crate::harness::world::netns::Netns;

/// Detaches the link of a pin, as somebody with the privileges may do behind our back. The pin stays.
pub fn detach_link(pin: &Path) -> anyhow::Result<()> {
    run(Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin), "").map(drop)
}

/// Programs, maps and links, by their ids, which are never used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub programs: BTreeSet<u64>,
    pub maps: BTreeSet<u64>,
    pub links: BTreeSet<u64>,
}

impl Objects {
    /// Of an instance alone: what is pinned in its directory, without what it shares.
    pub fn of(bpffs: &Bpffs, name: &str) -> anyhow::Result<Self> {
        let (own, shared) = (Self::pinned(&bpffs.instance(name))?, Self::shared(bpffs)?);
        let of_one = |own: BTreeSet<u64>, shared: &BTreeSet<u64>| own.difference(shared).copied().collect();
        Ok(Self {
            programs: of_one(own.programs, &shared.programs),
            maps: of_one(own.maps, &shared.maps),
            links: own.links,
        })
    }

    /// What the instances of a bpffs share.
    pub fn shared(bpffs: &Bpffs) -> anyhow::Result<Self> {
        Self::pinned(&bpffs.instance("NODE-2"))
    }

    /// Those of a directory's pins.
    pub fn pinned(directory: &Path) -> anyhow::Result<Self> {
        let mut objects = Self::default();
        for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let path = entry.path();
            if path.is_dir() {
                objects.extend(Self::pinned(&path)?);
                continue;
            }
            // `prog_array_map_clear` loses a reference if another process lists all maps meanwhile: the kernel keeps it.
            if entry.file_name().to_string_lossy().starts_with("SK_LOOKUP") {
                continue;
            }
            let object = runs::pinned_object(&path).with_context(|| path.display().to_string())?;
            // A link tells its program, too.
            let kinds = [
                ("link_id", &mut objects.links),
                ("map_id", &mut objects.maps),
                ("prog_id", &mut objects.programs),
            ];
            for (name, ids) in kinds {
                if let Some(id) = runs::fdinfo(&object, name)? {
                    ids.insert(id);
                    break;
                }
            }
        }
        Ok(objects)
    }

    /// Takes in those of another instance.
    pub fn extend(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    /// Those that the kernel still has.
    pub fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        for (kind, ids) in [("prog", &self.programs), ("map", &self.maps), ("link", &self.links)] {
            let there: BTreeSet<u64> =
                list(kind)?.iter().filter_map(|object| object["id"].as_u64()).collect();
            left.extend(ids.intersection(&there).map(|id| format!("{kind} {id}")));
        }
        Ok(left)
    }

    /// Waits until the kernel has none of them: it frees them in the background.
    pub fn expect_gone(&self) -> anyhow::Result<()> {
        let mut left = self.left()?;
        retry::until("objects of a detached instance to be freed", || {
            left = self.left().ok()?;
            left.is_empty().then_some(())
        })
        .with_context(|| format!("the kernel still has {left:?}"))
    }
}

/// How many programs, maps and links the whole machine has.
pub fn counts() -> anyhow::Result<[usize; 3]> {
    Ok([list("prog")?.len(), list("map")?.len(), list("link")?.len()])
}

/// Requires that nothing of any instance is left at a pod.
pub fn expect_untouched(pod: &Pod) -> anyhow::Result<()> {
    retry::until("links to be freed", || (links_of(pod).ok()? == [0, 0]).then_some(()))?;
    ensure!(!has_lo6(&pod.netns)?, "::6 is left on lo");
    Ok(())
}

/// The links at a pod: those to its cgroups, and those to its namespace.
pub fn links_of(pod: &Pod) -> anyhow::Result<[usize; 2]> {
    // Not by `cgroup tree`: it asks for kinds of programs that older kernels do not know, and then prints nothing.
    let mut cgroups = BTreeSet::new();
    collect_ids(pod.cgroup.directory(), &mut cgroups)?;
    let inode = std::fs::metadata(pod.netns.file())?.ino();
    let links = list("link")?;
    let of_cgroup = |link: &&Value| link["cgroup_id"].as_u64().is_some_and(|id| cgroups.contains(&id));
    Ok([
        links.iter().filter(of_cgroup).count(),
        links.iter().filter(|link| link["netns_ino"] == inode).count(),
    ])
}

/// Ids of a cgroup and of those below: their inode numbers.
fn collect_ids(directory: &Path, ids: &mut BTreeSet<u64>) -> anyhow::Result<()> {
    ids.insert(std::fs::metadata(directory)?.ino());
    for entry in std::fs::read_dir(directory)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_ids(&entry.path(), ids)?;
        }
    }
    Ok(())
}

/// Maps of any kind in which the cookie of a network namespace is found: those of META and of the constants of the
/// programs.
pub fn maps_with_cookie(cookie: u64) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for map in list("map")? {
        let ours = map["name"].as_str().is_some_and(|name| name == "META" || name.ends_with(".rodata"));
        let (Some(id), true) = (map["id"].as_u64(), ours) else { continue };
        // It may have gone meanwhile: another test's.
        let dump = output(Command::new("bpftool").args(["-j", "map", "dump", "id", &id.to_string()]), "")?;
        let text = String::from_utf8_lossy(&dump.stdout);
        let bytes: Vec<String> =
            cookie.to_le_bytes().iter().map(|byte| format!("\"0x{byte:02x}\"")).collect();
        if text.contains(&bytes.join(",")) || text.contains(&format!("\"netns_cookie\":{cookie}")) {
            found.push(map);
        }
    }
    Ok(found)
}

/// Whether `::6` is on the namespace's lo.
pub fn has_lo6(netns: &Netns) -> anyhow::Result<bool> {
    let addresses =
        run(Command::new("ip").args(["-n", netns.name(), "-6", "-o", "address", "show", "dev", "lo"]), "")?;
    Ok(addresses.contains(" ::6/128 "))
}

fn list(kind: &str) -> anyhow::Result<Vec<Value>> {
    list_of(&[kind, "show"])
}

fn list_of(arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    match ask(arguments)? {
        Value::Array(list) => Ok(list),
        _ => Ok(Vec::new()),
    }
}

/// `bpftool`'s answer in JSON; null if it says nothing.
pub(super) fn ask(arguments: &[&str]) -> anyhow::Result<Value> {
    // An object that goes away while it walks makes it stop with an error; what is asked for here does not come and go.
    retry::until(&format!("bpftool {}", arguments.join(" ")), || {
        let text = run(Command::new("bpftool").arg("-j").args(arguments), "").ok()?;
        if text.trim().is_empty() { Some(Value::Null) } else { serde_json::from_str(&text).ok() }
    })
}

/// `bpftool`'s answer as it prints it.
pub(super) fn ask_text(arguments: &[&str]) -> anyhow::Result<String> {
    run(Command::new("bpftool").args(arguments), "")
}

/// Gives an instance another map layout, as its META says, and tells which it had. (`Meta` begins with it.)
pub fn set_layout(instance: &Path, abi: u8) -> anyhow::Result<u8> {
    set_meta(instance, 0, abi)
}

/// Changes a byte of an instance's META, and tells which it was.
pub fn set_meta(instance: &Path, offset: usize, byte: u8) -> anyhow::Result<u8> {
    const KEY: [&str; 5] = ["key", "0", "0", "0", "0"];
    let pin = instance.join("META").display().to_string();
    let entry = ask(&[&["map", "lookup", "pinned", &pin], &KEY[..]].concat())?;
    let value = entry["value"].as_array().context("a value")?;
    let mut bytes: Vec<String> = value.iter().filter_map(|byte| byte.as_str()).map(str::to_owned).collect();
    let was = u8::from_str_radix(bytes[offset].trim_start_matches("0x"), 16)?;
    bytes[offset] = format!("{byte:#04x}");
    let mut update = Command::new("bpftool");
    update.args(["map", "update", "pinned", &pin]).args(KEY).arg("value");
    run(update.args(bytes), "")?;
    Ok(was)
}
