//! Errors as CNI has them: a code and words, as JSON on standard output.

use serde::Serialize;

/// Codes of the specification (1.1.0, section "Error"); from 100 on they are ours.
pub mod code {
    /// The configuration's version is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A variable of the environment is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The configuration is not JSON, or not one of a network.
    pub const DECODING: u32 = 6;
    /// The configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// It may work later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: an ADD would fail.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The pod cannot be captured.
    pub const CAPTURE: u32 = 100;
    /// CHECK: the pod is not captured, or not wholly.
    pub const NOT_CAPTURED: u32 = 101;
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// In a few words.
    pub msg: &'static str,
    /// In full.
    pub details: String,
}

/// Result of the plugin.
pub type Result<T, E = CniError> = std::result::Result<T, E>;

impl CniError {
    /// With these words.
    pub fn new(code: u32, msg: &'static str, details: impl Into<String>) -> Self {
        Self { code, msg, details: details.into() }
    }

    /// What the runtime reads.
    pub fn json(&self, version: &str) -> String {
        #[derive(Serialize)]
        struct Written<'a> {
            #[serde(rename = "cniVersion")]
            version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let written = Written { version, code: self.code, msg: self.msg, details: &self.details };
        serde_json::to_string(&written).unwrap_or_default()
    }
}
