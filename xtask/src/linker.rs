//! `bpf-linker` and `llvm-objcopy`, both with the LLVM of the pinned compiler.
//!
//! bpf-linker reads the bitcode that rustc wrote, so its LLVM must not be older than rustc's; the
//! optimiser in it writes the final code, so its version is pinned too.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt, cmd, cmd::Cmd, project, toolchain::Toolchain};

/// The pinned version of bpf-linker.
pub const VERSION: &str = "0.13.0";
/// The LLVM of rustc 1.96.
const LLVM: &str = "/usr/lib/llvm-22";

/// Finds bpf-linker (ours, then the user's) or builds it into `.cache`.
pub fn find_or_install(toolchain: &Toolchain) -> Result<PathBuf> {
    let own = project::cache("bpf-linker");
    let binary = own.join("bin/bpf-linker");
    let installed = env::home_dir().map(|home| home.join(".cargo/bin/bpf-linker"));
    let candidates = [Some(binary.clone()), apt::find_program("bpf-linker"), installed];
    if let Some(found) = candidates.into_iter().flatten().find(|linker| is_pinned(linker)) {
        return Ok(found);
    }
    install_llvm(&["llvm-22-dev", "libzstd-dev"], "bin/llvm-config")?;
    toolchain
        .cargo_cmd("install", &project::root())
        .args(["bpf-linker", "--version", VERSION, "--locked", "--no-default-features"])
        .args(["--features", "llvm-22", "--root"])
        .arg(&own)
        .env("LLVM_PREFIX", LLVM)
        .hidden_env("PATH", cmd::path_with(&Path::new(LLVM).join("bin")))
        .run()
        .with_context(|| format!("cannot build bpf-linker {VERSION}"))?;
    Ok(binary)
}

fn is_pinned(linker: &Path) -> bool {
    let version = Cmd::new(linker).arg("--version").probe();
    version.is_some_and(|version| version == format!("bpf-linker {VERSION}"))
}

/// Parts of names that hash the compiler's own version string, which even [`crate::shim`] cannot
/// replace: LLVM numbers nameless constants after a hash of the module's symbols, and rustc's internal
/// ones (the panic handler's, the allocator's) are among those.
pub const PRIVATE_NAMES: [&str; 2] = ["anon.", "___rustc"];

/// Copies `object` to `stripped` without DWARF and without the names of nameless constants, to which
/// nothing refers. BTF stays: the kernel and the loader need it.
pub fn strip(object: &Path, stripped: &Path) -> Result<()> {
    install_llvm(&["llvm-22"], "bin/llvm-objcopy")?;
    Cmd::new(Path::new(LLVM).join("bin/llvm-objcopy"))
        .args(["--strip-debug", "--wildcard", "--strip-unneeded-symbol=anon.*"])
        .args([object, stripped])
        .run()
}

fn install_llvm(packages: &[&str], needed: &str) -> Result<()> {
    if Path::new(LLVM).join(needed).exists() {
        return Ok(());
    }
    apt::install(packages, false)
}
