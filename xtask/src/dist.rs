//! `cargo xtask dist`: the static binary and the container image made of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, cmd::Cmd, exit, image, project};

/// The image's name, as the manifests have it.
pub const IMAGE: &str = concat!("localhost/redirector:", env!("CARGO_PKG_VERSION"));
const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// What was made.
pub struct Dist {
    /// The static binary.
    pub binary: PathBuf,
    /// The image as an OCI archive.
    pub image: PathBuf,
}

/// Builds everything into `target/dist`.
pub fn build(name: &str) -> Result<Dist> {
    let binary = static_binary()?;
    let directory = project::root().join("target/dist");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let placed = directory.join("redirector");
    fs::copy(&binary, &placed).with_context(|| placed.display().to_string())?;
    let archive = directory.join("redirector-image.tar");
    image::write(&placed, name, &archive)?;
    Ok(Dist { binary: placed, image: archive })
}

/// The verb: builds, and says where everything is.
pub fn dist(name: &str) -> Result<()> {
    let dist = build(name)?;
    let relative = |path: &Path| path.strip_prefix(project::root()).unwrap_or(path).display().to_string();
    println!("binary   {} (static)", relative(&dist.binary));
    println!("image    {} ({name}, OCI archive)", relative(&dist.image));
    println!("import   ctr --namespace k8s.io images import {}", relative(&dist.image));
    println!("push     skopeo copy oci-archive:{} docker://REGISTRY/{name}", relative(&dist.image));
    Ok(())
}

/// musl where rustup has its library; else glibc, linked statically.
///
/// Both run in an image without any other file: redirector looks up no users and no host names through
/// libc, which is what a static glibc cannot do.
fn static_binary() -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(exit::with_code(exit::CANNOT, "`cargo xtask dist` knows x86-64 only so far"));
    }
    let (target, flags) = if musl_is_there() { (MUSL, "") } else { (GNU, "-Ctarget-feature=+crt-static") };
    let mut cargo = project::cargo()
        .args(["build", "--release", "--locked", "-p", "redirector-user", "--bin", "redirector"])
        .args(["--target", target]);
    if target == MUSL {
        // For the crates that compile C.
        if apt::find_program("musl-gcc").is_none() {
            apt::install(&["musl-tools"], true)?;
        }
    } else {
        eprintln!("note: no {MUSL} here (rustup target add {MUSL}); linking glibc statically instead");
        cargo = cargo.env("RUSTFLAGS", flags);
    }
    let messages = cargo.arg("--message-format=json-render-diagnostics").read()?;
    let binary = project::Binaries::of(&messages).get("redirector")?.to_owned();
    if needs_a_loader(&fs::read(&binary)?) {
        bail!("{} is not static: it asks for a dynamic loader", binary.display());
    }
    Ok(binary)
}

fn musl_is_there() -> bool {
    let installed = || {
        let list = Cmd::new("rustc").args(["--print", "target-libdir", "--target", MUSL]).probe();
        list.is_some_and(|directory| Path::new(&directory).is_dir())
    };
    // Asking for it costs nothing where it is installed; offline it fails.
    installed()
        || (apt::find_program("rustup").is_some()
            && Cmd::new("rustup").args(["target", "add", MUSL]).quiet(true).run().is_ok()
            && installed())
}

/// An ELF file with a program header of type PT_INTERP.
fn needs_a_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at + size)?;
        bytes.iter().rev().try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((start, size, count)) = headers() else { return false };
    (0..count).any(|index| number(start + index * size, 4) == usize::try_from(PT_INTERP).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_static_from_dynamic() {
        // A test program is linked dynamically; without its interpreter it would not start.
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needs_a_loader(&me));
        assert!(!needs_a_loader(b"\x7fELF"));
        let mut without = me.clone();
        let start = usize::try_from(u64::from_le_bytes(me[32..40].try_into().unwrap())).unwrap();
        let size = usize::from(u16::from_le_bytes(me[54..56].try_into().unwrap()));
        for index in 0..usize::from(u16::from_le_bytes(me[56..58].try_into().unwrap())) {
            without[start + index * size] = 0;
        }
        assert!(!needs_a_loader(&without));
    }
}
