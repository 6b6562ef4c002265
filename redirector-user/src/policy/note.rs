//! What is worth telling the user about settings that were accepted.

use std::fmt;

use serde::Serialize;

/// How much a [`Note`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The setting means something else here than in istio-iptables, or nothing.
    Note,
    /// The result is probably not what the user wanted.
    Warning,
}

/// A remark on an accepted setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// The flag, variable or policy field it is about.
    pub about: String,
    /// The remark, one sentence without a final stop.
    pub text: String,
}

impl Note {
    pub(crate) fn remark(about: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, about: about.into(), text: text.into() }
    }

    pub(crate) fn warning(about: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, about: about.into(), text: text.into() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}: {}", self.about, self.text)
    }
}
