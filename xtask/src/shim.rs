//! A front for rustc that makes rustup's and Debian's builds of one version indistinguishable.
//!
//! A function that is not inlined keeps its mangled name in the object, and the name holds a hash of
//! the compiler's description: cargo hashes all of `rustc -vV`, rustc its own version string. Debian's
//! description of the same compiler is longer ("built from a source tarball"), so the names, and with
//! them the bytes, would differ where the code does not. What the front cannot reach is in
//! [`crate::linker::PRIVATE_NAMES`].

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::toolchain::{self, Toolchain};

/// Writes the front for `toolchain`'s compiler into `dir` and returns its path.
pub fn write(toolchain: &Toolchain, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("rustc");
    let script = script(&toolchain.rustc().to_string_lossy(), &toolchain.host()?);
    // Cargo watches the time of the file.
    if fs::read_to_string(&path).is_ok_and(|old| old == script) {
        return Ok(path);
    }
    let problem = || format!("cannot write {}", path.display());
    fs::create_dir_all(dir).with_context(problem)?;
    fs::write(&path, script).with_context(problem)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(problem)?;
    Ok(path)
}

fn script(rustc: &str, host: &str) -> String {
    let version = toolchain::VERSION;
    let rustc = rustc.replace('\'', r"'\''");
    format!(
        "#!/bin/sh\n\
         # Written by `cargo xtask ebpf`; xtask/src/shim.rs says why.\n\
         if [ \"$*\" = -vV ]; then\n\
         \x20   printf '%s\\n' 'rustc {version}' 'binary: rustc' 'commit-hash: unknown' 'commit-date: unknown' \\\n\
         \x20       'host: {host}' 'release: {version}' 'LLVM version: 22.1'\n\
         else\n\
         \x20   RUSTC_FORCE_RUSTC_VERSION={version} exec '{rustc}' \"$@\"\n\
         fi\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::Cmd;

    #[test]
    fn the_script_answers_for_the_compiler_and_passes_the_rest_on() {
        let dir = std::env::temp_dir().join(format!("xtask-shim-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("rustc");
        fs::write(&path, script("/bin/echo", "a-b-c")).unwrap();
        let ask = |args: &[&str]| Cmd::new("/bin/sh").arg(&path).args(args).probe().unwrap();
        assert!(ask(&["-vV"]).contains("\nhost: a-b-c\nrelease: "));
        assert_eq!(ask(&["--crate-name", "x y"]), "--crate-name x y");
        fs::remove_dir_all(&dir).unwrap();
    }
}
