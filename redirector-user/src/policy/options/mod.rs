//! istio-iptables' options, one entry each: names, help, documentation, parsing, annotation and example.
//!
//! Names, letters and variables: `tools/istio-iptables/pkg/cmd/root.go` and `pkg/constants/constants.go`.
//! `--help`, docs/options.md and the tests of every option come from these tables.

mod dns;
pub mod docs;
mod inbound;
mod operation;
mod option;
mod outbound;
mod owners;
mod proxy;
pub(super) mod whole;

pub use dns::{CAPTURE_ALL_DNS, REDIRECT_DNS};
pub use operation::{
    CLEANUP_ONLY, DRY_RUN, FORCE_IPTABLES_BINARY, NETWORK_NAMESPACE, OPERATION, PROBE_PORT, PROBE_TIMEOUT,
    RUN_VALIDATION, SKIP_RULE_APPLY,
};
pub use option::{Annotation, CaptureOption, Empty, Example, Group, Set, Value};
pub use proxy::{ENVOY_PORT, INBOUND_CAPTURE_PORT};

/// All groups. Redirector's own flags stand under the headings of some ([`super::OwnFlags`]).
pub static GROUPS: [&Group; 7] = [
    &proxy::GROUP,
    &inbound::GROUP,
    &outbound::GROUP,
    &dns::GROUP,
    &owners::GROUP,
    &whole::GROUP,
    &operation::GROUP,
];

/// All options.
pub fn all() -> impl Iterator<Item = &'static CaptureOption> {
    GROUPS.iter().flat_map(|group| group.options.iter().copied())
}
