//! What people give us to read: files, pipes, standard input. Up to a limit, as some of them have no end (`/dev/zero`).

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// A policy of 50,000 networks has about a quarter of it.
const LIMIT: u64 = 4 << 20;

/// Reads a text file or pipe.
///
/// # Errors
///
/// If it cannot be read, is no text or is too large.
pub fn text(path: &Path) -> Result<String> {
    let no_text = |_| Error::new(ErrorKind::InvalidData, "is not text (UTF-8)");
    String::from_utf8(bytes(File::open(path)?)?).map_err(no_text)
}

/// Reads to the end.
///
/// # Errors
///
/// If it cannot be read or is too large.
pub fn bytes(from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("has more than {} MiB", LIMIT >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_refused() {
        assert_eq!(text(Path::new("/dev/zero")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(bytes(std::io::repeat(1).take(LIMIT)).unwrap().len() as u64, LIMIT);
        assert!(bytes(std::io::repeat(1).take(LIMIT + 1)).is_err());
    }
}
