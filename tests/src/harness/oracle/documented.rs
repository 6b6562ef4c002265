//! Differences from the original that are meant, each with its reason. Whatever is not listed here is a mistake.

use crate::harness::kernel;
use crate::harness::pair::compare::Difference;

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

/// Whether a difference is meant. A connection that fails under the original must still fail.
#[must_use]
pub fn is_documented(difference: &Difference) -> bool {
    let Difference { scenario, field, left, right } = difference;
    // Which connections fail is the same; why is not told before 5.18.
    if (field == "connect" || field.ends_with(".connect"))
        && left != crate::harness::probe::observation::OK
        && right == "EPERM"
        && kernel::refusal(left) == right
    {
        return true;
    }
    DOCUMENTED.iter().any(|entry| {
        entry.scenario.iter().all(|part| scenario.contains(part))
            && scenario.split(' ').take(2).any(|word| entry.callers.contains(&word))
            && entry
                .fields
                .iter()
                .any(|name| field == name || (name.ends_with('.') && field.starts_with(name)))
            && !(field == "connect" && right == crate::harness::probe::observation::OK)
            && (!field.starts_with("reached.") || (entry.fails && right == "(absent)"))
    })
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
        assert!(is_documented(&difference("v6 app to link-local from anywhere", "connect", "EINVAL")));
        assert!(!is_documented(&difference("v6 app to link-local from anywhere", "connect", "ok")));
        assert!(!is_documented(&difference("v6 app to link-local from anywhere", "reached.role", "remote")));
        assert!(!is_documented(&difference("v6 proxy to link-local from anywhere", "connect", "EINVAL")));
        assert!(!is_documented(&difference("v6 app to vip from anywhere", "connect", "EINVAL")));
    }
}
