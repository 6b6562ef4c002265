//! Errors as CNI has them: a code and words, as JSON on standard output.

use serde::Serialize;

/// An error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// One of [`code`](crate::cni::protocol::code).
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
