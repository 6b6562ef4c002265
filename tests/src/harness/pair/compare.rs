//! Field by field comparison of what was seen in two worlds.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

use crate::harness::probe::observation::{AddressOrErrno, Observation};

/// From here on ports are picked by the kernel, and differ from run to run.
const EPHEMERAL: u16 = 32768;

/// From here on the matrix binds; every scenario another one, so that it, too, is better called by its meaning.
const FIRST_BOUND: u16 = 20000;

/// Scenarios named for each difference.
const MAX_EXAMPLES: usize = 4;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub scenario: String,
    /// The path of the field in the observation's JSON.
    pub field: String,
    /// The value in the first world.
    pub left: String,
    /// The value in the second world.
    pub right: String,
}

/// Compares two runs of the same scenarios.
pub fn compare(left: &[Observation], right: &[Observation]) -> Vec<Difference> {
    let mut differences = Vec::new();
    if left.len() != right.len() {
        differences.push(Difference {
            scenario: "(all)".to_owned(),
            field: "number of observations".to_owned(),
            left: left.len().to_string(),
            right: right.len().to_string(),
        });
    }
    for (left, right) in left.iter().zip(right) {
        let (mut ours, theirs) = (fields(left), fields(right));
        for field in theirs.keys() {
            ours.entry(field.clone()).or_insert_with(|| "(absent)".to_owned());
        }
        for (field, left_value) in ours {
            let right_value = theirs.get(&field).map_or("(absent)", String::as_str);
            if left_value != right_value {
                differences.push(Difference {
                    scenario: left.scenario.clone(),
                    field,
                    left: left_value,
                    right: right_value.to_owned(),
                });
            }
        }
    }
    differences
}

/// All fields as text, with the ports that the kernel picked replaced by their meaning: `<own>` is the client's port as
/// its own `getsockname` gives it after the attempt in question, any other picked port is `<other>`.
fn fields(observation: &Observation) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    let mut add = |path: &str, value: serde_json::Result<Value>, local: Option<&AddressOrErrno>| {
        let own = local
            .and_then(AddressOrErrno::address)
            .map(|address| address.port())
            .filter(|port| *port >= FIRST_BOUND);
        if let Ok(value) = value {
            flatten(path, &value, own, &mut flat);
        }
    };
    for (index, earlier) in observation.earlier.iter().enumerate() {
        add(&format!("earlier.{index}"), serde_json::to_value(earlier), Some(&earlier.local));
    }
    let last = Observation { earlier: Vec::new(), ..observation.clone() };
    add("", serde_json::to_value(&last), last.local.as_ref());
    flat
}

fn flatten(path: &str, value: &Value, own: Option<u16>, flat: &mut BTreeMap<String, String>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&below(key), value, own, flat)),
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                flatten(&below(&index.to_string()), value, own, flat);
            }
        }
        Value::String(text) => {
            flat.insert(path.to_owned(), nameless(text, own));
        }
        // Absent and null are the same: nothing was seen.
        Value::Null => {}
        other => {
            flat.insert(path.to_owned(), other.to_string());
        }
    }
}

fn nameless(text: &str, own: Option<u16>) -> String {
    let Ok(address) = text.parse::<SocketAddr>() else { return text.to_owned() };
    let port = address.port();
    let word = match own {
        Some(own) if own == port => "<own>",
        _ if port >= EPHEMERAL => "<other>",
        _ => return text.to_owned(),
    };
    text.strip_suffix(&port.to_string()).map_or_else(|| text.to_owned(), |start| format!("{start}{word}"))
}

