//! A binary as an older version would have been: the one under test, with other programs.
//!
//! Of its programs only the errno for a full table differs, so they are others to the kernel, and everything that a
//! test looks at is the same.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::harness::product::binary;

/// The id of its programs. (The version may be inside instructions, where a search does not find it.)
pub const PROGRAMS: &str = "0000000000000000";
/// The object that is in the repository, and its sum.
const OBJECT: &[u8] = include_bytes!("../../../../redirector-user/bpf/redirector.bpf.o");
const SOURCES: &[u8] = include_bytes!("../../../../redirector-user/bpf/redirector.bpf.sources");
const ENOBUFS: u8 = 105;
const ENOMEM: u8 = 12;

/// The binary; removed on drop.
pub struct Older {
    directory: tempfile::TempDir,
}

impl Older {
    pub fn make() -> anyhow::Result<Self> {
        let mut bytes = std::fs::read(binary()).context("the binary")?;
        let mut programs = OBJECT.to_vec();
        let mut other = |register| replace(&mut programs, &load(register, ENOBUFS), &load(register, ENOMEM));
        ensure!((0..10).map(&mut other).sum::<usize>() > 0, "no program refuses with ENOBUFS");
        ensure!(replace(&mut bytes, OBJECT, &programs) == 1, "the binary carries another object: build it");
        let id = SOURCES.get(..16).context("a sum has more digits")?;
        ensure!(replace(&mut bytes, id, PROGRAMS.as_bytes()) > 0, "the binary does not know its object's id");

        let older = Self { directory: tempfile::tempdir()? };
        // Copied by a child: a process that another test starts meanwhile would hold it open for writing, and it could
        // not be run.
        let staged = older.path().with_extension("staged");
        std::fs::write(&staged, bytes)?;
        let mut copy = std::process::Command::new("cp");
        crate::harness::command::run(copy.arg(&staged).arg(older.path()), "")?;
        std::fs::remove_file(&staged)?;
        std::fs::set_permissions(older.path(), PermissionsExt::from_mode(0o755))?;
        Ok(older)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("redirector")
    }
}

/// The instruction `rN = NUMBER` (BPF_ALU64 | BPF_MOV | BPF_K).
fn load(register: u8, number: u8) -> [u8; 8] {
    [0xb7, register, 0, 0, number, 0, 0, 0]
}

/// Replaces every occurrence by something of the same length; how many there were.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) -> usize {
    let (mut count, mut at) = (0, 0);
    while let Some(found) = find(&bytes[at..], old) {
        bytes[at + found..][..new.len()].copy_from_slice(new);
        at += found + old.len();
        count += 1;
    }
    count
}

/// Where something begins; by its first byte first, because the binary is large.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = 0;
    loop {
        at += bytes[at..].iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_replaced() {
        let mut bytes = *b"a0.1.0b0.1.00.1.0";
        assert_eq!(replace(&mut bytes, b"0.1.0", b"0.0.9"), 3);
        assert_eq!(&bytes, b"a0.0.9b0.0.90.0.9");
        assert_eq!(replace(&mut bytes, b"missing", b"missing"), 0);
    }
}
