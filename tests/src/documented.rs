//! Differences from the original that are meant, each with its reason. Whatever is not listed here is a mistake.

use crate::compare::Difference;

/// A meant difference.
struct Documented {
    /// Part of the scenario's name.
    scenario: &'static str,
    /// Callers: the first or second word of the scenario's name.
    callers: &'static [&'static str],
    /// The fields that may differ. Those of the server are never among them: where a connection ends is not negotiable.
    fields: &'static [&'static str],
    /// What is better.
    _why: &'static str,
}

const DOCUMENTED: [Documented; 1] = [Documented {
    scenario: " to link-local from ",
    callers: &["app", "root"],
    fields: &["connect", "local", "original_dst", "original_dst6"],
    _why: "A link-local destination pins the socket to its interface. iptables redirects it to ::1, whose answer comes \
           from lo and is dropped: the application waits for minutes. Failing at once is the kinder of two failures.",
}];

/// Whether a difference is meant. A connection that fails under the original must still fail.
#[must_use]
pub fn is_documented(difference: &Difference) -> bool {
    DOCUMENTED.iter().any(|entry| {
        difference.scenario.contains(entry.scenario)
            && difference.scenario.split(' ').take(2).any(|word| entry.callers.contains(&word))
            && entry.fields.contains(&difference.field.as_str())
            && !(difference.field == "connect" && difference.right == crate::observation::OK)
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