/// Takes back netfilter's replacement of a redirected connection's source port in what its server saw.
///
/// NAT must tell connections apart by the addresses after translation, and all that are redirected have the same
/// destination then. So when a client's port was used a few seconds ago towards another destination, netfilter picks
/// another one, that only the proxy sees. A redirect in the socket layer has no need to, and the proxy sees the truth.
pub fn forgive_replaced_ports(observation: &mut Observation) {
    let earlier =
        observation.earlier.iter_mut().map(|earlier| (earlier.reached.as_mut(), Some(&earlier.local)));
    let last = std::iter::once((observation.reached.as_mut(), observation.local.as_ref()));
    for (reached, local) in earlier.chain(last) {
        let (Some(reached), Some(local)) = (reached, local.and_then(AddressOrErrno::address)) else {
            continue;
        };
        let Some(peer) = reached.accept_peer.address() else { continue };
        let same_host = peer.ip().to_canonical() == local.ip().to_canonical();
        if reached.role == "proxy" && same_host && reached.accept_peer == reached.peer {
            let true_peer = SocketAddr::new(peer.ip(), local.port());
            reached.accept_peer = true_peer.into();
            reached.peer = true_peer.into();
        }
    }
}

/// The differences as a table for people: equal ones once, with the scenarios in which they were seen.
pub fn table(differences: &[Difference], left: &str, right: &str) -> String {
    let mut groups: BTreeMap<[&str; 3], Vec<&str>> = BTreeMap::new();
    for row in differences {
        groups.entry([&row.field, &row.left, &row.right]).or_default().push(&row.scenario);
    }
    let heading = ["field", left, right];
    let mut widths = heading.map(str::len);
    for group in groups.keys() {
        widths = std::array::from_fn(|index| widths[index].max(group[index].len()));
    }
    let line = |cells: &[&str; 3], rest: &str| {
        let [field, left, right] = widths;
        format!("{:field$}  {:left$}  {:right$}  {rest}\n", cells[0], cells[1], cells[2])
    };
    let mut text = line(&heading, "seen in");
    for (group, scenarios) in &groups {
        let mut shown = scenarios.iter().take(MAX_EXAMPLES).copied().collect::<Vec<_>>().join("; ");
        if scenarios.len() > MAX_EXAMPLES {
            shown = format!("{shown}; and {} more", scenarios.len() - MAX_EXAMPLES);
        }
        text.push_str(&line(group, &shown));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(local: &str, peer: &str) -> Observation {
        Observation {
            scenario: "s".into(),
            local: Some(AddressOrErrno::from(local.to_owned())),
            peer: Some(AddressOrErrno::from(peer.to_owned())),
            ..Observation::default()
        }
    }

    #[test]
    fn picked_ports_do_not_count_but_their_meaning_does() {
        let left = observed("10.0.0.1:40000", "10.0.0.2:80");
        assert!(
            compare(std::slice::from_ref(&left), &[observed("10.0.0.1:50000", "10.0.0.2:80")]).is_empty()
        );
        let differences = compare(&[left], &[observed("10.0.0.9:40000", "10.0.0.2:81")]);
        let fields: Vec<&str> = differences.iter().map(|row| row.field.as_str()).collect();
        assert_eq!(fields, ["local", "peer"]);
        // A server that sees another port than the client's own differs from one that sees the client's.
        assert_eq!(nameless("10.0.0.1:40000", Some(40000)), "10.0.0.1:<own>");
        assert_eq!(nameless("[fd00::1]:40001", Some(40000)), "[fd00::1]:<other>");
        assert_eq!(nameless("10.0.0.1:5555", Some(40000)), "10.0.0.1:5555");
    }

    #[test]
    fn what_only_one_side_saw_is_a_difference() {
        let mut right = observed("10.0.0.1:1", "10.0.0.2:80");
        let left = right.clone();
        right.greeting = Some("closed".into());
        let differences = compare(std::slice::from_ref(&left), std::slice::from_ref(&right));
        assert_eq!(differences.len(), 1);
        assert_eq!((differences[0].left.as_str(), differences[0].right.as_str()), ("(absent)", "closed"));
        assert_eq!(compare(&[right], &[left])[0].right, "(absent)");
        assert!(table(&differences, "iptables", "redirector").contains("greeting"));
    }
}
