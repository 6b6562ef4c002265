//! `cargo xtask dist`: what users install, in `target/dist`, the same bytes each time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cmd::Cmd;
use crate::crates::Program;
use crate::sources::sha256;
use crate::vm::Arch;
use crate::{deb, deps, exit, image, project};

/// The image's name, as the manifests have it.
pub const IMAGE: &str = concat!("localhost/redirector:", env!("CARGO_PKG_VERSION"));
const VERSION: &str = env!("CARGO_PKG_VERSION");
const SBOM: Program = Program { name: "cargo-cyclonedx", version: "0.5.9" };
const CHECKSUMS: &str = "SHA256SUMS";

/// The image for this machine alone, as an OCI archive: what `node kubernetes` deploys.
pub fn local_image() -> Result<PathBuf> {
    let directory = directory()?;
    let binary = binary(Arch::here(), &target(Arch::here())?, &directory)?;
    let archive = directory.join("redirector-image-local.tar");
    image::write(&[(Arch::here(), binary)], IMAGE, &archive)?;
    Ok(archive)
}

/// The verb: builds everything for `arches`, and says where it is.
pub fn dist(arches: &[Arch], name: &str, check: bool) -> Result<()> {
    let directory = directory()?;
    let files = build(arches, name, &directory)?;
    if check {
        let before = fs::read(directory.join(CHECKSUMS))?;
        fs::remove_dir_all(built())?;
        build(arches, name, &directory)?;
        let after = fs::read(directory.join(CHECKSUMS))?;
        ensure!(
            before == after,
            "a second build from nothing made other bytes; {CHECKSUMS} has the second's"
        );
        println!("a second build from nothing made the same bytes");
    }
    let shown = directory.strip_prefix(project::root()).unwrap_or(&directory).display().to_string();
    for file in files.iter().map(String::as_str).chain([CHECKSUMS]) {
        println!("{shown}/{file}");
    }
    println!("import   ctr --namespace k8s.io images import {shown}/redirector-image.tar");
    println!("push     skopeo copy --all oci-archive:{shown}/redirector-image.tar docker://REGISTRY/{name}");
    Ok(())
}

/// What was made last, by its checksums, which are the last of them.
pub fn files(directory: &Path) -> Result<Vec<String>> {
    let sums = fs::read_to_string(directory.join(CHECKSUMS)).with_context(|| {
        exit::with_code(exit::CANNOT, "nothing to install here: `cargo xtask dist` first")
    })?;
    let names = sums.lines().filter_map(|line| Some(line.split_once("  ")?.1.to_owned()));
    Ok(names.chain([CHECKSUMS.to_owned()]).collect())
}

/// The program of what was made last.
pub fn program(arch: Arch) -> Result<PathBuf> {
    let directory = directory()?;
    let name = program_name(arch);
    ensure!(files(&directory)?.contains(&name), "{} has no {name}", directory.display());
    Ok(directory.join(name))
}

fn program_name(arch: Arch) -> String {
    format!("redirector-{}", arch.debian())
}

