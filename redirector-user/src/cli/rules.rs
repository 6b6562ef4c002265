//! The rules of an instance as `show -v` prints them.

use redirector_common::rule::{Counter, Outcome};

use super::output::{print, table};
use crate::base::error::Result;
use crate::instance::status::{CounterStatus, Status};
use crate::rules::{Count, Listed, Rules};

const HEADER: [&str; 9] = ["#", "CONNS", "TARGET", "PROT", "IN", "OUT", "SOURCE", "DESTINATION", ""];

fn count(counters: &[CounterStatus], counter: Counter) -> u64 {
    counters.iter().find(|known| known.rule == counter.name()).map_or(0, |known| known.connections)
}

/// Prints the rules of the policy chain by chain, and then what else is counted.
pub fn print_all(status: &Status) -> Result<()> {
    let rules = Rules::of(&status.record.policy);
    for listed in rules.listing(|counter| count(&status.counters, counter)) {
        print(&title(&listed))?;
        table(
            HEADER,
            listed.rows.into_iter().map(|row| {
                let connections = match row.connections {
                    Count::Own(n) => n.to_string(),
                    Count::With(number) => format!("with {number}"),
                    Count::None => "-".into(),
                };
                let [target, prot, input, output, source, destination, extra] = row.columns;
                [row.number.to_string(), connections, target, prot, input, output, source, destination, extra]
            }),
        )?;
        print("")?;
    }
    let others = Counter::ALL.into_iter().filter(|counter| !matches!(counter.outcome(), Outcome::Decided(_)));
    table(
        ["CONNS", "OUTCOME"],
        others.map(|counter| [count(&status.counters, counter).to_string(), counter.name().to_owned()]),
    )
}

fn title(listed: &Listed) -> String {
    let (table, name) = (listed.chain.table.name(), listed.chain.name);
    match listed.rest {
        Some(rest) => {
            format!("Chain {name} ({table}, policy ACCEPT: {rest} connections that no rule was about)")
        }
        None => format!("Chain {name} ({table})"),
    }
}
