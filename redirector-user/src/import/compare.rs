//! Compares the rules of the text with the rules of a policy.

use std::sync::LazyLock;

use super::flatten::{Flat, Item, given, meant};
use super::model::{Inexpressible, Missing, Placed, is_istio};
use crate::policy::{Dns, Policy, Selection};
use crate::rules::{Family, Is, Protocol, Rules, Spec, Table, Target};

/// The differences of one family.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub inexpressible: Vec<Inexpressible>,
    pub missing: Vec<Missing>,
    /// Rules that cannot redirect.
    pub foreign: usize,
}

/// A rule of the policy, and whether the text has it.
struct Meant<'a> {
    item: &'a Item,
    found: bool,
    /// Rules of one stage may stand in any order.
    stage: usize,
}

impl Compared {
    /// Compares the rules of a family.
    pub fn family(&mut self, rules: &[Placed], policy: &Policy, family: Family) {
        for rule in rules.iter().filter(|rule| rule.family == family) {
            let Err(why) = &rule.spec else { continue };
            if concerns(rule.table, &rule.chain) {
                self.name(family, rule.line, &rule.text, why.clone());
            } else {
                self.foreign += 1;
            }
        }
        let (given, policy_rules) = (given(rules, family), Rules::of(policy));
        let expected = meant(&policy_rules, family);
        let mut expected = stages(&expected);
        let mut reached: Vec<(Table, &str, usize)> = Vec::new();
        let mut unmatched = Vec::new();
        for item in &given.items {
            if !concerns(item.table, &item.chain) {
                self.foreign += usize::from(item.table != Table::Raw);
                continue;
            }
            if !item.reached || is_known(item, policy, &given) {
                continue;
            }
            let fits = |meant: &Meant<'_>| same(meant.item, item);
            let at = expected.iter().position(|meant| !meant.found && fits(meant));
            let Some(at) = at else {
                // A second copy of a rule finds no partner.
                if !expected.iter().any(fits) {
                    unmatched.push(item);
                }
                continue;
            };
            expected[at].found = true;
            let stage = expected[at].stage;
            match reached.iter_mut().find(|(table, chain, _)| (*table, *chain) == (item.table, &item.chain)) {
                Some((.., last)) if *last > stage => {
                    let why = "it stands after rules that it has to come before";
                    self.name(family, item.line, &item.text, why.into());
                }
                Some((.., last)) => *last = stage,
                None => reached.push((item.table, &item.chain, stage)),
            }
        }
        for item in unmatched {
            let mut left = expected.iter_mut().filter(|meant| !meant.found);
            let why = match left.find(|meant| is_near(meant.item, item)) {
                Some(near) => {
                    near.found = true;
                    format!("the nearest that redirector has is {}", near.item.text)
                }
                None => "redirector has no such rule".into(),
            };
            self.name(family, item.line, &item.text, why);
        }
        let missing = expected.iter().filter(|meant| !meant.found && matters(meant.item, policy, &given));
        self.missing.extend(missing.map(|meant| Missing {
            family,
            table: meant.item.table,
            rule: meant.item.text.clone(),
        }));
    }

    fn name(&mut self, family: Family, line: usize, rule: &str, why: String) {
        self.inexpressible.push(Inexpressible { family, line, rule: rule.into(), why });
    }
}

/// Whether a rule of this chain can redirect a packet or exempt it.
fn concerns(table: Table, chain: &str) -> bool {
    match table {
        Table::Nat => !matches!(chain, "INPUT" | "POSTROUTING"),
        Table::Mangle => matches!(chain, "PREROUTING" | "OUTPUT") || is_istio(chain),
        Table::Raw | Table::Filter => false,
    }
}

fn same(meant: &Item, item: &Item) -> bool {
    (meant.table, &meant.chain, &meant.spec) == (item.table, &item.chain, &item.spec)
}

/// The reachable rules with their stages. A stage ends where the target changes.
fn stages(flat: &Flat) -> Vec<Meant<'_>> {
    let mut last: Vec<(Table, &str, &Target, usize)> = Vec::new();
    let mut list = Vec::new();
    for item in flat.items.iter().filter(|item| item.reached) {
        let target = settled(&item.spec.target);
        let stage =
            match last.iter_mut().find(|(table, chain, ..)| (*table, *chain) == (item.table, &item.chain)) {
                Some((.., of, stage)) => {
                    if *of != target {
                        (*of, *stage) = (target, *stage + 1);
                    }
                    *stage
                }
                None => {
                    last.push((item.table, &item.chain, target, 0));
                    0
                }
            };
        list.push(Meant { item, found: false, stage });
    }
    list
}

