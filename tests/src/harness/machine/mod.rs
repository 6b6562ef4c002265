//! A machine made of namespaces (mount, pid, network, cgroup, ...): its own /run, /var/lib, /opt, /etc/cni, bpffs and
//! cgroup trees, so that container runtimes and kubelet run in it with their usual paths and leave nothing outside.
//! Everything in it dies with its init.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::process::Daemon;
use crate::harness::{names, retry};

const SCRIPT: &str = include_str!("machine.sh");

/// A running machine; everything of it is removed on drop.
pub struct Machine {
    name: String,
    directory: tempfile::TempDir,
    unshare: Child,
    init: u32,
}

impl Machine {
    pub fn boot() -> anyhow::Result<Self> {
        let name = names::unique();
        remove_stale();
        let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let script = directory.path().join("machine.sh");
        std::fs::write(&script, SCRIPT)?;
        let log = std::fs::File::create(directory.path().join("boot.log"))?;
        let unshare = Command::new("sh")
            .arg(&script)
            .args(["enter", &name])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting a machine")?;
        let mut machine = Self { name, directory, unshare, init: 0 };
        machine.init = machine.wait_for_init()?;
        Ok(machine)
    }

    fn wait_for_init(&mut self) -> anyhow::Result<u32> {
        let log = self.directory.path().join("boot.log");
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let ready = self.directory.path().join("ready");
        let unshare = &mut self.unshare;
        let child = retry::until("a machine of namespaces", || match unshare.try_wait() {
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("it ended with {status}"))),
            _ if ready.exists() => child_of(unshare.id()).map(Ok),
            _ => None,
        });
        child.and_then(|child| child).with_context(|| format!("booting: {}", said()))
    }

    /// Its name: that of its cgroups, too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory outside that is the same path inside.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The pid of its init, as seen from outside.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// A path inside as one outside can use it.
    pub fn outside(&self, inside: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.init));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Writes a file inside, with its directories.
    pub fn write(&self, inside: &str, content: &str) -> anyhow::Result<()> {
        let file = self.outside(Path::new(inside));
        let parent = file.parent().context("a file is in a directory")?;
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        std::fs::write(&file, content).with_context(|| file.display().to_string())
    }

    /// A program inside: in every namespace and cgroup of the machine.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let join = format!(
            "for point in $(awk '$3 ~ /^cgroup2?$/ {{print $2}}' /proc/mounts); do \
                 echo 0 >\"$point/{}/cgroup.procs\"; done; \
             exec nsenter --target {} --mount --pid --net --uts --ipc --cgroup -- \"$@\"",
            self.name, self.init
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &join, "sh"]).arg(program.as_ref());
        command
    }

    /// Runs a shell script inside and returns its output.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        crate::harness::command::run(self.command("sh").args(["-euc", script]), "")
    }

    /// Starts a daemon inside.
    pub fn daemon(&self, program: impl AsRef<Path>, arguments: &[&str]) -> anyhow::Result<Inside> {
        let name = program.as_ref().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = self.command(program);
        command.args(arguments);
        Ok(Inside { daemon: Daemon::start(&name, &mut command)? })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With it goes its child, the init, and with that everything inside.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        if let Err(error) = remove_cgroups(&self.name) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// A daemon inside a machine.
pub struct Inside {
    /// The process outside that stands for it, with its output. It ends when the daemon does.
    pub daemon: Daemon,
}

impl Inside {
    /// Its pid, as seen from outside.
    pub fn pid(&self) -> anyhow::Result<u32> {
        // nsenter forks: only a child is in another pid namespace.
        retry::until("the daemon's process", || child_of(self.daemon.pid()))
    }

    /// Kills it with a signal and waits until it is gone.
    pub fn kill(self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid()?;
        kill_process(Pid::from_raw(i32::try_from(pid)?).context("a pid")?, signal)?;
        retry::until("a killed daemon to end", || {
            (!Path::new(&format!("/proc/{pid}/ns/pid")).exists()).then_some(())
        })
    }
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        matches!(fields.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    });
    Ok(points.collect())
}

/// Removes a machine's cgroups of every hierarchy once its processes are gone.
fn remove_cgroups(name: &str) -> anyhow::Result<()> {
    for point in hierarchies()? {
        let directory = point.join(name);
        retry::until(&format!("removing {}", directory.display()), || remove_tree(&directory).then_some(()))?;
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return true };
    let mut all = true;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all &= remove_tree(&entry.path());
        }
    }
    all && std::fs::remove_dir(directory).is_ok()
}

/// Cgroups of machines whose test was killed.
fn remove_stale() {
    for point in hierarchies().unwrap_or_default() {
        let Ok(entries) = std::fs::read_dir(point) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if names::is_stale(&entry.file_name().to_string_lossy()) {
                remove_tree(&entry.path());
            }
        }
    }
}

/// Global kernel parameters that kubelet would change; for comparing before and after.
pub fn global_sysctls() -> anyhow::Result<Vec<(String, String)>> {
    let names = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
    let names = names.into_iter().chain(["kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"]);
    let read = |name: &str| std::fs::read_to_string(Path::new("/proc/sys").join(name));
    names.map(|name| Ok((name.to_owned(), read(name).with_context(|| name.to_owned())?))).collect()
}

/// Fails if a machine left something: cgroups, mounts, processes are told by its name.
pub fn nothing_left(name: &str) -> anyhow::Result<()> {
    for point in hierarchies()? {
        ensure!(!point.join(name).exists(), "{} is left", point.join(name).display());
    }
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains(name), "mounts of {name} are left");
    for entry in std::fs::read_dir(std::env::temp_dir())?.filter_map(Result::ok) {
        ensure!(!entry.file_name().to_string_lossy().starts_with(name), "{} is left", entry.path().display());
    }
    Ok(())
}
