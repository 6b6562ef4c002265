//! Packages of another suite of the distribution's archive, unpacked beside the system instead of installed.
//!
//! The mirror is the one the machine's own apt uses; lists and downloads stay in a directory of ours.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt, cmd::Cmd, exit};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of the archive, with apt's state in a directory of its own.
pub struct Suite {
    directory: PathBuf,
}

impl Suite {
    /// Fetches the suite's lists.
    pub fn open(suite: &str, directory: &Path) -> Result<Self> {
        let mirror = mirror().ok_or_else(|| {
            exit::with_code(exit::CANNOT, "apt knows no Debian mirror here: see /etc/apt/sources.list.d")
        })?;
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part)).with_context(|| directory.display().to_string())?;
        }
        let entry = format!("[signed-by={KEYS}] {mirror} {suite} main");
        let sources = format!("deb {entry}\ndeb-src {entry}\n");
        fs::write(directory.join("sources.list"), sources)?;
        let this = Self { directory: directory.to_owned() };
        this.apt_get().arg("update").run().context("cannot read the package lists of the mirror")?;
        Ok(this)
    }

    fn apt_get(&self) -> Cmd {
        let at = |part: &str| self.directory.join(part).display().to_string();
        Cmd::new("/usr/bin/apt-get")
            .args(["-qq".to_owned(), "-o".to_owned(), format!("Dir::State::Lists={}", at("lists"))])
            .args(["-o".to_owned(), format!("Dir::Cache={}", at("cache"))])
            .args(["-o".to_owned(), format!("Dir::Etc::sourcelist={}", at("sources.list"))])
            .args(["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"])
            .dir(&self.directory)
            .quiet(true)
    }

    /// Downloads packages and unpacks them below `root`.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        self.apt_get()
            .arg("download")
            .args(packages)
            .run()
            .with_context(|| format!("cannot download {}", packages.join(" ")))?;
        for package in packages {
            let file = self.downloaded(&format!("{package}_"), ".deb")?;
            Cmd::new("dpkg").arg("-x").arg(&file).arg(root).quiet(true).run()?;
            fs::remove_file(file)?;
        }
        Ok(())
    }

    /// Downloads a source package; its files are in the directory given to [`Suite::open`].
    pub fn source(&self, package: &str) -> Result<()> {
        self.apt_get().args(["source", "--download-only", package]).run()
    }

    /// A downloaded file by the start and end of its name.
    pub fn downloaded(&self, start: &str, end: &str) -> Result<PathBuf> {
        let found =
            fs::read_dir(&self.directory)?.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(start) && name.ends_with(end)
            });
        found.with_context(|| format!("{start}*{end} was not downloaded into {}", self.directory.display()))
    }
}

/// The address of the first Debian mirror in apt's settings.
fn mirror() -> Option<String> {
    apt::find_program("apt-get")?;
    let arguments = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    first_mirror(&Cmd::new("apt-get").args(arguments).probe()?)
}

fn first_mirror(targets: &str) -> Option<String> {
    targets.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_distributions_mirror() {
        let targets = "https://other.example/apt/\nhttp://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(first_mirror(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(first_mirror("https://other.example/apt/\n"), None);
    }
}