/// The final target. The two chains of TPROXY share one: they do the same for old and for new connections.
fn settled(target: &Target) -> &Target {
    static TPROXY: LazyLock<Target> = LazyLock::new(|| Target::Jump("ISTIO_TPROXY".into()));
    if matches!(target, Target::Jump(chain) if chain == "ISTIO_DIVERT") { &TPROXY } else { target }
}

/// Rules that a policy is complete without.
fn is_known(item: &Item, policy: &Policy, given: &Flat) -> bool {
    let spec = &item.spec;
    // `--drop-invalid`.
    let invalid = Spec { states: vec!["INVALID".into()], ..Spec::to(spec.target.clone()) };
    let drops = spec.target == Target::Drop || spec.target == Target::Jump("ISTIO_DROP".into());
    if item.table == Table::Mangle
        && policy.drop_invalid
        && drops
        && (item.chain == "ISTIO_DROP" || *spec == invalid)
    {
        return true;
    }
    // Jumps to ISTIO_OUTPUT that leave out only what no rule there is about.
    item.table == Table::Nat
        && item.chain == "OUTPUT"
        && spec.target == Target::Jump("ISTIO_OUTPUT".into())
        && covering_jumps(policy, given).contains(&spec)
}

/// Jumps from OUTPUT to ISTIO_OUTPUT that together cover every packet; empty if they do not.
fn covering_jumps<'a>(policy: &Policy, given: &'a Flat) -> Vec<&'a Spec> {
    let all = Spec::jump("ISTIO_OUTPUT");
    let tcp = all.clone().tcp();
    let udp = Spec { protocol: Some(Protocol::Udp), ..all };
    let dns = Spec { ports: Some(Is::exactly(vec![53])), ..udp.clone() };
    let jumps = |kind: &Spec| given.of(Table::Nat, "OUTPUT").find(|spec| *spec == kind);
    let for_udp = jumps(&udp).or_else(|| jumps(&dns));
    match (jumps(&tcp), for_udp) {
        (Some(tcp), Some(udp)) => vec![tcp, udp],
        (Some(tcp), None) if policy.dns == Dns::Off => vec![tcp],
        _ => Vec::new(),
    }
}

/// Whether a missing rule changes a verdict.
fn matters(meant: &Item, policy: &Policy, given: &Flat) -> bool {
    let spec = &meant.spec;
    let jump = meant.chain == "OUTPUT" && *spec == Spec::jump("ISTIO_OUTPUT");
    if jump && !covering_jumps(policy, given).is_empty() {
        return false;
    }
    // A list of ports captures no other port, be it the tunnel's or not.
    let tunnel = meant.table == Table::Nat && meant.chain == "ISTIO_INBOUND" && spec.target == Target::Return;
    if tunnel
        && matches!(&policy.inbound_ports, Selection::List(ports) if !ports.contains(&policy.tunnel_port))
    {
        return false;
    }
    // Only DNS is captured of UDP.
    let excluded = spec.protocol == Some(Protocol::Udp) && spec.target == Target::Return;
    let dns = policy.dns != Dns::Off && spec.ports == Some(Is::exactly(vec![53]));
    !excluded || dns
}

/// Whether two rules differ in exactly one field.
fn is_near(meant: &Item, item: &Item) -> bool {
    if (meant.table, &meant.chain) != (item.table, &item.chain) {
        return false;
    }
    let (a, b) = (&meant.spec, &item.spec);
    let differ = [
        a.source != b.source,
        a.destination != b.destination,
        a.input != b.input,
        a.output != b.output,
        a.ports != b.ports,
        a.protocol != b.protocol,
        (&a.uid, &a.gids) != (&b.uid, &b.gids),
        (&a.mark, &a.connection_mark) != (&b.mark, &b.connection_mark),
        a.states != b.states,
        a.target != b.target,
    ];
    differ.iter().filter(|differs| **differs).count() == 1
}