fn directory() -> Result<PathBuf> {
    let directory = project::root().join("target/dist");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

fn build(arches: &[Arch], name: &str, directory: &Path) -> Result<Vec<String>> {
    let mut files = vec![generated(directory)?];
    let mut binaries = Vec::new();
    for arch in arches {
        let target = target(*arch)?;
        let binary = binary(*arch, &target, directory)?;
        files.push(file_name(&binary));
        files.push(deb::package(*arch, &target, &built(), directory)?);
        binaries.push((*arch, binary));
    }
    let archive = directory.join("redirector-image.tar");
    image::write(&binaries, name, &archive)?;
    files.push(file_name(&archive));
    fs::copy(project::root().join("deploy/systemd").join(deb::UNIT), directory.join(deb::UNIT))?;
    files.push(deb::UNIT.to_owned());
    files.push(chart(directory)?);
    files.push(sbom(directory)?);
    files.sort();
    let sums = files.iter().map(|file| Ok(format!("{}  {file}\n", sha256(&fs::read(directory.join(file))?))));
    fs::write(directory.join(CHECKSUMS), sums.collect::<Result<String>>()?)?;
    Ok(files)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where cargo builds for releases: with flags of its own, which would rebuild everything else.
fn built() -> PathBuf {
    project::target().join("static")
}

fn target(arch: Arch) -> Result<String> {
    arch.static_target().ok_or_else(|| arch.no_static_target())
}

/// The static program of one architecture, in `directory`.
fn binary(arch: Arch, target: &str, directory: &Path) -> Result<PathBuf> {
    deps::for_static(arch)?;
    let build =
        ["build", "--release", "--locked", "-p", "redirector-user", "--bin", "redirector", "--target-dir"];
    let cargo = project::cargo().args(build).arg(built());
    let messages = arch
        .compile_for(target, cargo)
        .hidden_env("RUSTFLAGS", remapped()?)
        .arg("--message-format=json-render-diagnostics")
        .read()?;
    let built = project::Binaries::of(&messages).get("redirector")?.to_owned();
    if needs_a_loader(&fs::read(&built)?) {
        bail!("{} is not static: it asks for a dynamic loader", built.display());
    }
    let placed = directory.join(program_name(arch));
    // Renamed: the one before was executed a moment ago, and whoever looks at that process keeps it from being written.
    let fresh = placed.with_extension("new");
    fs::copy(&built, &fresh).with_context(|| fresh.display().to_string())?;
    fs::rename(&fresh, &placed).with_context(|| placed.display().to_string())?;
    Ok(placed)
}

/// Flags that keep the paths of this machine out of the program.
fn remapped() -> Result<String> {
    let home = std::env::home_dir().context("there is no home directory")?;
    let home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let flag = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok(format!("{} {}", flag(&home, "/cargo"), flag(&project::root(), "/redirector")))
}

/// What the program says of itself, for packages and by itself: man pages, completions, schemas.
fn generated(directory: &Path) -> Result<String> {
    let place = project::root().join("target/deb");
    let program = binary(Arch::here(), &target(Arch::here())?, directory)?;
    let kinds = ["completions", "man", "schemas"];
    for kind in kinds {
        let kind_place = place.join(kind);
        if kind_place.exists() {
            fs::remove_dir_all(&kind_place)?;
        }
        Cmd::new(&program).args(["generate", kind]).arg(kind_place).quiet(true).run()?;
    }
    let name = format!("redirector-generated-{VERSION}.tgz");
    packed(&place, &kinds, &directory.join(&name))?;
    Ok(name)
}

/// Files of a directory, as an archive that is the same each time.
fn packed(directory: &Path, what: &[&str], archive: &Path) -> Result<()> {
    let tar = archive.with_extension("tar");
    image::tar(directory, &tar, &[&["--mode=u=rwX,go=rX"], what].concat())?;
    fs::write(archive, image::gzip(&tar)?)?;
    fs::remove_file(tar).with_context(|| archive.display().to_string())
}

/// The chart as `helm package` makes it: one directory in a compressed archive.
fn chart(directory: &Path) -> Result<String> {
    let name = format!("redirector-chart-{VERSION}.tgz");
    packed(&project::root().join("deploy/helm"), &["redirector"], &directory.join(&name))?;
    Ok(name)
}

/// What the program is made of, as CycloneDX. Its serial number and time would be others each time.
fn sbom(directory: &Path) -> Result<String> {
    let name = "redirector.cdx.json".to_owned();
    Cmd::new(SBOM.find_or_install()?)
        .args(["cyclonedx", "--format", "json", "--manifest-path", "redirector-user/Cargo.toml"])
        .args(["--override-filename", "redirector.cdx"])
        .hidden_env("SOURCE_DATE_EPOCH", "0")
        .dir(project::root())
        .quiet(true)
        .run()?;
    // It writes beside the manifest of each package of the workspace.
    let mut written = Vec::new();
    for entry in fs::read_dir(project::root())? {
        let file = entry?.path().join(&name);
        if file.is_file() {
            written.push(file);
        }
    }
    let ours = project::root().join("redirector-user").join(&name);
    let mut bill: serde_json::Value = serde_json::from_slice(&fs::read(&ours)?)?;
    written.iter().try_for_each(fs::remove_file)?;
    bill.as_object_mut().context("the bill of materials is no object")?.remove("serialNumber");
    let text = serde_json::to_string_pretty(&bill)?.replace(&project::root().display().to_string(), "");
    fs::write(directory.join(&name), text)?;
    Ok(name)
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
