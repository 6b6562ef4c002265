//! Running a guest in QEMU, and reading its console.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{arch::Arch, kernels::Kernel};
use crate::project;

/// How a guest is run.
pub struct Machine {
    /// Its architecture.
    pub arch: Arch,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// Whether the processor runs the guest itself.
    pub kvm: bool,
}

/// One run of a guest.
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its first root file system.
    pub initramfs: &'a Path,
    /// Its disks; what it writes there is lost.
    pub disks: &'a [PathBuf],
    /// More words for its command line.
    pub words: &'a str,
    /// When it is killed.
    pub limit: Duration,
    /// And when, if it says nothing.
    pub silence: Duration,
    /// Where its console goes.
    pub log: &'a Path,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest said that all jobs were run.
    Done,
    /// Its processors made no step for minutes, or an emulated one met code that another was patching; it was killed.
    Hung,
    /// It ended without saying so.
    Died(String),
}

/// So many of the kernel's complaints, one in 22 seconds or more, and a guest is taken for hung: one passes.
const LOCKUPS: u32 = 4;
/// What a kernel dies of whose code is patched while QEMU's threads execute it: a breakpoint that stands there for a moment
/// (`text_poke_bp`), and is gone when its handler looks.
const BREAKPOINT: &str = "Oops: int3";
/// Longest time a kernel that works says nothing for, before it is taken for hung.
const TRIAL: Duration = Duration::from_secs(8);

impl Machine {
    /// Emulation, or KVM if it works here: on some nested machines `/dev/kvm` opens and guests hang.
    pub fn new(arch: Arch, qemu: PathBuf, kernel: &Kernel) -> Result<Self> {
        let may = !arch.is_foreign() && File::options().read(true).write(true).open("/dev/kvm").is_ok();
        let kvm = may && Self { arch, qemu: qemu.clone(), kvm: true }.greets(kernel)?;
        eprintln!("vm: {}", if kvm { "KVM" } else { "no working KVM here: guests are emulated" });
        Ok(Self { arch, qemu, kvm })
    }

    /// Whether the kernel gets as far as its banner.
    fn greets(&self, kernel: &Kernel) -> Result<bool> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let remembered = project::cache("vm").join("kvm");
        if let Ok(text) = fs::read_to_string(&remembered)
            && let Some((id, answer)) = text.split_once(' ')
            && id == boot_id.trim()
        {
            return Ok(answer == "works");
        }
        let mut works = false;
        let mut command = self.command(kernel, "earlyprintk=serial,ttyS0");
        command.stderr(Stdio::null());
        watch(&mut command, TRIAL, TRIAL, |line| {
            works |= line.contains("Linux version");
            works
        })?;
        let answer = if works { "works" } else { "hangs" };
        fs::write(remembered, format!("{} {answer}", boot_id.trim()))?;
        Ok(works)
    }

    fn command(&self, kernel: &Kernel, words: &str) -> Command {
        // It ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.qemu);
        let machine = if self.kvm { self.arch.virtualized() } else { self.arch.emulated() };
        command.args(machine).args([
            "-smp",
            "2",
            "-m",
            "3072",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(["-nic", "none", "-serial", "stdio", "-kernel"]).arg(&kernel.image).arg("-append");
        // The emulated processor's random numbers are enough for a test; without trust old kernels wait for some.
        let console = self.arch.console();
        let quick = if self.kvm { "" } else { self.arch.quick() };
        command.arg(format!(
            "console={console} panic=-1 loglevel=4 random.trust_cpu=on no_timer_check {quick} {words}"
        ));
        command
    }

    /// Boots, until the guest ends or its time is over. Every line of the console goes to the log and to `seen`.
    pub fn run(&self, boot: &Boot<'_>, mut seen: impl FnMut(&str)) -> Result<End> {
        let Boot { kernel, initramfs, disks, words, limit, silence, log } = *boot;
        let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = self.command(kernel, words);
        command.arg("-initrd").arg(initramfs);
        for disk in disks {
            command.arg("-drive");
            command.arg(format!("file={},if=virtio,format=raw,snapshot=on", disk.display()));
        }
        let (mut done, mut panic, mut lockups, mut patching) = (false, None, 0, false);
        let ended = watch(&mut command, limit, silence, |line| {
            // A log that cannot be written is no reason to stop.
            let _ = writeln!(log, "{line}");
            seen(line);
            done |= line == "@@done";
            if line.contains("Kernel panic - not syncing") {
                panic = Some(line.to_owned());
            }
            lockups += u32::from(line.contains("BUG: soft lockup"));
            patching |= line.contains(BREAKPOINT);
            // Nobody waits for it to power off, which may hang, too.
            panic.is_some() || lockups >= LOCKUPS || done
        })?;
        Ok(match (panic, done, ended) {
            (Some(_), ..) if patching && !self.kvm => End::Hung,
            (Some(panic), ..) => End::Died(panic),
            (None, true, _) => End::Done,
            _ if lockups >= LOCKUPS || ended == Watched::Silent => End::Hung,
            (None, false, Watched::Ended) => End::Died("it ended before its jobs".to_owned()),
            (None, false, _) => End::Died(format!("killed after {} s", limit.as_secs())),
        })
    }
}

/// Ends the child, whatever becomes of us.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a program is watched no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watched {
    /// It ended by itself.
    Ended,
    /// It has said enough.
    Enough,
    /// Its time is over.
    Late,
    /// It has said nothing for too long.
    Silent,
}

/// Runs a program and shows its output by lines until `enough` says so, its time is over, or it is silent for too long.
fn watch(
    command: &mut Command,
    limit: Duration,
    silence: Duration,
    mut enough: impl FnMut(&str) -> bool,
) -> Result<Watched> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child =
        Killed(command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?);
    let stdout = child.0.stdout.take().context("no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left.min(silence)) {
            Ok(line) if enough(&line) => return Ok(Watched::Enough),
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Timeout) if left <= silence => return Ok(Watched::Late),
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(Watched::Silent),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(Watched::Ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed() {
        let begun = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "echo hello; sleep 60"]);
        let mut lines = Vec::new();
        let (short, long) = (Duration::from_millis(500), Duration::from_secs(50));
        for (limit, silence, expected) in [(short, long, Watched::Late), (long, short, Watched::Silent)] {
            let ended = watch(&mut command, limit, silence, |line| {
                lines.push(line.to_owned());
                false
            });
            assert_eq!(ended.unwrap(), expected);
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(lines, ["hello", "hello"]);
    }
}
