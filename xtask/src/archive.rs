//! The distribution's archive through apt with lists of our own, for packages that are unpacked beside the system instead
//! of installed: no root, and the system's apt stays as it is.
//!
//! The mirrors are those the system uses, so nothing here names a host. apt checks signatures and checksums.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::{apt, cmd::Cmd, exit};

/// The keys of the distribution's archive.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How long lists are taken for fresh.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// What is wanted of the archive.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Debian's name of the architecture.
    pub arch: &'a str,
    /// Name of the mirror (`debian`, `debian-security`) and suite.
    pub suites: &'a [(&'a str, &'a str)],
    /// Source packages, too.
    pub sources: bool,
}

/// Package lists and downloads in a directory of our own.
pub struct Archive {
    dir: PathBuf,
    arch: String,
}

impl Archive {
    /// Opens it, fetching the lists if they are older than a day.
    pub fn open(dir: &Path, wanted: Wanted<'_>) -> Result<Self> {
        let archive = Self { dir: dir.to_owned(), arch: wanted.arch.to_owned() };
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| dir.display().to_string())?;
        }
        let (stamp, list) = (dir.join("fetched"), wanted.list()?);
        let age = |path: &Path| {
            SystemTime::now().duration_since(fs::metadata(path)?.modified()?).map_err(std::io::Error::other)
        };
        let same = fs::read_to_string(&stamp).is_ok_and(|fetched| fetched == list);
        if !(same && age(&stamp).is_ok_and(|age| age < FRESH)) {
            fs::write(dir.join("sources.list"), &list).context("cannot write sources.list")?;
            // A suite that has left the mirror takes its packages with it, and nothing else.
            if !archive.apt("apt-get").args(["-qq", "update"]).status()?.success() {
                eprintln!(
                    "note: not every package list could be fetched; older ones are used where there are any"
                );
            }
            fs::write(&stamp, list)?;
        }
        Ok(archive)
    }

    fn apt(&self, program: &str) -> Cmd {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let options = [
            format!("Dir::State::Lists={}", path("lists")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("APT::Architecture={}", self.arch),
            format!("APT::Architectures={}", self.arch),
            "Acquire::Languages=none".to_owned(),
            // Root's apt would hand the download to a user who cannot write here.
            "APT::Sandbox::User=root".to_owned(),
            // The lock is that of the system's packages, which stay as they are.
            "Debug::NoLocking=1".to_owned(),
        ];
        options.into_iter().fold(Cmd::new(program).quiet(true), |cmd, option| cmd.args(["-o", &option]))
    }

    /// Names of packages that begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.apt("apt-cache").args(["pkgnames", prefix]).read()?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads a package unless it is there; the file.
    pub fn download(&self, package: &str) -> Result<PathBuf> {
        let debs = self.dir.join("debs");
        let begin = format!("{package}_");
        if let Some(there) = file(&debs, &begin, ".deb")? {
            return Ok(there);
        }
        eprintln!("fetching {package}");
        self.apt("apt-get")
            .args(["-qq", "download", package])
            .dir(&debs)
            .run()
            .with_context(|| format!("cannot download {package}"))?;
        file(&debs, &begin, ".deb")?.with_context(|| format!("apt-get download {package} left no file"))
    }

    /// Downloads packages and unpacks them below `root`.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        let debs: Result<Vec<_>> = packages.iter().map(|package| self.download(package)).collect();
        unpack(&debs?, root)
    }

    /// The same, with all that they depend on: a system for an architecture that need not be this machine's.
    pub fn unpack_with_dependencies(&self, packages: &[&str], root: &Path) -> Result<()> {
        let cache = self.dir.join("cache/archives");
        eprintln!("fetching {}", packages.join(" "));
        self.apt("apt-get")
            .args(["-qq", "install", "--download-only", "--yes", "--no-install-recommends"])
            .args(packages)
            .run()
            .with_context(|| format!("cannot download {}", packages.join(" ")))?;
        let files = fs::read_dir(&cache)?.filter_map(|entry| Some(entry.ok()?.path()));
        let debs: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
        unpack(&debs, root)
    }

    /// Downloads the files of a source package.
    pub fn source(&self, package: &str) -> Result<()> {
        self.apt("apt-get").args(["-qq", "source", "--download-only", package]).dir(&self.dir).run()
    }

    /// A file of a source package by the start and end of its name.
    pub fn source_file(&self, start: &str, end: &str) -> Result<PathBuf> {
        let found = file(&self.dir, start, end)?;
        found.with_context(|| format!("{start}*{end} was not downloaded into {}", self.dir.display()))
    }
}

/// Unpacks package files below a directory.
pub fn unpack(debs: &[PathBuf], root: &Path) -> Result<()> {
    fs::create_dir_all(root).with_context(|| root.display().to_string())?;
    debs.iter().try_for_each(|deb| Cmd::new("dpkg").arg("-x").args([deb, root]).quiet(true).run())
}

fn file(dir: &Path, start: &str, end: &str) -> Result<Option<PathBuf>> {
    let mut paths = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && name.ends_with(end)
    }))
}

impl Wanted<'_> {
    /// The lines of `sources.list`.
    fn list(&self) -> Result<String> {
        let mut list = String::new();
        for (name, suite) in self.suites {
            let mirror = mirror_of(name)?;
            let arch = self.arch;
            list += &format!("deb [arch={arch} signed-by={KEYRING}] {mirror} {suite} main\n");
            if self.sources {
                list += &format!("deb-src [signed-by={KEYRING}] {mirror} {suite} main\n");
            }
        }
        Ok(list)
    }
}

/// The mirror of this name that the system's apt uses.
pub fn mirror_of(name: &str) -> Result<String> {
    apt::find_program("apt-get").ok_or_else(|| exit::with_code(exit::CANNOT, "there is no apt-get here"))?;
    let arguments = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let targets = Cmd::new("apt-get").args(arguments).probe().unwrap_or_default();
    mirror(&targets, name).map(str::to_owned).ok_or_else(|| {
        exit::with_code(
            exit::CANNOT,
            format!(
                "apt knows no mirror that ends in /{name} here: see /etc/apt/sources.list.d\n\
                 (`cargo xtask vm` also takes kernels by --deb or --image)"
            ),
        )
    })
}

/// The first of these addresses whose path is this name.
fn mirror<'a>(targets: &'a str, name: &str) -> Option<&'a str> {
    let end = format!("/{name}");
    targets.lines().map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with(&end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_distributions_mirrors() {
        let targets = "https://other.example/apt/\nhttp://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(mirror(targets, "debian"), Some("http://mirror.example/debian"));
        assert_eq!(mirror(targets, "debian-security"), Some("http://mirror.example/debian-security"));
        assert_eq!(mirror("https://other.example/apt/\n", "debian"), None);
    }
}
