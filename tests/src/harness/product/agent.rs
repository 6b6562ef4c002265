//! `redirector agent`, as a test runs it: on a node of the test's own, with directories of its own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::process::Daemon;
use crate::harness::product::binary;
use crate::harness::product::bpffs::Bpffs;
use crate::harness::retry;
use crate::harness::world::Pod;
use crate::harness::world::netns::{Netns, enter};

/// The agent's directories; they outlive it.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> anyhow::Result<Self> {
        let home = Self(tempfile::Builder::new().prefix("redirtest-agent").tempdir()?);
        std::fs::create_dir(home.config())?;
        Ok(home)
    }

    /// The directory of the configuration.
    pub fn config(&self) -> PathBuf {
        self.0.path().join("targets.d")
    }

    /// The directory of the lock and the socket.
    pub fn run(&self) -> PathBuf {
        self.0.path().join("run")
    }

    /// Writes the file of a target, at once, as editors and tools do.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let next = self.config().join(format!("{name}.toml.new"));
        std::fs::write(&next, text)?;
        std::fs::rename(next, self.config().join(format!("{name}.toml")))?;
        Ok(())
    }

    /// Removes the file of a target.
    pub fn remove(&self, name: &str) -> anyhow::Result<()> {
        std::fs::remove_file(self.config().join(format!("{name}.toml"))).context("the target's file")
    }
}

/// The text of a target's file: a pod, and a policy.
pub fn target(pod: &Pod, policy: &str) -> String {
    let (cgroup, netns) = (pod.cgroup.directory().display(), pod.netns.file().display());
    format!("cgroup = \"{cgroup}\"\nnetns = \"{netns}\"\n[policy]\n{policy}\n")
}

/// A running agent; killed on drop.
pub struct Agent {
    daemon: Daemon,
    at: SocketAddr,
    netns: Option<PathBuf>,
}

impl Agent {
    /// Starts it and waits until it serves.
    pub fn start(bpffs: &Bpffs, home: &Home) -> anyhow::Result<Self> {
        Self::with(bpffs, home, &["--config", path(&home.config())])
    }

    /// The same with other arguments.
    pub fn with(bpffs: &Bpffs, home: &Home, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::spawn(&mut Self::command(bpffs, home, &[], arguments), None)
    }

    /// The same in another network namespace, by which it reaches an API server.
    pub fn inside(netns: &Netns, bpffs: &Bpffs, home: &Home, arguments: &[&str]) -> anyhow::Result<Self> {
        let net = format!("--net={}", netns.file().display());
        let mut command = Self::command(bpffs, home, &["nsenter", &net, "--"], arguments);
        Self::spawn(&mut command, Some(netns.file().to_owned()))
    }

    /// The same, run by another program.
    pub fn by(by: &[&str], bpffs: &Bpffs, home: &Home, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::spawn(&mut Self::command(bpffs, home, by, arguments), None)
    }

    /// The same of another binary.
    pub fn of(binary: &Path, bpffs: &Bpffs, home: &Home) -> anyhow::Result<Self> {
        let config = home.config();
        let arguments = ["--config", path(&config)];
        Self::spawn(&mut Self::command_of(binary, bpffs, home, &[], &arguments), None)
    }

