//! Rules of routing that the programs do not follow.

use super::finding::{Finding, Level, some_of};
use crate::base::error::Result;
use crate::routes::rules::{self, UnknownRule};
use crate::sys::netns::NetNs;

/// What is to be said of them.
pub(super) fn judge(netns: &NetNs) -> Result<Vec<Finding>> {
    rules::unknown_to_snapshot(netns).map(|rules| judge_rules(&rules))
}

fn judge_rules(rules: &[UnknownRule]) -> Vec<Finding> {
    let finding = |(forbids, level, consequence)| {
        let of_kind: Vec<String> =
            rules.iter().filter(|rule| rule.forbids == forbids).map(|rule| rule.text.clone()).collect();
        (!of_kind.is_empty()).then(|| {
            Finding::new(
                level,
                "routing_rule",
                format!("rules of routing by user, port or type of service: {}", some_of(&of_kind, 4)),
                consequence,
                "exclude what such a rule is about (-x, -o, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE), or select by destination (`ip rule add to`)".into(),
            )
        })
    };
    let kinds = [
        (
            true,
            Level::Fault,
            "connections that such a rule forbids are captured, and the proxy makes them instead",
        ),
        (false, Level::Notice, "the programs decide as if there were no such rule"),
    ];
    kinds.into_iter().filter_map(finding).collect()
}
