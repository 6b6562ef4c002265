//! `cargo xtask ebpf`: makes the committed eBPF object, or proves that it can be made again.

use std::{
    collections::BTreeSet,
    env::consts::ARCH as HOST,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    exit, linker, project, shim,
    sources::{self, OBJECT, RECORD},
    toolchain::{self, Source, Toolchain},
};

const TARGET: &str = "bpfel-unknown-none";
/// Where `--check` builds; emptied first, so that nothing is taken over from an earlier build.
const SCRATCH: &str = "check";

/// Builds the object and writes it and its record into the tree.
pub fn write(source: Source) -> Result<()> {
    let root = project::root();
    // Before the build: an edit made meanwhile then leaves a record that is stale, not one that lies.
    let fingerprint = sources::fingerprint(&root).context("cannot read the sources of the object")?;
    let bytes = build(source, "write")?;
    put(&root.join(OBJECT), &bytes)?;
    put(&root.join(RECORD), format!("{}\n{fingerprint}\n", sources::sha256(&bytes)).as_bytes())?;
    println!("{OBJECT}: {} bytes, sha256 {}", bytes.len(), sources::sha256(&bytes));
    Ok(())
}

/// Rebuilds the object in a scratch place and compares it with the committed one, byte by byte.
pub fn check(source: Source) -> Result<()> {
    let root = project::root();
    let committed = read(&root.join(OBJECT))
        .context("there is no committed object to compare with; `cargo xtask ebpf` makes it")?;
    let rebuilt = build(source, SCRATCH)?;
    println!("committed  sha256 {}  {} bytes", sources::sha256(&committed), committed.len());
    println!("rebuilt    sha256 {}  {} bytes", sources::sha256(&rebuilt), rebuilt.len());
    if committed != rebuilt && HOST != "x86_64" {
        let why = format!(
            "nothing is proved: the committed object was built on x86_64, this is {HOST}, and the names of \
             functions in the object depend on the host"
        );
        return Err(exit::with_code(exit::CANNOT, why));
    }
    if committed != rebuilt {
        bail!("{OBJECT} is not what the sources make: run `cargo xtask ebpf` and commit what it writes");
    }
    let record = format!("{}\n{}\n", sources::sha256(&rebuilt), sources::fingerprint(&root)?);
    if read(&root.join(RECORD))? != record.as_bytes() {
        bail!("{RECORD} does not match the sources: run `cargo xtask ebpf` and commit what it writes");
    }
    println!("the committed object is reproducible");
    Ok(())
}

/// Builds and strips the object in a directory of its own called `place`; returns its bytes.
fn build(source: Source, place: &str) -> Result<Vec<u8>> {
    let toolchain = Toolchain::find_or_install(source).map_err(exit::cannot)?;
    let linker = linker::find_or_install(&toolchain).map_err(exit::cannot)?;
    eprintln!(
        "ebpf: rustc {} ({}), bpf-linker {} ({})",
        toolchain::VERSION,
        toolchain.rustc().display(),
        linker::VERSION,
        linker.display()
    );
    let root = project::root();
    // One directory per compiler: behind the shim cargo cannot tell two of them apart.
    let dir = project::cache("ebpf").join(&sources::sha256(toolchain.description()?.as_bytes())[..8]);
    let target_dir = dir.join(place);
    if place == SCRATCH && target_dir.exists() {
        fs::remove_dir_all(&target_dir).with_context(|| format!("cannot remove {}", target_dir.display()))?;
    }
    toolchain
        .cargo_cmd("build", &root.join("redirector-ebpf"))
        .args(["--locked", "--release", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        // `-Z build-std` is unstable; this lets a stable compiler, which has a fixed version, use it.
        .env("RUSTC_BOOTSTRAP", "1")
        .hidden_env("RUSTC", shim::write(&toolchain, &dir)?)
        .hidden_env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .hidden_env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain, &root)?)
        // The host's release profile asks for LTO; here bpf-linker does it all, and one code unit per
        // crate keeps the order of functions the same everywhere.
        .hidden_env("CARGO_PROFILE_RELEASE_LTO", "off")
        .hidden_env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .run()
        .context("the eBPF programs do not compile")?;
    let stripped = target_dir.join("redirector.bpf.o");
    linker::strip(&target_dir.join(TARGET).join("release/redirector"), &stripped)?;
    let bytes = read(&stripped)?;
    if let Some(name) = linker::PRIVATE_NAMES.iter().find(|name| contains(&bytes, name.as_bytes())) {
        eprintln!(
            "warning: the object has a symbol with `{name}` in its name, which depends on who built the \
             compiler: rustup's and Debian's will make different bytes (see xtask/src/shim.rs)"
        );
    }
    Ok(bytes)
}

/// The compiler's flags, separated as `CARGO_ENCODED_RUSTFLAGS` wants it.
///
/// Paths end up in panic messages and in BTF's line information. Every directory that differs between
/// machines gets a fixed name, so that any checkout makes the same bytes.
fn rustflags(toolchain: &Toolchain, root: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> =
        [r#"--cfg=bpf_target_arch="x86_64""#, "-Cdebuginfo=2", "-Clink-arg=--btf"].map(OsString::from).into();
    let mut remap = |from: &Path, to: &str| {
        // rustc takes the last prefix that fits. A directory may be seen by its real name too: Debian's
        // library source is a symbolic link.
        let real = fs::canonicalize(from).unwrap_or_else(|_| from.to_owned());
        for from in BTreeSet::from([from, &real]) {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        }
    };
    for dir in dependency_dirs(toolchain, root)? {
        remap(&dir, "/cargo");
    }
    remap(&toolchain.library_source(), "/rust");
    remap(root, "/redirector");
    Ok(flags.join("\u{1f}".as_ref()))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    /// `None` for the packages of this workspace.
    source: Option<String>,
}

/// The directories that hold the unpacked dependencies: usually one, below `registry/src`, whose name
/// contains a hash; something else for those who use a mirror or vendored sources.
fn dependency_dirs(toolchain: &Toolchain, root: &Path) -> Result<BTreeSet<PathBuf>> {
    let metadata = toolchain
        .cargo_cmd("metadata", root)
        .args(["--locked", "--format-version=1", "--filter-platform", TARGET])
        .quiet(true)
        .read()
        .context("cargo cannot resolve or download the dependencies")?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cannot read `cargo metadata`")?;
    let foreign = metadata.packages.iter().filter(|package| package.source.is_some());
    Ok(foreign.filter_map(|package| Some(package.manifest_path.parent()?.parent()?.to_owned())).collect())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn put(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
