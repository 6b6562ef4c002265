//! What can be wrong with a setting, always with its remedy.

use std::path::PathBuf;

use crate::base::error::Error;
use crate::base::text::shortened;

/// An annotation may have 256 KiB; so much of an item is repeated in an error.
pub(crate) const SHOWN: usize = 200;

/// A setting that cannot be accepted. Every variant is bad input (exit code 2 is the caller's business).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An item of a flag, variable, annotation or policy field is not acceptable.
    #[error("{name}: {item:?} {why}")]
    Invalid {
        /// The flag (`--istio-inbound-ports`), variable (`ISTIO_INBOUND_PORTS`) or policy field
        /// (`inbound_ports`).
        name: String,
        /// The offending item as it was written, or its beginning.
        item: String,
        /// Why it is refused.
        why: String,
        /// What to write instead.
        remedy: String,
    },
    /// A setting is fine in itself but needs something about the target that is not known.
    #[error("{name}: {why}")]
    Unavailable {
        /// The flag, variable or policy field that needs it.
        name: String,
        /// What could not be found out.
        why: String,
        /// How to make it known, or how to do without.
        remedy: String,
    },
    /// The policy file cannot be read or is not a policy.
    #[error("policy file {}: {why}", path.display())]
    PolicyFile {
        /// The file.
        path: PathBuf,
        /// Why it is refused.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The file of annotations cannot be read or holds none.
    #[error("annotations {}: {why}", path.display())]
    AnnotationsFile {
        /// The file.
        path: PathBuf,
        /// Why it is refused.
        why: String,
        /// What to do about it.
        remedy: String,
    },
}

impl ConfigError {
    pub(crate) fn invalid(name: &str, item: &str, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        let item = shortened(item, SHOWN).into_owned();
        Self::Invalid { name: name.into(), item, why: why.into(), remedy: remedy.into() }
    }

    pub(crate) fn unavailable(name: &str, why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unavailable { name: name.into(), why: why.into(), remedy: remedy.into() }
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &str {
        match self {
            Self::Invalid { remedy, .. }
            | Self::Unavailable { remedy, .. }
            | Self::PolicyFile { remedy, .. }
            | Self::AnnotationsFile { remedy, .. } => remedy,
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let plain = Self::input(error.to_string());
        match error {
            // It names flags: an annotation needs nothing that a pod's own files would have to tell.
            ConfigError::Unavailable { remedy, .. } => plain.usage(remedy),
            other => plain.remedy(other.remedy()),
        }
    }
}
