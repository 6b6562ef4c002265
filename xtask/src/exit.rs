//! Exit codes that mean something to scripts.

use std::{error::Error, fmt};

/// The user asked for something that cannot be meant (or is not root where root is needed).
pub const USAGE: u8 = 2;
/// This machine cannot do it: no toolchain, no download, no package manager.
pub const CANNOT: u8 = 4;

/// An error that carries the exit code `xtask` ends with. Every other error ends with 1.
#[derive(Debug)]
pub struct Exit {
    /// The process exit code.
    pub code: u8,
    message: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Exit {}

/// An error that ends the process with `code`.
pub fn with_code(code: u8, message: impl Into<String>) -> anyhow::Error {
    Exit { code, message: message.into() }.into()
}

/// Keeps the text of `error` but ends with [`CANNOT`], so that CI can tell "could not be checked"
/// from "was checked and is wrong".
pub fn cannot(error: anyhow::Error) -> anyhow::Error {
    with_code(CANNOT, format!("{error:#}"))
}

/// The exit code of an error.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Exit>().map_or(1, |exit| exit.code)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_code_survives_context() {
        let error = Err::<(), _>(with_code(CANNOT, "no compiler")).context("while checking").unwrap_err();
        assert_eq!(code_of(&error), CANNOT);
        assert_eq!(code_of(&anyhow::anyhow!("plain")), 1);
    }
}