    fn spawn(command: &mut Command, netns: Option<PathBuf>) -> anyhow::Result<Self> {
        let daemon = Daemon::start("agent", command)?;
        let at = daemon.wait_for(0, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            let serving = event["message"].as_str()?.starts_with("serving /metrics");
            serving.then(|| event["at"].as_str()?.parse().ok()).flatten()
        })?;
        Ok(Self { daemon, at, netns })
    }

    /// The command that starts it, run by another program if one is given.
    pub fn command(bpffs: &Bpffs, home: &Home, by: &[&str], arguments: &[&str]) -> Command {
        Self::command_of(&binary(), bpffs, home, by, arguments)
    }

    fn command_of(binary: &Path, bpffs: &Bpffs, home: &Home, by: &[&str], arguments: &[&str]) -> Command {
        let (run, config) = (home.run(), home.config());
        let mut all = vec!["agent", "--run-dir", path(&run)];
        // An agent without anything to capture is refused.
        if !["--config", "--pods", "--node-name"].iter().any(|source| arguments.contains(source)) {
            all.extend(["--config", path(&config)]);
        }
        if !arguments.contains(&"--http") {
            all.extend(["--http", "127.0.0.1:0"]);
        }
        all.extend(["--log-format", "json"]);
        if !arguments.contains(&"--log-level") {
            all.extend(["--log-level", "debug"]);
        }
        all.extend(arguments);
        bpffs.command_of(binary, by, &all)
    }

    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// Ends it as the kernel does when memory is short.
    pub fn kill(self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.daemon.pid().cast_signed()).context("a pid")?;
        kill_process(pid, signal).context("the agent has ended")
    }

    /// Waits for an event whose message begins so, after the first `skip` lines.
    pub fn wait_for(&self, skip: usize, message: &str) -> anyhow::Result<Value> {
        let begins = |event: &Value| event["message"].as_str().is_some_and(|text| text.starts_with(message));
        self.wait_for_event(skip, begins).with_context(|| format!("waiting for {message:?}"))
    }

    /// Waits for an event, after the first `skip` lines.
    pub fn wait_for_event(&self, skip: usize, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        self.daemon.wait_for(skip, |line| serde_json::from_str(line).ok().filter(&wanted))
    }

    /// The number of lines so far.
    pub fn line_count(&self) -> usize {
        self.daemon.line_count()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.daemon.lines().join("\n")
    }

    /// Its answer: status and body.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.get_from(self.at, path)
    }

    /// The same at another of its addresses.
    pub fn get_from(&self, at: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = match &self.netns {
            None => TcpStream::connect(at)?,
            Some(netns) => enter(netns, || Ok(TcpStream::connect(at)?))?,
        };
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("an answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status")?;
        Ok((status, body.to_owned()))
    }

    /// The metrics by name with labels; those at zero are left out.
    pub fn metrics(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200 && body.ends_with("# EOF\n"), "{status}: {body}");
        let samples = body.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse::<f64>().with_context(|| line.to_owned())?))
        });
        let samples: Vec<(String, f64)> = samples.collect::<anyhow::Result<_>>()?;
        Ok(samples.into_iter().filter(|(_, value)| *value != 0.0).collect())
    }

    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.metrics()?.get(name).copied().unwrap_or_default())
    }
}

/// Waits until `/readyz` says so; its text.
pub fn until_ready(agent: &Agent, ready: bool) -> anyhow::Result<String> {
    let is = || agent.get("/readyz").ok().filter(|(status, _)| (*status == 200) == ready);
    let (_, text) = retry::until("/readyz", is).with_context(|| agent.log())?;
    Ok(text)
}

/// Waits until an instance is (or is not) in force.
pub fn until_active(bpffs: &Bpffs, agent: &Agent, name: &str, active: bool) -> anyhow::Result<()> {
    let is =
        || bpffs.list().is_ok_and(|list| list.iter().any(|i| i["name"] == name && i["state"] == "active"));
    let what = format!("{name} to be {}", if active { "active" } else { "gone" });
    retry::until(&what, || (is() == active).then_some(())).with_context(|| agent.log())
}

/// Waits until an instance has a registered listener for what arrives from the network.
pub fn until_registered(bpffs: &Bpffs, agent: &Agent, name: &str) -> anyhow::Result<()> {
    retry::until("its listener to be registered", || {
        let show = bpffs.show(name).ok()?;
        let inbound = show["listeners"].as_array()?.iter().find(|one| one["traffic"] == "inbound")?;
        (inbound["ipv4"] != 0 || inbound["ipv6"] != 0).then_some(())
    })
    .with_context(|| agent.log())
}

/// A path of ours as text.
fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
