//! What to capture: from istio-iptables' flags and variables, a policy file or a pod's annotations to a [`Policy`].
//!
//! [`options`] has one entry for each option. A verb flattens [`CaptureFlags`] into its arguments and calls [`resolve`]
//! with the [`TargetInfo`] of its target.

pub mod annotations;
mod apply;
mod command_line;
mod draft;
mod error;
pub mod file;
mod flag_input;
mod flags;
mod from_annotations;
mod model;
mod normal;
mod note;
pub mod options;
pub mod parse;
mod range;
mod requests;
mod resolve;
mod schema;
mod serial;
mod target_info;

#[cfg(test)]
mod tests;

pub use apply::Resolved;
pub use command_line::variables_help;
pub use error::ConfigError;
pub use flag_input::{FlagInput, FlagParser, Origin, parse_bool};
pub use flags::{CaptureFlags, Ipv6, OwnFlags};
pub use from_annotations::resolve_pod;
pub use model::{Dns, MAX_CONNECTIONS, MAX_DESTINATIONS, Mode, Policy, Selection};
pub use note::{Note, Severity};
pub use requests::Requests;
pub use resolve::resolve;
pub use target_info::{LookupError, TargetDetails, TargetInfo, nameservers_of};
