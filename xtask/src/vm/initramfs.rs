//! The guest's root file system: the host's own tools with their libraries, the tests, the kernel's modules, the jobs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{cpio::Cpio, modules, programs::Programs};
use crate::{apt, cmd::Cmd, exit};

/// What tests run by name. The first is the guest's own; it must not need libraries.
const TOOLS: &[&str] = &[
    "busybox",
    "sh",
    "cat",
    "cp",
    "mv",
    "rm",
    "ls",
    "ln",
    "mkdir",
    "mkfifo",
    "chmod",
    "id",
    "sleep",
    "true",
    "false",
    "env",
    "date",
    "uname",
    "sort",
    "head",
    "tail",
    "grep",
    "sed",
    "kill",
    "timeout",
    "mount",
    "umount",
    "ip",
    "ss",
    "tc",
    "nsenter",
    "flock",
    "unshare",
    "setpriv",
    "strace",
    "bpftool",
    "curl",
    "redsocks",
    "dig",
    "dnsmasq",
    "getent",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "iptables-legacy",
    "ip6tables-legacy",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
    "iptables-nft",
    "ip6tables-nft",
    "nft",
];
/// Tools that the tests can do without: what needs them fails and says so.
const OPTIONAL: &[&str] = &["nft", "redsocks", "tc", "dig", "dnsmasq"];
/// Extensions that iptables loads by name.
const XTABLES: &[&str] =
    &["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables", "/usr/lib64/xtables"];

/// Where the tests are in the guest.
pub const HOME: &str = "/t";
/// The program that runs the jobs, for busybox's shell.
pub const JOBS: &[u8] = include_bytes!("jobs.sh");

/// The part that is the same for every kernel: tools, tests, and Envoy if there is one.
///
/// The tools are this machine's, or those of a directory: another architecture's.
pub fn common(programs: &Programs, tools: Option<&Path>, envoy: Option<&Path>) -> Result<Vec<u8>> {
    let mut root = Root::default();
    // As on a system with a merged /usr: libraries are where the loader looks, whatever name ldd gave.
    for (link, to) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        root.cpio.directory(to);
        root.cpio.symlink(link, to);
    }
    for dir in ["proc", "sys", "dev", "run", "tmp", "root", "etc"] {
        root.cpio.directory(dir);
    }
    root.cpio.file("/init", include_bytes!("init.sh"));
    root.cpio.file("/jobs.sh", JOBS);
    root.cpio.file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nenvoy:x:1337:1337::/:/bin/sh\n");
    root.cpio.file("/etc/group", b"root:x:0:\ndaemon:x:1:\nenvoy:x:1337:\n");
    root.cpio.file("/etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n");
    root.cpio.file("/etc/resolv.conf", b"nameserver 127.0.0.1\n");
    root.cpio.file("/etc/protocols", b"tcp 6 TCP\nudp 17 UDP\n");
    root.cpio.file("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n");
    match tools {
        Some(dir) => root.system(dir)?,
        None => root.tools_of_this_machine()?,
    }
    for (path, file) in programs.files() {
        root.put(&format!("{HOME}/{path}"), file)?;
    }
    if let Some(envoy) = envoy {
        root.put(&format!("{HOME}/envoy"), envoy)?;
    }
    Ok(root.cpio.finish())
}

/// The part of one boot: modules and jobs (lines `name|seconds|command`).
pub fn particular(modules: Option<&Path>, jobs: &str) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    let mut order = String::new();
    for (name, bytes) in modules.map(modules::collect).transpose()?.unwrap_or_default() {
        cpio.file(&format!("/usr/lib/modules/{name}.ko"), &bytes);
        order += &format!("{name}\n");
    }
    cpio.file("/usr/lib/modules/order", order.as_bytes());
    cpio.file("/jobs", jobs.as_bytes());
    Ok(cpio.finish())
}

#[derive(Default)]
struct Root {
    cpio: Cpio,
    present: BTreeSet<PathBuf>,
}

impl Root {
    /// What this machine has of [`TOOLS`], with the libraries they need.
    fn tools_of_this_machine(&mut self) -> Result<()> {
        for tool in TOOLS {
            match apt::find_program(tool) {
                Some(path) => self.tool(tool, &path)?,
                None if OPTIONAL.contains(tool) => {}
                None => {
                    return Err(exit::with_code(
                        exit::CANNOT,
                        format!("`{tool}` is not installed here, and the guest needs it"),
                    ));
                }
            }
        }
        for dir in XTABLES.iter().map(Path::new).filter(|dir| dir.is_dir()) {
            for entry in fs::read_dir(dir)? {
                self.library(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// All programs and libraries of a system in a directory, with what its packages would have made on installation.
    fn system(&mut self, dir: &Path) -> Result<()> {
        for place in ["bin", "sbin", "lib", "usr/bin", "usr/sbin", "usr/lib"] {
            self.copy(dir, &dir.join(place))?;
        }
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                self.cpio.symlink(&format!("/usr/sbin/{family}{verb}"), "xtables-nft-multi");
            }
        }
        Ok(())
    }

    fn copy(&mut self, root: &Path, from: &Path) -> Result<()> {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            let place = merged(Path::new("/").join(path.strip_prefix(root)?)).display().to_string();
            let kind = path.symlink_metadata()?.file_type();
            if kind.is_dir() {
                self.copy(root, &path)?;
            } else if kind.is_symlink() {
                self.cpio.symlink(&place, &fs::read_link(&path)?.display().to_string());
            } else {
                self.cpio.file(&place, &fs::read(&path)?);
            }
        }
        Ok(())
    }

    /// A program under the name by which it was found, and what it really is (iptables is called by many names).
    fn tool(&mut self, name: &str, found: &Path) -> Result<()> {
        let real = fs::canonicalize(found).with_context(|| format!("cannot find {}", found.display()))?;
        self.library(&real)?;
        let dir =
            if found.components().any(|part| part.as_os_str() == "sbin") { "usr/sbin" } else { "usr/bin" };
        let link = merged(Path::new("/").join(dir).join(name));
        if link != merged(real.clone()) {
            self.cpio.symlink(&link.display().to_string(), &merged(real).display().to_string());
        }
        Ok(())
    }

    /// A file at its own place, with the libraries it needs.
    fn library(&mut self, path: &Path) -> Result<()> {
        let place = merged(path.to_owned());
        if self.present.insert(place.clone()) {
            self.put(&place.display().to_string(), path)?;
        }
        Ok(())
    }

    fn put(&mut self, place: &str, file: &Path) -> Result<()> {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let elf = contents.starts_with(b"\x7fELF");
        self.cpio.file(place, &contents);
        if elf {
            for library in libraries(file) {
                self.library(&library)?;
            }
        }
        Ok(())
    }
}

/// What the dynamic loader would load; nothing for a static program, of which ldd says so by failing.
fn libraries(file: &Path) -> Vec<PathBuf> {
    let listed = Cmd::new("ldd").arg(file).quiet(true).probe().unwrap_or_default();
    let words = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// The same path where `/bin`, `/lib` and so on are links into `/usr`.
fn merged(path: PathBuf) -> PathBuf {
    let outside = ["/bin", "/sbin", "/lib", "/lib64"].iter().any(|dir| path.starts_with(dir));
    if outside { Path::new("/usr").join(path.strip_prefix("/").unwrap_or(&path)) } else { path }
}
