//! Archives in the `newc` format, which the kernel unpacks as its first root file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Several of them may follow one another.

use std::collections::BTreeSet;

/// An archive in memory.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    count: u32,
}

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
/// A file that may be run.
pub const PROGRAM: u32 = 0o100_755;

impl Cpio {
    /// Adds a directory, with those above it.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file, with the directories above it.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.with_parents(path, PROGRAM, contents);
    }

    /// Adds a symbolic link, with the directories above it.
    pub fn symlink(&mut self, path: &str, to: &str) {
        self.with_parents(path, SYMLINK, to.as_bytes());
    }

    fn with_parents(&mut self, path: &str, mode: u32, contents: &[u8]) {
        let path = path.trim_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, mode, contents);
    }

    /// One header: magic, then 13 numbers of 8 hexadecimal digits; then the name and the contents, each padded to 4 bytes.
    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.count += 1;
        let size = u32::try_from(contents.len()).expect("a file of less than 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("a short path");
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_directories_come_first() {
        let mut cpio = Cpio::default();
        cpio.file("/a/b/c", b"12345");
        let bytes = cpio.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(bytes.len() % 4, 0);
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0") && at("12345") < at("TRAILER!!!"));
        assert_eq!(text.matches("070701").count(), 4);
    }
}
