//! Differences that depend on the configuration, each with its reason. Those of all configurations are in
//! [`documented`](crate::harness::oracle::documented).

use super::half::PROXY_PORTS;
use crate::harness::oracle::documented::is_documented;
use crate::harness::oracle::options::Options;
use crate::harness::pair::compare::Difference;

/// A known difference.
struct Known {
    /// Whether it can be under a configuration.
    applies: fn(&Options) -> bool,
    /// Whether it is this one.
    is: fn(&Difference) -> bool,
    /// Why it is so.
    _why: &'static str,
}

const KNOWN: [Known; 2] = [VIRTUAL_UNHEARD, TPROXY_UNHEARD];

const VIRTUAL_UNHEARD: Known = Known {
    applies: |options| !options.virtual_interfaces.is_empty(),
    is: |difference| {
        let elsewhere = difference.scenario.starts_with("tcp guest to 10.9");
        let shown = [difference.field.as_str(), &difference.left, &difference.right];
        let waits = match shown {
            ["connect", left, right] => (left, right) == ("ECONNREFUSED", "EINPROGRESS"),
            // As they are after a refusal, and before an answer.
            ["local", left, right] => left == "0.0.0.0:<own>" && right.ends_with(":<own>"),
            ["original_dst" | "original_dst6", left, "(absent)"] => !left.contains(':'),
            _ => false,
        };
        elsewhere && waits
    },
    _why: "Nobody listens at the proxy's port: over IPv4 the kernel sends no refusal from an address that is not \
               its own, and the guest waits.",
};

const TPROXY_UNHEARD: Known = Known {
    applies: |options| options.tproxy.is_some() && !PROXY_PORTS.contains(&options.inbound_capture_port),
    is: |difference| {
        let shown = [difference.field.as_str(), &difference.left, &difference.right];
        match shown {
            ["connect", left, right] => (left, right) == ("EINPROGRESS", "ECONNREFUSED"),
            // As they are before an answer, and after a refusal.
            ["local", left, right] => {
                left.ends_with(":<own>") && matches!(right, "0.0.0.0:<own>" | "[::]:<own>")
            }
            ["original_dst" | "original_dst6", "(absent)", right] => !right.contains(':'),
            _ => false,
        }
    },
    _why: "Nobody listens at the proxy's port: the TPROXY target drops the packet without a word \
               (tproxy_tg4, NF_DROP), and the client waits. We refuse it, as REDIRECT does.",
};

/// Whether a difference is meant, or known, under a configuration.
#[must_use]
pub fn is_known(options: &Options, difference: &Difference) -> bool {
    is_documented(difference) || KNOWN.iter().any(|known| (known.applies)(options) && (known.is)(difference))
}
