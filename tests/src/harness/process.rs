//! Child processes of the tests: where they run, what they print, and that they end.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::harness::probe::AS_PROBE;
use crate::harness::probe::scenario::Owner;
use crate::harness::retry::patience;

/// Where a process runs: namespace, cgroup, user.
pub struct Place {
    /// File of the network namespace.
    pub netns: PathBuf,
    /// Directory of the cgroup, if not the test's own.
    pub cgroup: Option<PathBuf>,
    pub owner: Owner,
}

impl Place {
    /// The probe with a subcommand, in this place.
    pub fn probe(&self, arguments: &[&str]) -> Command {
        let mut command = probe();
        command.arg("--netns").arg(&self.netns);
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        command.args(["--uid", &self.owner.uid.to_string(), "--gid", &self.owner.gid.to_string()]);
        command.args(arguments);
        command
    }

    /// Starts a program in this place that outlives us, writing to a log file.
    pub fn leave(&self, program: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Child> {
        let mut command = self.probe(&[]);
        command.args(["--outlive", "exec", "--"]).arg(program).args(arguments);
        let log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log);
        command.spawn().with_context(|| format!("starting {}", program.display()))
    }

    /// Any other program, in this place.
    pub fn program(&self, program: &Path) -> Command {
        let mut command = self.probe(&["exec", "--"]);
        command.arg(program);
        command
    }
}

/// The probe: for a test it is beside its own executable, where cargo puts the binaries of this package (cargo builds
/// them before the tests). Any other program of this package is its own probe (see `probe::run_if_asked`), because
/// `cargo run --bin` builds only the one.
fn probe() -> Command {
    let me = std::env::current_exe().unwrap_or_default();
    match me.parent() {
        Some(deps) if deps.ends_with("deps") => Command::new(deps.with_file_name("probe")),
        _ => {
            let mut command = Command::new(me);
            command.env(AS_PROBE, "1");
            command
        }
    }
}

#[derive(Default)]
struct Lines {
    lines: Mutex<(Vec<String>, usize)>,
    more: Condvar,
}

/// A background process; killed and waited for on drop.
pub struct Daemon {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    output: Arc<Lines>,
}

impl Daemon {
    /// Starts it, collecting the lines of stdout and stderr.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let output = Arc::new(Lines::default());
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        lock(&output).1 = streams.len();
        for stream in streams.into_iter().flatten() {
            let output = Arc::clone(&output);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    lock(&output).0.push(line);
                    output.more.notify_all();
                }
                lock(&output).1 -= 1;
                output.more.notify_all();
            });
        }
        Ok(Self { name: name.to_owned(), stdin: child.stdin.take(), child, output })
    }

    /// Waits until a line (of those after the first `skip`) gives something.
    pub fn wait_for<T>(&self, skip: usize, mut wanted: impl FnMut(&str) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + patience();
        let mut seen = skip;
        let mut guard = lock(&self.output);
        loop {
            let (lines, running) = &*guard;
            if let Some(found) = lines.iter().skip(seen).find_map(|line| wanted(line)) {
                return Ok(found);
            }
            seen = seen.max(lines.len());
            let left = deadline.saturating_duration_since(Instant::now());
            if *running == 0 || left.is_zero() {
                let state = if *running == 0 { "ended" } else { "said nothing of the kind in time" };
                bail!("{} {state}. Its output:\n{}", self.name, lines.join("\n"));
            }
            guard = self.output.more.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The number of lines so far, to be given to [`Self::wait_for`].
    pub fn line_count(&self) -> usize {
        lock(&self.output).0.len()
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.output).0.clone()
    }

    /// Writes a line to its stdin.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("writing to {}", self.name))?;
        stdin.flush()?;
        Ok(())
    }

    pub fn close(&mut self) {
        self.stdin = None;
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has closed its output, as a program does that ends.
    pub fn has_ended(&self) -> bool {
        lock(&self.output).1 == 0
    }

    /// Has the programs that it runs end at once; `strace` ends with its own.
    pub fn end_children(&self) -> anyhow::Result<()> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        for child in std::fs::read_to_string(children)?.split_whitespace() {
            let pid = rustix::process::Pid::from_raw(child.parse()?).context("a pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(output: &Lines) -> MutexGuard<'_, (Vec<String>, usize)> {
    output.lines.lock().unwrap_or_else(PoisonError::into_inner)
}
