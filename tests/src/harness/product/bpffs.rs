//! A bpffs of a test's own. What a test does to all instances (`detach --all`), or to the files in the bpffs, concerns no
//! other test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

use crate::harness::kernel;
use crate::harness::names;
use crate::harness::product::{self, Run};
use crate::harness::world::{Pod, PodOptions, World};

/// A mounted bpffs; unmounted on drop, and with it goes whatever is still attached.
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    pub fn new() -> anyhow::Result<Self> {
        let bpffs = Self::not_mounted()?;
        mount("bpf", &bpffs.path, "bpf", MountFlags::empty(), None).context("mounting a bpffs")?;
        Ok(bpffs)
    }

    /// A directory on which nobody has mounted a bpffs yet.
    pub fn not_mounted() -> anyhow::Result<Self> {
        remove_stale();
        let path = std::env::temp_dir().join(names::unique());
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of an instance.
    pub fn instance(&self, name: &str) -> PathBuf {
        self.path.join("redirector").join(name)
    }

    /// Whatever is in the bpffs, sorted; nothing if nothing is attached.
    pub fn pins(&self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        collect(&self.path, &mut found)?;
        // The kernel's own, in every bpffs.
        found.retain(|path| !matches!(path.to_str(), Some("maps.debug" | "progs.debug")));
        Ok(found)
    }

    /// Runs the binary on this node.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Run> {
        Run::of(&mut self.command(&[], arguments))
    }

    /// The command for the binary, to be run by another program (with its arguments) if one is given.
    pub fn command(&self, by: &[&str], arguments: &[&str]) -> Command {
        self.command_of(&product::binary(), by, arguments)
    }

    /// The same for another binary.
    pub fn command_of(&self, binary: &Path, by: &[&str], arguments: &[&str]) -> Command {
        let mut command = product::command_of(binary, by);
        command.arg("--bpffs").arg(&self.path).args(["--output", "json"]).args(arguments);
        command
    }

    /// `attach` to a pod with flags, whatever its exit code.
    pub fn attach(&self, pod: &Pod, name: &str, flags: &[&str]) -> anyhow::Result<Run> {
        self.attach_by(&[], pod, name, flags)
    }

    /// The same, run by another program.
    pub fn attach_by(&self, by: &[&str], pod: &Pod, name: &str, flags: &[&str]) -> anyhow::Result<Run> {
        let mut arguments = vec!["attach", "--name", name];
        let target = target(pod);
        arguments.extend(target.iter().map(String::as_str));
        arguments.extend(flags);
        Run::of(&mut self.command(by, &arguments))
    }

    /// `show` of an instance.
    pub fn show(&self, name: &str) -> anyhow::Result<Value> {
        self.run(&["show", name])?.looked()?.json()
    }

    /// `list`.
    pub fn list(&self) -> anyhow::Result<Vec<Value>> {
        let list = self.run(&["list"])?.looked()?.json()?;
        list.as_array().cloned().context("`list` gives an array")
    }

    /// Requires that there is no instance. What they share may be there: an agent keeps it.
    pub fn expect_no_instance(&self) -> anyhow::Result<()> {
        let mut pins = self.pins()?;
        pins.retain(|pin| pin != Path::new("redirector") && !pin.starts_with("redirector/NODE-2"));
        ensure!(pins.is_empty(), "left in the bpffs: {pins:?}");
        Ok(())
    }

    /// Requires that nothing of any instance is left in the bpffs.
    pub fn expect_empty(&self) -> anyhow::Result<()> {
        let pins = self.pins()?;
        ensure!(pins.is_empty(), "left in the bpffs: {pins:?}");
        Ok(())
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// The arguments that name a pod.
pub fn target(pod: &Pod) -> [String; 4] {
    let [netns, cgroup] = [pod.netns.file(), pod.cgroup.directory()].map(|path| path.display().to_string());
    ["--netns".to_owned(), netns, "--cgroup".to_owned(), cgroup]
}

/// What a test of flags does that the kernel may lack something for. Since this version it must have it; before, a
/// distribution may have brought it, or `attach` must refuse the flags, by name, and leave nothing. Tells whether they work,
/// and the test can go on.
pub fn has_or_refuses(since: (u32, u32), flags: &[&str]) -> anyhow::Result<bool> {
    if kernel::is_at_least(since.0, since.1) {
        return Ok(true);
    }
    // With eth1: an interface that is not there asks nothing of the kernel.
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    let (bpffs, world) = (Bpffs::new()?, World::with(std::slice::from_ref(&pod))?);
    let proxy = world.pod().cgroup.child("proxy")?.display().to_string();
    let flags: Vec<&str> = flags.iter().map(|flag| if *flag == "PROXY" { &proxy } else { *flag }).collect();
    let run = bpffs.attach(world.pod(), "pod", &flags)?;
    if run.code == Some(product::exit::OK) {
        return Ok(true);
    }
    run.refused(product::exit::CANNOT, &[flags[0], &format!("{}.{}", since.0, since.1)])?;
    bpffs.expect_empty()?;
    Ok(false)
}

fn collect(directory: &Path, found: &mut BTreeSet<PathBuf>) -> anyhow::Result<()> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(root, &path, found)?;
            }
            found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned());
        }
        Ok(())
    }
    walk(directory, directory, found).with_context(|| directory.display().to_string())
}

fn remove(bpffs: &Path) -> anyhow::Result<()> {
    // EINVAL: not mounted, or not any more.
    while unmount(bpffs, UnmountFlags::DETACH).is_ok() {}
    std::fs::remove_dir(bpffs).with_context(|| bpffs.display().to_string())
}

/// Removes what a killed test process left behind.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.filter_map(Result::ok) {
        if names::is_stale(&entry.file_name().to_string_lossy()) {
            // Somebody else may be doing the same: nothing to report.
            let _ = remove(&entry.path());
        }
    }
}
