//! A guest like a node in production: a Debian system with systemd as its first process, unified cgroups, runc with
//! systemd's driver, containerd.
//!
//! Its root is a disk, because runc cannot pivot_root(2) out of an initramfs. mmdebstrap makes the system once, `mke2fs -d`
//! the disk of it; QEMU keeps what a guest writes to itself. A second disk has the programs and the jobs of one run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::cpio::Cpio;
use super::initramfs::JOBS;
use super::programs::Programs;
use crate::cmd::Cmd;
use crate::sources::sha256;
use crate::{archive, dist, project};

/// What there is on a node, beside what every Debian has.
const PACKAGES: &str =
    "busybox-static,containerd,containernetworking-plugins,curl,dbus,iproute2,iptables,runc,systemd-sysv";
const SIZE: &str = "3G";
const FILES: &[(&str, &str)] = &[
    ("etc/containerd/config.toml", include_str!("containerd.toml")),
    ("etc/systemd/system/jobs.service", include_str!("jobs.service")),
    // A starved emulator takes longer than any limit that is meant for a machine.
    ("etc/systemd/system.conf.d/slow.conf", "[Manager]\nDefaultTimeoutStartSec=infinity\n"),
    ("etc/systemd/system/systemd-journald.service.d/slow.conf", "[Service]\nWatchdogSec=0\n"),
    ("etc/hostname", "node\n"),
    ("etc/hosts", "127.0.0.1 localhost node\n::1 localhost\n"),
    // The runtime copies it into each pod.
    ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
];
/// Units without use there. The modules are loaded before systemd and have no files on the disk; the others take an
/// emulator's time.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "systemd-journal-catalog-update.service",
    "systemd-modules-load.service",
];

/// The first root file system, without modules.
pub fn initramfs() -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for directory in ["proc", "sys", "dev"] {
        cpio.directory(directory);
    }
    cpio.file("/bin/busybox", &fs::read("/bin/busybox").context("busybox-static is not installed")?);
    cpio.file("/init", include_bytes!("init.sh"));
    Ok(cpio.finish())
}

/// The disk with the system of a release of Debian, made if need be.
pub fn system(suite: &str) -> Result<PathBuf> {
    let recipe = sha256(format!("{PACKAGES} {SIZE} {FILES:?} {MASKED:?}").as_bytes());
    let disk = project::cache("vm").join(format!("node-{suite}-{}.ext4", &recipe[..8]));
    if disk.is_file() {
        return Ok(disk);
    }
    let root = disk.with_extension("root");
    remove_left(&root)?;
    fs::create_dir_all(project::cache("vm"))?;
    eprintln!("vm: making a system of Debian {suite}");
    Cmd::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")])
        .arg(format!("--keyring={}", archive::KEYRING))
        // What a mirror has is not always as fresh as it says; packages are signed all the same.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg(suite)
        .arg(&root)
        .arg(archive::mirror_of("debian")?)
        .run()?;
    for (path, text) in FILES {
        fs::write(placed(&root, path)?, text).with_context(|| (*path).to_owned())?;
    }
    symlink("../jobs.service", placed(&root, "etc/systemd/system/graphical.target.wants/jobs.service")?)?;
    for unit in MASKED {
        symlink("/dev/null", root.join("etc/systemd/system").join(unit))
            .with_context(|| (*unit).to_owned())?;
    }
    fs::create_dir_all(root.join("t"))?;
    // The plugins are where the runtime's own documentation has them, not where Debian has; the agent adds its own.
    Cmd::new("cp")
        .arg("-a")
        .arg(root.join("usr/lib/cni"))
        .arg(placed(&root, "opt/cni/bin")?)
        .quiet(true)
        .run()?;
    disk_of(&root, &disk, SIZE)?;
    fs::remove_dir_all(&root)?;
    Ok(disk)
}

/// Removes what an interrupted run has left.
fn remove_left(root: &Path) -> Result<()> {
    if root.exists() { Ok(fs::remove_dir_all(root)?) } else { Ok(()) }
}

/// A path below a root, in a directory that exists.
fn placed(root: &Path, path: &str) -> Result<PathBuf> {
    let file = root.join(path);
    fs::create_dir_all(file.parent().context("a file is in a directory")?)?;
    Ok(file)
}

/// The disk with the programs and jobs of one run.
pub fn programs(programs: &Programs, jobs: &str, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("node.root");
    remove_left(&root)?;
    for (name, file) in programs.files() {
        fs::copy(file, placed(&root, &name)?).with_context(|| file.display().to_string())?;
    }
    let dist = project::root().join("target/dist");
    fs::create_dir_all(root.join("dist"))?;
    for file in dist::files(&dist)? {
        fs::copy(dist.join(&file), root.join("dist").join(&file)).context(file)?;
    }
    fs::write(root.join("jobs"), jobs)?;
    fs::write(root.join("jobs.sh"), JOBS)?;
    fs::write(root.join("facts.sh"), include_str!("facts.sh"))?;
    let disk = directory.join("node.ext4");
    disk_of(&root, &disk, "1G")?;
    fs::remove_dir_all(root)?;
    Ok(disk)
}

/// Beside its final place and renamed: what was interrupted is not taken for finished.
fn disk_of(root: &Path, disk: &Path, size: &str) -> Result<()> {
    let fresh = disk.with_extension("new");
    if fresh.exists() {
        fs::remove_file(&fresh)?;
    }
    Cmd::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(root)
        .arg(&fresh)
        .arg(size)
        .quiet(true)
        .run()?;
    fs::rename(&fresh, disk).with_context(|| disk.display().to_string())
}
