//! The distribution's archive, through apt with lists of our own: no root, and the system's apt stays as it is.
//!
//! The mirror is the one the system uses, so nothing here names a host. apt checks signatures and checksums.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};

use crate::{cmd::Cmd, exit};

/// Suites that together have every kernel series; the first word says on which of the two mirrors.
const SUITES: [(&str, &str); 4] = [
    ("debian-security", "bullseye-security"),
    ("debian-security", "bookworm-security"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How long lists are taken for fresh.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// Package lists and downloads in a directory of our own.
pub struct Archive {
    dir: PathBuf,
    arch: &'static str,
}

impl Archive {
    /// Opens it, fetching the lists if they are older than a day.
    pub fn open(dir: &Path, arch: &'static str) -> Result<Self> {
        let archive = Self { dir: dir.join(format!("apt-{arch}")), arch };
        for sub in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(archive.dir.join(sub)).context("cannot make a directory in .cache")?;
        }
        let stamp = archive.dir.join("fetched");
        let age = |path: &Path| {
            SystemTime::now().duration_since(fs::metadata(path)?.modified()?).map_err(std::io::Error::other)
        };
        if !age(&stamp).is_ok_and(|age| age < FRESH) {
            archive.write_sources()?;
            // A suite that has left the mirror takes its kernels with it, and nothing else.
            if !archive.apt("apt-get").args(["-qq", "update"]).status()?.success() {
                eprintln!(
                    "note: not every package list could be fetched; older ones are used where there are any"
                );
            }
            fs::write(&stamp, "")?;
        }
        Ok(archive)
    }

    fn write_sources(&self) -> Result<()> {
        let configured = system_sources();
        let mirror = |name: &str| {
            configured.iter().find(|uri| uri.trim_end_matches('/').ends_with(&format!("/{name}"))).ok_or_else(|| {
                exit::with_code(
                    exit::CANNOT,
                    format!("no mirror ending in /{name} in the apt sources of this system; give kernels by --deb or --image"),
                )
            })
        };
        let mut list = String::new();
        for (name, suite) in SUITES {
            let arch = self.arch;
            list += &format!("deb [arch={arch} signed-by={KEYRING}] {} {suite} main\n", mirror(name)?);
        }
        fs::write(self.dir.join("sources.list"), list).context("cannot write sources.list")
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
        let find = || -> Result<Option<PathBuf>> {
            let begin = format!("{package}_");
            let files = fs::read_dir(&debs)?.filter_map(|entry| Some(entry.ok()?.path()));
            let ours = |path: &PathBuf| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begin))
            };
            Ok(files.filter(ours).find(|path| path.extension().is_some_and(|end| end == "deb")))
        };
        if let Some(there) = find()? {
            return Ok(there);
        }
        eprintln!("vm: fetching {package}");
        self.apt("apt-get")
            .args(["-qq", "download", package])
            .dir(&debs)
            .run()
            .with_context(|| format!("cannot download {package}"))?;
        find()?.with_context(|| format!("apt-get download {package} left no file"))
    }
}

/// Addresses of the archives the system uses, of both formats of apt's source lists.
fn system_sources() -> Vec<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let files =
        parts.filter_map(|entry| Some(entry.ok()?.path())).chain([PathBuf::from("/etc/apt/sources.list")]);
    files.filter_map(|file| fs::read_to_string(file).ok()).flat_map(|text| uris(&text)).collect()
}

fn uris(sources: &str) -> Vec<String> {
    let lines =
        sources.lines().map(str::trim).filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let words =
        lines.flat_map(str::split_whitespace).filter(|word| word.contains("://") && !word.contains('='));
    words.map(|word| word.trim_end_matches('/').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let sources = "# deb http://no.example/debian x main\nTypes: deb\nURIs: http://a.example/debian/\nSuites: x\n\
                       deb [arch=amd64 signed-by=/k] http://b.example/debian-security x main\n";
        assert_eq!(uris(sources), ["http://a.example/debian", "http://b.example/debian-security"]);
    }
}
