//! The fingerprint of everything the eBPF object is made from.
//!
//! One file, two users: `cargo xtask ebpf` writes the fingerprint beside the object, and the test
//! `redirector-user/tests/object_is_fresh.rs` (which includes this file by its path) recomputes it, so
//! that an ordinary `cargo test` notices an edited source without having an eBPF compiler.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// The committed object, relative to the root of the checkout.
pub const OBJECT: &str = "redirector-user/bpf/redirector.bpf.o";
/// Its companion: line 1 is the sha256 of the object, line 2 the fingerprint of the sources.
pub const RECORD: &str = "redirector-user/bpf/redirector.bpf.sources";

const INPUTS: [&str; 4] = [
    "redirector-common/Cargo.toml",
    "redirector-common/src",
    "redirector-ebpf/Cargo.toml",
    "redirector-ebpf/src",
];

/// Crates whose version in `Cargo.lock` changes the object.
const CRATES: [&str; 3] = ["aya-ebpf", "aya-log", "bytemuck"];

/// sha256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

/// sha256 over `path NUL length NUL content` of every input, in the order of their paths.
pub fn fingerprint(root: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(root, Path::new(input), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        feed(&mut hash, &file.to_string_lossy(), &fs::read(root.join(&file))?);
    }
    let versions = locked_versions(&fs::read_to_string(root.join("Cargo.lock"))?);
    feed(&mut hash, "Cargo.lock", versions.as_bytes());
    Ok(hex(hash.finalize().as_slice()))
}

fn feed(hash: &mut Sha256, name: &str, content: &[u8]) {
    hash.update(format!("{name}\0{}\0", content.len()));
    hash.update(content);
}

fn collect(root: &Path, path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let full = root.join(path);
    if full.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(full)? {
        collect(root, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

/// The lines `name = ...` and `version = ...` of the crates that matter. `Cargo.lock` is sorted and
/// writes them next to each other.
fn locked_versions(lock: &str) -> String {
    let mut found = String::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("name = \"") else { continue };
        if CRATES.iter().any(|prefix| name.starts_with(prefix)) {
            found.push_str(line);
            found.push_str(lines.next().unwrap_or_default());
            found.push('\n');
        }
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_crates_inside_the_object_count() {
        let lock = "[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\n\n[[package]]\nname = \"tokio\"\n\
                    version = \"1.0.0\"\n";
        assert_eq!(locked_versions(lock), "name = \"aya-ebpf\"version = \"0.2.1\"\n");
    }

    #[test]
    fn sha256_of_nothing() {
        assert!(sha256(b"").starts_with("e3b0c44298fc1c14"));
    }
}
