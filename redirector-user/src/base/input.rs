//! What people give us to read: files, pipes, standard input. Up to a limit, as some of them have no end (`/dev/zero`).

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::text::{printable, shortened};

/// A policy of 50,000 networks has about a quarter of it.
const LIMIT: u64 = 4 << 20;
/// More than any target, pod or pid takes.
const LIMIT_OF_FILE: u64 = 1 << 20;

/// Most files of the kernel have less.
const USUAL_BYTES: usize = 8192;

/// A parser repeats names and values.
const MAX_ERROR_BYTES: usize = 300;
const MAX_KEY_BYTES: usize = 64;

/// What the kernel tells of processes, cgroups and mounts, whose names are of any bytes.
///
/// # Errors
///
/// If it cannot be read.
pub fn of_the_kernel(file: impl AsRef<Path>) -> Result<String> {
    // Such files tell no length, and std would begin with reads of 32 bytes.
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    File::open(file)?.read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// Reads a text file or pipe.
///
/// # Errors
///
/// If it cannot be read, is no text or is too large.
pub fn text(path: &Path) -> Result<String> {
    utf8(bytes(File::open(path)?)?)
}

/// Reads a text that somebody has put there for the agent, if it is a file: a FIFO or a device may have nothing to say, for
/// ever.
///
/// # Errors
///
/// Also if it is none, no text or too large.
#[cfg_attr(
    not(feature = "agent"),
    allow(dead_code, reason = "only the agent reads files that others replace")
)]
pub fn file(path: &Path) -> Result<String> {
    // A FIFO without a writer is waited for, else (fifo(7)).
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::other("it is no regular file"));
    }
    utf8(up_to(LIMIT_OF_FILE, file)?)
}

/// Opens a directory. A FIFO in its place is not waited for.
///
/// # Errors
///
/// Also if it is none (ENOTDIR).
pub fn directory(path: &Path) -> Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK).open(path)
}

/// Reads to the end.
///
/// # Errors
///
/// If it cannot be read or is too large.
pub fn bytes(from: impl Read) -> Result<Vec<u8>> {
    up_to(LIMIT, from)
}

fn up_to(limit: u64, from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("has more than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

/// Reads TOML. The error says where and why; of the text it repeats a name or value at most.
///
/// # Errors
///
/// If it is none, or not of this form.
pub fn toml<T: DeserializeOwned>(text: &str) -> std::result::Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        let key =
            text.lines().nth(line).and_then(|line| line.split_once('=')).map_or("", |(key, _)| key.trim());
        let key = if key.is_empty() { String::new() } else { format!("{}: ", shortened(key, MAX_KEY_BYTES)) };
        format!("TOML, line {}: {}", line + 1, brief(&(key + error.message())))
    })
}

/// Reads JSON, as [`toml()`] does TOML.
///
/// # Errors
///
/// If it is none, or not of this form.
pub fn json<T: DeserializeOwned>(text: &str) -> std::result::Result<T, String> {
    serde_json::from_str(text).map_err(|error| brief(&error.to_string()))
}

/// What a parser says of a text, for a message.
pub fn brief(why: &str) -> String {
    printable(&shortened(why, MAX_ERROR_BYTES)).into_owned()
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "is not text (UTF-8)"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_has_no_end_is_refused() {
        assert_eq!(text(Path::new("/dev/zero")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(bytes(std::io::repeat(1).take(LIMIT)).unwrap().len() as u64, LIMIT);
        assert!(bytes(std::io::repeat(1).take(LIMIT + 1)).is_err());
    }

    #[test]
    fn errors_repeat_little() {
        type Numbers = BTreeMap<String, u8>;
        let long = "\u{1b}".repeat(100_000);
        let (name, value) = ("y".repeat(100_000), "z\\n".repeat(100_000));
        let errors = [
            toml::<Numbers>(&format!("a = 1\n'{name}' = 'x'")).unwrap_err(),
            toml::<Numbers>(&format!("a = 1\nb = \"{value}\"")).unwrap_err(),
            toml::<Numbers>(&long).unwrap_err(),
            json::<Numbers>(&serde_json::json!({ "a": long }).to_string()).unwrap_err(),
        ];
        for error in &errors {
            assert!(error.len() < 400 && !error.contains(char::is_control), "{error:?}");
        }
        assert!(errors[0].starts_with("TOML, line 2: "), "{}", errors[0]);
    }

    #[test]
    fn only_files_are_read() {
        let dir = std::env::temp_dir().join(format!("redirector-input-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (fifo, regular) = (dir.join("fifo"), dir.join("file"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for none in [&fifo, &dir, Path::new("/dev/zero")] {
            assert!(file(none).unwrap_err().to_string().contains("no regular file"), "{}", none.display());
        }
        assert_eq!(file(&regular).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        for (length, good) in [(0, true), (1 << 20, true), ((1 << 20) + 1, false)] {
            std::fs::write(&regular, "ü".repeat(length / 2) + &"x".repeat(length % 2)).unwrap();
            assert_eq!(file(&regular).is_ok(), good, "{length}");
        }
        std::fs::write(&regular, [0xff]).unwrap();
        assert!(file(&regular).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
