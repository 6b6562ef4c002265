//! What to capture: from istio-iptables' flags and variables, a policy file and facts about the target to a
//! [`Policy`].
//!
//! A pod's annotations become such flags in [`annotations`].
//!
//! A verb flattens [`CaptureFlags`] into its arguments and calls [`resolve`] with the [`Facts`] of its
//! target.

pub mod annotations;
mod error;
mod facts;
pub mod file;
mod flags;
mod given;
mod model;
mod normal;
mod note;
mod operational;
mod owners;
pub mod parse;
mod resolve;
mod serial;
mod variables;

#[cfg(test)]
mod tests;

pub use annotations::resolve_pod;
pub use error::ConfigError;
pub use facts::{FactError, Facts, TargetFacts};
pub use flags::{CaptureFlags, Ipv6};
pub use given::{Given, Origin, SwitchParser, TextParser, parse_bool};
pub use model::{Dns, MAX_CONNECTIONS, Mode, Policy, Selection};
pub use note::{Note, Severity};
pub use operational::Requests;
pub use resolve::{Resolved, detect_ipv6, resolve};
pub use variables::{VARIABLES_HELP, Variables};
