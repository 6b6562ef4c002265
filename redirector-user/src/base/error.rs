//! What can go wrong, sorted by what the user can do about it (and so by exit code).

use std::io;

/// Result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with what failed, on which object, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong: exit code 2.
    #[error("{0}")]
    Input(String),
    /// There is no such instance: exit code 3.
    #[error("{0}")]
    NothingMatched(String),
    /// This kernel, node or set of privileges cannot: exit code 4.
    #[error("{0}")]
    Unsupported(String),
    /// What is attached does not do what it should: exit code 1.
    #[error("{0}")]
    Validation(String),
    /// The request was right and did not work: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The same, with what the kernel said. EPERM and EACCES are a lack of privileges: exit code 4.
    #[error("{what}: {source}")]
    Os {
        /// What failed, on which object.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
}

impl Error {
    /// The same, with the option that it is about; a wrong value of it is wrong input.
    pub(crate) fn within(self, option: &str) -> Self {
        match self {
            Self::Input(text) => Self::Input(format!("{option}: {text}")),
            other => other,
        }
    }

    /// Exit code of the command line, see docs/cli.md.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::NothingMatched(_) => 3,
            Self::Unsupported(_) => 4,
            Self::Os { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 4,
            Self::Validation(_) | Self::Failed(_) | Self::Os { .. } => 1,
        }
    }
}

/// Says what was attempted when a system call or a library fails.
pub trait Context<T> {
    /// `what`: the action and its object, as in "pin link to /sys/fs/bpf/…".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T, io::Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Os { what: what(), source })
    }
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Os { what: what(), source: errno.into() })
    }
}

impl<T> Context<T> for Result<T, aya::maps::MapError> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Failed(format!("{}: {}", what(), chain(&e))))
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = e.source();
    }
    text
}
