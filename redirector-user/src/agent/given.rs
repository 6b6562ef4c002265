//! Files that somebody has put there for the agent.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// More than any target, pod or pid takes.
const LONGEST: u64 = 1 << 20;

/// Reads one, if it is a file: a FIFO or a device may have nothing to say, for ever, or no end.
///
/// # Errors
///
/// Also if it is none, or too long.
pub fn read(path: &Path) -> Result<String> {
    // A FIFO without a writer is waited for, else (fifo(7)).
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::other(format!("it has more than {LONGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Error::other("it is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_files_are_read() {
        let dir = std::env::temp_dir().join(format!("redirector-given-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (fifo, file) = (dir.join("fifo"), dir.join("file"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for none in [&fifo, &dir, Path::new("/dev/zero")] {
            assert!(read(none).unwrap_err().to_string().contains("no regular file"), "{}", none.display());
        }
        assert_eq!(read(&file).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        for (length, good) in [(0, true), (1 << 20, true), ((1 << 20) + 1, false)] {
            std::fs::write(&file, "ü".repeat(length / 2) + &"x".repeat(length % 2)).unwrap();
            assert_eq!(read(&file).is_ok(), good, "{length}");
        }
        std::fs::write(&file, [0xff]).unwrap();
        assert!(read(&file).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
