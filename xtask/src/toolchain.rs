//! The compiler of the eBPF object.
//!
//! The object is committed, so everybody has to get the same bytes out of the same sources. Code and
//! BTF depend on the compiler's version; 1.96.0 is pinned because two independent sources have it with
//! the library's source, which `-Z build-std=core` needs: rustup, and Debian's security archive, where
//! it is kept to build web browsers. Either may be out of reach on a given machine.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{apt, cmd::Cmd, project};

/// The pinned version.
pub const VERSION: &str = "1.96.0";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Where the compiler may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// Whatever is installed; else rustup; else Debian.
    Auto,
    /// Only rustup's toolchain 1.96.0.
    Rustup,
    /// Only Debian's rustc-web.
    Debian,
}

/// A compiler of the pinned version, its cargo and its library source.
pub struct Toolchain {
    sysroot: PathBuf,
}

impl Toolchain {
    /// Finds a suitable toolchain or installs one.
    pub fn find_or_install(source: Source) -> Result<Self> {
        type Attempt = fn() -> Result<Toolchain>;
        // What is installed comes before what has to be downloaded.
        let attempts: [(Source, Attempt); 4] = [
            (Source::Rustup, Self::of_rustup),
            (Source::Debian, Self::of_debian),
            (Source::Rustup, Self::install_by_rustup),
            (Source::Debian, Self::install_by_apt),
        ];
        let mut failed = String::new();
        for (from, attempt) in attempts {
            if source == Source::Auto || source == from {
                match attempt() {
                    Ok(toolchain) => return Ok(toolchain),
                    Err(error) => failed.push_str(&format!("\n  - {error:#}")),
                }
            }
        }
        bail!(
            "the eBPF object is compiled by rustc {VERSION} with rust-src, which cannot be had here:{failed}\n\
             Either of these, run by hand, is enough:\n  \
             rustup toolchain install {VERSION} --profile minimal --component rust-src\n  \
             apt-get install {}",
            DEBIAN_PACKAGES.join(" ")
        )
    }

    fn of_rustup() -> Result<Self> {
        // Without this variable recent versions of rustup would answer the question by installing.
        let sysroot = rustup()
            .hidden_env("RUSTUP_AUTO_INSTALL", "0")
            .args(["run", VERSION, "rustc", "--print", "sysroot"])
            .probe()
            .with_context(|| format!("rustup has no toolchain {VERSION}"))?;
        Self::at(sysroot)
    }

    fn of_debian() -> Result<Self> {
        Self::at("/usr")
    }

    fn install_by_rustup() -> Result<Self> {
        if apt::find_program("rustup").is_none() {
            bail!("there is no rustup in PATH");
        }
        rustup()
            .args(["toolchain", "install", VERSION, "--profile", "minimal", "--component", "rust-src"])
            .arg("--no-self-update")
            .run()?;
        Self::of_rustup()
    }

    fn install_by_apt() -> Result<Self> {
        apt::install(&DEBIAN_PACKAGES, false)?;
        Self::of_debian()
    }

    /// The toolchain in `sysroot`, if it is the right one and complete.
    fn at(sysroot: impl Into<PathBuf>) -> Result<Self> {
        let toolchain = Self { sysroot: sysroot.into() };
        let rustc = toolchain.rustc();
        let version = Cmd::new(&rustc)
            .arg("--version")
            .probe()
            .with_context(|| format!("there is no {}", rustc.display()))?;
        if !version.starts_with(&format!("rustc {VERSION} ")) {
            bail!("{} is `{version}`, not {VERSION}", rustc.display());
        }
        for needed in [toolchain.cargo(), toolchain.library_source().join("library/core/src/lib.rs")] {
            if !needed.exists() {
                bail!("there is no {}", needed.display());
            }
        }
        Ok(toolchain)
    }

    /// The compiler.
    pub fn rustc(&self) -> PathBuf {
        self.sysroot.join("bin/rustc")
    }

    /// The cargo that came with the compiler.
    pub fn cargo(&self) -> PathBuf {
        self.sysroot.join("bin/cargo")
    }

    /// What the compiler says about itself, and where it is.
    pub fn description(&self) -> Result<String> {
        let rustc = self.rustc();
        let about = Cmd::new(&rustc).arg("-vV").quiet(true).read()?;
        Ok(format!("{}\n{about}", rustc.display()))
    }

    /// The machine the compiler runs on, as `x86_64-unknown-linux-gnu`.
    pub fn host(&self) -> Result<String> {
        let description = self.description()?;
        let host = description.lines().find_map(|line| line.strip_prefix("host: "));
        host.map(str::to_owned).with_context(|| format!("{} -vV names no host", self.rustc().display()))
    }

    /// Where the sources of `core` are.
    pub fn library_source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    /// `cargo VERB` of this toolchain in `dir`, in an environment that does not depend on who calls us.
    ///
    /// `cargo xtask` itself runs under cargo and usually under rustup's shims, which leave behind
    /// variables (`RUSTUP_TOOLCHAIN`, `CARGO`, `RUSTC`, ...) that would silently bring the caller's
    /// compiler or flags into this build. Only cargo's settings about network and registries stay.
    pub fn cargo_cmd(&self, verb: &str, dir: &Path) -> Cmd {
        const KEPT: [&str; 7] = [
            "CARGO_HOME",
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTR",
            "CARGO_SOURCE_",
            "CARGO_TERM_",
            "CARGO_BUILD_JOBS",
        ];
        let foreign = |name: &str| {
            name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept))
                || name.starts_with("RUSTC")
                || name.starts_with("RUSTFLAGS")
                || name.starts_with("RUSTUP_TOOLCHAIN")
        };
        let names = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        names
            .filter(|name| foreign(name))
            .fold(Cmd::new(self.cargo()), Cmd::without_env)
            .hidden_env("RUSTC", self.rustc())
            .arg(verb)
            .dir(dir)
    }
}

fn rustup() -> Cmd {
    Cmd::new("rustup").without_env("RUSTUP_TOOLCHAIN").dir(project::root())
}
