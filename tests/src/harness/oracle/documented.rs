//! Differences from the original that are meant, each with its reason. Whatever is not listed here is a mistake.

use crate::harness::kernel;
use crate::harness::oracle::options::Options;
use crate::harness::pair::compare::Difference;
use crate::harness::parity::PROXY_PORTS;

/// A meant difference. COMPATIBILITY.md has the same list.
struct Documented {
    /// Parts of the scenario's name, all of them.
    scenario: &'static [&'static str],
    /// Callers: the first or second word of the scenario's name.
    callers: &'static [&'static str],
    /// The fields that may differ.
    fields: &'static [&'static str],
    /// The connection may fail where the original connects. Otherwise the fields of the server are never among those
    /// that may differ: where a connection ends is not negotiable.
    fails: bool,
    /// Why it is so.
    _why: &'static str,
}

/// Meant whatever the options.
const DOCUMENTED: [Documented; 4] = [
    Documented {
        scenario: &[" to link-local from "],
        callers: &["app", "root"],
        fields: &["connect", "local", "original_dst", "original_dst6"],
        fails: false,
        _why: "A link-local destination pins the socket to its interface. iptables redirects it to ::1, whose answer \
               comes from lo and is dropped: the application waits for minutes. Failing at once is the kinder failure.",
    },
    Documented {
        scenario: &[" to port-0 from "],
        callers: &["app", "root", "proxy-uid", "proxy-gid", "proxy"],
        fields: &["peer"],
        fails: false,
        _why: "The kernel's getpeername says ENOTCONN for a peer with port 0; to it our peer has the proxy's port, and \
               the hook can change the answer but cannot make it fail.",
    },
    Documented {
        scenario: &[" to [fd00:", " then (disconnect: ", " to mapped vip"],
        callers: &["app", "proxy"],
        fields: &["connect", "local", "original_dst", "original_dst6", "peer", "reached."],
        fails: true,
        _why: "bpf_bind to a native IPv6 address sets IPV6_V6ONLY, and no helper clears it: a socket that was redirected \
               over IPv6 can be used again for IPv6, but not for an IPv4-mapped destination (ENETUNREACH).",
    },
    Documented {
        scenario: &[" to self", " then", " to prohibited"],
        callers: &["proxy"],
        fields: &["local"],
        fails: false,
        _why: "Taking back our bind resets the port that getsockname remembers of the ended connection.",
    },
];

/// A meant difference that only some options show. COMPATIBILITY.md has these, too.
struct UnderOptions {
    /// Whether it can be under a configuration.
    applies: fn(&Options) -> bool,
    /// Whether it is this one.
    is: fn(&Difference) -> bool,
    /// Why it is so.
    _why: &'static str,
}

const UNDER_OPTIONS: [UnderOptions; 2] = [GUEST_WITHOUT_LISTENER, TPROXY_WITHOUT_LISTENER];

const GUEST_WITHOUT_LISTENER: UnderOptions = UnderOptions {
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

const TPROXY_WITHOUT_LISTENER: UnderOptions = UnderOptions {
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

/// Whether a difference is meant under these options. A connection that fails under the original must still fail.
pub fn is_documented(options: &Options, difference: &Difference) -> bool {
    let Difference { field, left, right, .. } = difference;
    // Which connections fail is the same; why is not told before 5.18.
    if (field == "connect" || field.ends_with(".connect"))
        && left != crate::harness::probe::observation::OK
        && right == "EPERM"
        && kernel::refusal(left) == right
    {
        return true;
    }
    UNDER_OPTIONS.iter().any(|entry| (entry.applies)(options) && (entry.is)(difference))
        || DOCUMENTED.iter().any(|entry| entry.covers(difference))
}

impl Documented {
    fn covers(&self, Difference { scenario, field, right, .. }: &Difference) -> bool {
        self.scenario.iter().all(|part| scenario.contains(part))
            && scenario.split(' ').take(2).any(|word| self.callers.contains(&word))
            && self
                .fields
                .iter()
                .any(|name| field == name || (name.ends_with('.') && field.starts_with(name)))
            && !(field == "connect" && right == crate::harness::probe::observation::OK)
            && (!field.starts_with("reached.") || (self.fails && right == "(absent)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_of_the_callers_listed_are_excused() {
        let difference = |scenario: &str, field: &str, right: &str| Difference {
            scenario: scenario.into(),
            field: field.into(),
            left: "EINPROGRESS".into(),
            right: right.into(),
        };
        assert!(is_documented(
            &Options::sidecar(),
            &difference("v6 app to link-local from anywhere", "connect", "EINVAL")
        ));
        assert!(!is_documented(
            &Options::sidecar(),
            &difference("v6 app to link-local from anywhere", "connect", "ok")
        ));
        assert!(!is_documented(
            &Options::sidecar(),
            &difference("v6 app to link-local from anywhere", "reached.role", "remote")
        ));
        assert!(!is_documented(
            &Options::sidecar(),
            &difference("v6 proxy to link-local from anywhere", "connect", "EINVAL")
        ));
        assert!(!is_documented(
            &Options::sidecar(),
            &difference("v6 app to vip from anywhere", "connect", "EINVAL")
        ));
    }
}
