//! Differences that depend on the configuration, each with its reason. Those of all configurations are in
//! [`documented`](crate::documented).

use crate::compare::Difference;
use crate::documented::is_documented;
use crate::istio::Options;

/// A known difference.
struct Known {
    /// Whether it can be under a configuration.
    applies: fn(&Options) -> bool,
    /// Whether it is this one.
    is: fn(&Difference) -> bool,
    /// Why it is so.
    _why: &'static str,
}

const KNOWN: [Known; 2] = [
    Known {
        applies: |options| !options.ipv6,
        is: |difference| difference.field.ends_with("original_dst6") && difference.left == "ENOENT",
        _why: "Without IPv6 rules nothing tracks IPv6 connections, and the original has no answer for them. The \
               product answers as for any connection that was not redirected.",
    },
    Known {
        applies: |options| !options.virtual_interfaces.is_empty(),
        is: |difference| {
            let elsewhere = difference.scenario.starts_with("tcp guest to 10.9");
            let shown = [difference.field.as_str(), &difference.left, &difference.right];
            elsewhere && shown == ["connect", "ECONNREFUSED", "EINPROGRESS"]
        },
        _why: "Nobody listens at the proxy's port: over IPv4 the kernel sends no refusal from an address that is not \
               its own, and the guest waits.",
    },
];

/// Whether a difference is meant, or known, under a configuration.
#[must_use]
pub fn is_known(options: &Options, difference: &Difference) -> bool {
    is_documented(difference) || KNOWN.iter().any(|known| (known.applies)(options) && (known.is)(difference))
}
