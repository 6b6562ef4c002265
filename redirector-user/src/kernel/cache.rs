//! What the kernel offers, kept until the next boot: to look for it in its BTF, and to load a program for each question,
//! would take most of an attach.
//!
//! Only what does not depend on the moment is kept. A file that is not root's alone, of another boot or of another
//! kernel counts for nothing, and one that cannot be written is done without.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::error::Result;

const FILE: &str = "/run/redirector-offsets.json";
/// More than such a file has.
const MAX_BYTES: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Kept<T> {
    version: String,
    boot: String,
    kernel: String,
    #[serde(flatten)]
    facts: T,
}

/// What the running kernel offers: as it was told before, else as `ask` tells.
///
/// # Errors
///
/// `ask`'s.
pub(super) fn facts<T: Serialize + DeserializeOwned>(ask: impl FnOnce() -> Result<T>) -> Result<T> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let name = rustix::system::uname();
    let kernel = format!("{} {}", name.version().to_string_lossy(), name.release().to_string_lossy());
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let file = Path::new(FILE);
    let kept = kept::<T>(file)
        .filter(|kept| (&kept.version, &kept.boot, &kept.kernel) == (&version, &boot, &kernel));
    if let Some(kept) = kept {
        return Ok(kept.facts);
    }
    let asked = Kept { version, boot, kernel, facts: ask()? };
    if !asked.boot.is_empty() {
        keep(file, &asked);
    }
    Ok(asked.facts)
}

fn kept<T: DeserializeOwned>(file: &Path) -> Option<Kept<T>> {
    let file = open(file, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty()).ok()?;
    let file = File::from(file);
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Under another name first: nobody reads half of it.
fn keep<T: Serialize>(file: &Path, kept: &Kept<T>) {
    let next = file.with_extension(format!("{}.new", std::process::id()));
    let written = File::options().write(true).create_new(true).mode(0o600).open(&next);
    let written = written.and_then(|file| Ok(serde_json::to_writer(file, kept)?));
    if written.and_then(|()| std::fs::rename(&next, file)).is_err() {
        let _ = std::fs::remove_file(&next);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::kernel::btf::Offsets;

    #[test]
    fn only_a_file_of_roots_alone_counts() {
        let file = std::env::temp_dir().join(format!("redirector-offsets-{}", std::process::id()));
        let offsets = Offsets { sock_socket: 7, ..Offsets::default() };
        keep(&file, &Kept { version: "1".into(), boot: "b".into(), kernel: "k".into(), facts: offsets });
        let root = rustix::process::geteuid().is_root();
        assert_eq!(kept(&file).map(|kept| kept.facts), root.then_some(offsets));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert!(kept::<Offsets>(&file).is_none());
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/null", &file).unwrap();
        assert!(kept::<Offsets>(&file).is_none());
        std::fs::remove_file(&file).unwrap();
    }
}
