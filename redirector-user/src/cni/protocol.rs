//! What the CNI plugin asks the agent: one JSON object in a line, with the network namespace as a
//! passed descriptor, and one back. Documented in docs/agent.md.

use serde::{Deserialize, Serialize};

use crate::base::text::shortened;
use crate::pod::name::PodName;

/// The plugin's type, and name of its binary.
pub const PLUGIN_TYPE: &str = "redirector";
/// The capability by which a runtime tells a plugin the pod's annotations (containerd: `internal/cri/annotations`).
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Name of the socket in the agent's directory.
pub const SOCKET: &str = "agent.sock";
/// Version of the protocol. Plugin and agent are the same binary, but not replaced at the same moment.
pub const VERSION: u32 = 1;
/// Versions of CNI that the plugin speaks, oldest first. Their lists differ in nothing a chained plugin touches.
pub const CNI_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// More than any request or answer has.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// So much of a reason is told: with every byte as six (`\u0000`), an answer is shorter than [`MAX_MESSAGE_BYTES`].
const MAX_REASON_BYTES: usize = 8 * 1024;

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

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What to do.
    pub operation: Operation,
    /// Id of the sandbox, for the log.
    #[serde(default)]
    pub container: String,
    /// The namespace's file as the plugin sees it; the descriptor passed with the request counts.
    #[serde(default)]
    pub netns: String,
    /// The pod, if the runtime said which.
    #[serde(default)]
    pub pod: Option<PodName>,
}

/// What the plugin is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Capture the pod, if it is to be captured.
    Add,
    /// The pod ends.
    Del,
    /// Is the pod captured, if it is to be?
    Check,
    /// Remove what belongs to namespaces that are gone.
    Gc,
    /// Could an `Add` succeed?
    Status,
    /// Does the agent do all of its work (`/readyz`)? No operation of CNI.
    Ready,
}

impl Operation {
    /// As in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Del => "del",
            Self::Check => "check",
            Self::Gc => "gc",
            Self::Status => "status",
            Self::Ready => "ready",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Reply {
    /// It is done: for `Add` and `Check` the pod is captured, by this instance.
    Done {
        /// Name of the instance, if there is one.
        #[serde(default)]
        instance: Option<String>,
    },
    /// The pod is none of ours.
    Ignored {
        /// Why.
        why: String,
    },
    /// It is not done.
    Failed {
        /// CNI's code (docs/agent.md).
        code: u32,
        /// Why, and what to do.
        why: String,
    },
}

impl Reply {
    /// As it is sent.
    pub fn written(mut self) -> Vec<u8> {
        if let Self::Ignored { why } | Self::Failed { why, .. } = &mut self {
            *why = shortened(why, MAX_REASON_BYTES).into_owned();
        }
        serde_json::to_vec(&self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_never_too_long() {
        for why in ["\0".repeat(1 << 20), "ü".repeat(1 << 20)] {
            let text = Reply::Failed { code: 100, why }.written();
            assert!(text.len() < MAX_MESSAGE_BYTES);
            let read: Reply = serde_json::from_slice(&text).unwrap();
            assert!(matches!(read, Reply::Failed { code: 100, why } if why.ends_with('…')));
        }
        let short = Reply::Ignored { why: "no".into() };
        assert_eq!(serde_json::from_slice::<Reply>(&short.clone().written()).unwrap(), short);
    }
}
