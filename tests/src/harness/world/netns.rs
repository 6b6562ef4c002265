//! Named network namespaces.
//!
//! `ip netns add` bind-mounts a namespace under /run/netns, which gives it a file to enter by. We never use
//! `ip netns exec`: it remounts /sys, which hides the cgroup tree and bpffs from the program.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::harness::command::run;
use crate::harness::{kernel, names, retry};

const DIRECTORY: &str = "/run/netns";

/// `ip netns add` prepares its directory on first use, which is not safe to do twice at once.
static ADDING: Mutex<()> = Mutex::new(());

/// A network namespace with its loopback interface up; deleted on drop.
pub struct Netns {
    name: String,
    file: PathBuf,
    /// The user namespace that owns it, if it is not the test's.
    owner: Option<File>,
}

/// What a user namespace of ours maps: the ids that its users begin with, and those of its groups, on the host; and
/// how many.
pub const MAPPED_USERS: u32 = 200_000;
/// See [`MAPPED_USERS`].
pub const MAPPED_GROUPS: u32 = 300_000;
/// See [`MAPPED_USERS`].
pub const MAPPED_COUNT: u32 = 65_536;

impl Netns {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        {
            let _one_at_a_time = ADDING.lock().map_err(|_| anyhow!("another thread failed while adding"))?;
            remove_stale();
            run(Command::new("ip").args(["netns", "add", name]), "")?;
        }
        Self::named(name, None)
    }

    /// Makes a namespace that is owned by a user namespace of its own, as a pod with `hostUsers: false` has it.
    pub fn in_user_namespace(name: &str) -> anyhow::Result<Self> {
        // A process that only waits for its input to end; then both namespaces live on by what we hold of them.
        let mut first = Command::new("unshare");
        first.args(["--user", "--net", "--", "sh", "-c", "echo ready; read line"]);
        let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("unshare")?;
        let mut ready = String::new();
        BufReader::new(first.stdout.take().context("no output")?).read_line(&mut ready)?;
        ensure!(ready == "ready\n", "no user namespace: {ready:?}");
        let of = |file: &str| PathBuf::from(format!("/proc/{}/{file}", first.id()));
        std::fs::write(of("uid_map"), format!("0 {MAPPED_USERS} {MAPPED_COUNT}")).context("uid_map")?;
        std::fs::write(of("gid_map"), format!("0 {MAPPED_GROUPS} {MAPPED_COUNT}")).context("gid_map")?;
        let owner = File::open(of("ns/user"))?;
        {
            let _one_at_a_time = ADDING.lock().map_err(|_| anyhow!("another thread failed while adding"))?;
            remove_stale();
            run(Command::new("ip").args(["netns", "attach", name, &first.id().to_string()]), "")?;
        }
        drop(first.stdin.take());
        first.wait()?;
        Self::named(name, Some(owner))
    }

    fn named(name: &str, owner: Option<File>) -> anyhow::Result<Self> {
        let netns = Self { name: name.to_owned(), file: Path::new(DIRECTORY).join(name), owner };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// One that exists already and is ours from now on.
    pub fn existing(name: &str) -> Option<Self> {
        let file = Path::new(DIRECTORY).join(name);
        file.exists().then(|| Self { name: name.to_owned(), file, owner: None })
    }

    /// Lets it stay after this process.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// The same, and what is left in hand is the file.
    pub fn keep_file(self) -> PathBuf {
        let file = self.file.clone();
        self.keep();
        file
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Runs lines of `ip` commands (without the leading `ip`) in the namespace, as one batch; on a kernel without IPv6
    /// without those that name an address of it.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        let possible: String = lines
            .lines()
            .filter(|line| kernel::has_ipv6() || !names_ipv6(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &possible)
            .with_context(|| lines.to_owned())?;
        Ok(())
    }

    /// Runs `work` in a thread that has entered the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        enter(&self.file, work)
    }

    /// Sets kernel parameters below `/proc/sys/net`, which shows the namespace of whoever looks.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                if name.starts_with("ipv6/") && !kernel::has_ipv6() {
                    continue;
                }
                let path = Path::new("/proc/sys/net").join(name);
                std::fs::write(&path, value).with_context(|| format!("{} = {value}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Waits until all interfaces carry packets: the kernel gets them ready in the background, and drops until then.
    pub fn wait_until_links_are_up(&self) -> anyhow::Result<()> {
        let up = || -> anyhow::Result<bool> {
            let links = run(Command::new("ip").args(["-n", &self.name, "-json", "link", "show"]), "")?;
            let links: Vec<serde_json::Value> = serde_json::from_str(&links)?;
            Ok(links.iter().all(|link| link["link_type"] == "loopback" || link["operstate"] == "UP"))
        };
        retry::until(&format!("links of {} up", self.name), || match up() {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        })?
    }

    /// Waits until somebody listens on a TCP port: for programs that do not say when they are ready.
    pub fn wait_for_listener(&self, port: u16) -> anyhow::Result<()> {
        retry::until(&format!("a listener on port {port} in {}", self.name), || {
            // Of the thread: /proc/net would be that of the process.
            let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
            let tables = self.enter(|| Ok(read("tcp")? + &read("tcp6")?));
            tables.is_ok_and(|tables| listens(&tables, port)).then_some(())
        })
    }

    /// A command that will run inside the namespace, with the host's mounts; as root of the user namespace that owns it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        if let Some(owner) = &self.owner {
            command.arg(format!("--user=/proc/{}/fd/{}", std::process::id(), owner.as_raw_fd()));
        }
        command.arg(format!("--net={}", self.file.display())).arg("--").arg(program);
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name]), "") {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// Runs `work` in a thread that has entered the namespace of a file.
pub fn enter<T: Send>(file: &Path, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let netns = File::open(file).with_context(|| file.display().to_string())?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering {}", file.display()))?;
            work()
        });
        inside.join().map_err(|_| anyhow!("the thread in {} panicked", file.display()))?
    })
}

/// Removes namespaces that a killed test process left behind.
fn remove_stale() {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if names::is_stale(&name) {
            // Somebody else may be doing the same: nothing to report.
            let _ = run(Command::new("ip").args(["netns", "delete", &name]), "");
        }
    }
}

fn names_ipv6(line: &str) -> bool {
    line.split([' ', '/']).any(|word| word.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Looks for a listening socket: `sl local_address rem_address st ...`, where the state is 0A.
fn listens(tables: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    tables.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1).is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::{listens, names_ipv6};

    #[test]
    fn addresses_of_ipv6_are_recognised() {
        assert!(
            names_ipv6("address add fd00:77::2/64 dev eth0")
                && names_ipv6("address add ::6/128 dev lo nodad")
        );
        assert!(!names_ipv6("neighbour add 10.77.0.1 lladdr 02:00:00:00:00:01 dev eth0"));
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:1F90 0100007F:3A9E 01 00000000:00000000 00:00000000\n";
        assert!(listens(table, 15001));
        assert!(!listens(table, 8080));
        assert!(!listens(table, 15006));
    }
}
