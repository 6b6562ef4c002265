//! The rules of nf_tables, which iptables-nft makes, too (uapi/linux/netfilter/nf_tables.h).

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::rule::{Action, Rule, all_but};
use super::sets::{SetName, Sets};
use crate::base::error::Result;
use crate::base::text::nul_terminated as text;
use crate::netlink::nf_tables::{at, big};
use crate::netlink::{Payload, attributes, nf_tables};

/// Those of the calling thread's namespace, and the policies of its chains.
pub(super) fn rules(chains: &[Vec<u8>]) -> Result<Vec<Rule>> {
    let mut all: Vec<Rule> = chains.iter().filter_map(|chain| policy_of_chain(chain)).collect();
    let of_lo: Vec<Name> = chains.iter().filter_map(|chain| of_device_lo(chain)).collect();
    let bases: Vec<(Name, u32)> = chains.iter().filter_map(|chain| of_hook(chain)).collect();
    let mut sets = Sets::default();
    for payload in nf_tables::payloads("the rules of nf_tables", nf_tables::GETRULE)? {
        let family = payload.first().copied().unwrap_or_default();
        all.extend(rules_of(&payload, &mut sets)?.into_iter().map(|rule| {
            let is_of =
                |(own, table, chain): &Name| *own == family && *table == rule.table && *chain == rule.chain;
            let hook = bases.iter().find(|(name, _)| is_of(name)).map(|(_, hook)| *hook);
            let is_everything_on_lo = rule.is_everything_on_lo || of_lo.iter().any(is_of);
            Rule { is_everything_on_lo, ..rule }.of_base_chain(hook)
        }));
    }
    Ok(all)
}

/// Family, table and name of a chain.
type Name = (u8, String, String);
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;

/// A base chain of the device lo (family netdev, and inet at its ingress).
fn of_device_lo(payload: &[u8]) -> Option<Name> {
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let hook = chain.get(HOOK)?;
    let is_lo = |name: &[u8]| name == b"lo\0";
    let several = || attributes(at(hook, &[DEVICES]).unwrap_or_default()).any(|(_, name)| is_lo(name));
    (at(hook, &[DEVICE]).is_some_and(is_lo) || several()).then(|| {
        let table = format!("nftables {}", text(chain.get(TABLE).unwrap_or_default()));
        (chain.byte(0), table, text(chain.get(NAME).unwrap_or_default()))
    })
}

/// A base chain of IP (NFPROTO_INET, _IPV4, _IPV6), and its hook.
fn of_hook(payload: &[u8]) -> Option<(Name, u32)> {
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let hook = big(at(chain.get(HOOK)?, &[1])?)?;
    let table = format!("nftables {}", text(chain.get(TABLE).unwrap_or_default()));
    let name = (chain.byte(0), table, text(chain.get(NAME).unwrap_or_default()));
    matches!(chain.byte(0), 1 | 2 | 10).then_some((name, hook)).filter(|(_, hook)| *hook < 5)
}

/// The policy of a base chain at INPUT or OUTPUT, or of the device lo, if that drops.
fn policy_of_chain(payload: &[u8]) -> Option<Rule> {
    const POLICY: u16 = 5;
    const HOOKNUM: u16 = 1;
    const LOCAL_IN: u32 = 1;
    const LOCAL_OUT: u32 = 3;
    const NF_DROP: u32 = 0;
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let hook = big(at(chain.get(HOOK)?, &[HOOKNUM])?)?;
    let drops = big(chain.get(POLICY)?)? == NF_DROP;
    let is_of_device = at(chain.get(HOOK)?, &[3]).is_some() || at(chain.get(HOOK)?, &[4]).is_some();
    let stops =
        if is_of_device { of_device_lo(payload).is_some() } else { matches!(hook, LOCAL_IN | LOCAL_OUT) };
    (drops && stops).then(|| Rule {
        table: format!("nftables {}", text(chain.get(TABLE).unwrap_or_default())),
        chain: format!("{} (policy)", text(chain.get(NAME).unwrap_or_default())),
        is_everything_on_lo: true,
        is_input: !is_of_device && hook == LOCAL_IN,
        action: Action::Drop,
        ..Rule::default()
    })
}

/// What a register holds for the comparison that follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Protocol,
    DestinationPort,
    /// An address, or its first bytes.
    Destination {
        v6: bool,
    },
    InterfaceName,
    InterfaceIndex,
    User,
    Group,
    /// IPv4 or IPv6: no condition of its own.
    Family,
    /// The same as a protocol of Ethernet, which may be another one.
    EtherType,
    /// The state of a connection (conntrack), and which states are left of it.
    State,
    States(u32),
    Other,
}

/// What a set adds to a rule. A rule that selects by one has several: one for each protocol and verdict.
#[derive(Clone, Default, PartialEq, Eq)]
struct Selected {
    protocol: Option<u8>,
    ports: Option<Vec<(u16, u16)>>,
    action: Option<Action>,
}

/// A rule while its expressions are read.
struct Reading<'a> {
    family: u8,
    table: String,
    rule: Rule,
    /// By registers of 32 bits.
    loaded: HashMap<u32, Loaded>,
    selected: Vec<Selected>,
    sets: &'a mut Sets,
}

fn rules_of(payload: &[u8], sets: &mut Sets) -> Result<Vec<Rule>> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let Some(message) = Payload::split(payload, nf_tables::HEADER) else { return Ok(Vec::new()) };
    let (Some(table), Some(chain), Some(expressions)) =
        (message.get(TABLE), message.get(CHAIN), message.get(EXPRESSIONS))
    else {
        return Ok(Vec::new());
    };
    let table = text(table);
    let rule = Rule { table: format!("nftables {table}"), chain: text(chain), ..Rule::default() };
    let (loaded, selected) = (HashMap::new(), vec![Selected::default()]);
    let mut reading = Reading { family: message.byte(0), table, rule, loaded, selected, sets };
    for (_, expression) in attributes(expressions) {
        reading.expression(expression)?;
    }
    let rule = reading.rule;
    let with = |selected: Selected| Rule {
        protocol: selected.protocol.or(rule.protocol),
        ports: selected.ports.or_else(|| rule.ports.clone()),
        action: selected.action.unwrap_or_else(|| rule.action.clone()),
        ..rule.clone()
    };
    Ok(reading.selected.into_iter().map(with).collect())
}

impl Reading<'_> {
    fn expression(&mut self, expression: &[u8]) -> Result<()> {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        let name = text(at(expression, &[NAME]).unwrap_or_default());
        let data = at(expression, &[DATA]).unwrap_or_default();
        let loaded = self.loaded(data);
        let rule = &mut self.rule;
        match name.as_str() {
            "payload" | "meta" | "ct" => {
                if let Some(to) = register(data, 1) {
                    self.loaded.insert(to, what_is_loaded(&name, data));
                }
            }
            // NFTA_BITWISE_SREG, _DREG and _MASK.
            "bitwise" if loaded == Loaded::State => {
                let mask = at(data, &[4, 1])
                    .and_then(|mask| mask.first_chunk())
                    .map(|four| u32::from_ne_bytes(*four));
                if let (Some(to), Some(mask)) = (register(data, 2), mask) {
                    self.loaded.insert(to, Loaded::States(mask));
                }
            }
            "cmp" => compare(rule, loaded, data),
            "range" => range(rule, loaded, data),
            "lookup" => return self.look_up(data),
            // `struct xt_*` of iptables-nft.
            "match" => {
                let revision = at(data, &[2]).and_then(big).unwrap_or_default();
                let name = text(at(data, &[1]).unwrap_or_default());
                let of = at(data, &[3]).unwrap_or_default();
                rule.condition(&name, u8::try_from(revision).unwrap_or(u8::MAX), of);
            }
            "target" => rule.action = Action::of_target(&text(at(data, &[1]).unwrap_or_default())),
            "immediate" => {
                // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE.
                if let Some(code) = at(data, &[2, 2, 1]).and_then(big) {
                    rule.action = of_verdict(code);
                }
            }
            "reject" => rule.action = Action::Reject,
            "redir" | "tproxy" => rule.action = Action::Redirect(name),
            // NFTA_NAT_TYPE: NFT_NAT_DNAT is 1.
            "nat" if at(data, &[1]).and_then(big) == Some(1) => rule.action = Action::Redirect("dnat".into()),
            "counter" | "log" | "nat" | "masq" => {}
            _ => rule.other = true,
        }
        Ok(())
    }

    /// What is in the register that an expression compares, its first attribute.
    fn loaded(&self, data: &[u8]) -> Loaded {
        register(data, 1).and_then(|register| self.loaded.get(&register)).copied().unwrap_or(Loaded::Other)
    }

    /// NFTA_LOOKUP_SET, _SREG, _DREG (0 is the verdict) and _FLAGS (1 is NFT_LOOKUP_F_INV).
    fn look_up(&mut self, data: &[u8]) -> Result<()> {
        let set: SetName = (self.family, self.table.clone(), text(at(data, &[1]).unwrap_or_default()));
        let is_verdict = at(data, &[3]).and_then(big) == Some(0);
        let is_inverted = at(data, &[5]).and_then(big).is_some_and(|flags| flags & 1 != 0);
        let (Some(first), Some(len)) = (register(data, 2), self.sets.key_len(&set)?) else {
            self.rule.other = true;
            return Ok(());
        };
        // A field takes whole registers.
        let fields: Vec<(usize, Loaded)> = (0..len.div_ceil(4))
            .zip(first..)
            .filter_map(|(at, register)| Some((4 * at, *self.loaded.get(&register)?)))
            .collect();
        let field = |kind| fields.iter().find(|(_, loaded)| *loaded == kind).map(|(at, _)| *at);
        let (protocol, port) = (field(Loaded::Protocol), field(Loaded::DestinationPort));
        let known = |loaded| matches!(loaded, Loaded::Protocol | Loaded::DestinationPort | Loaded::Family);
        self.rule.other |= !fields.iter().all(|(_, loaded)| known(*loaded)) || fields.is_empty();
        if is_inverted && (fields.len() != 1 || port.is_none()) {
            self.rule.other = true;
            return Ok(());
        }
        if protocol.is_none() && port.is_none() && !is_verdict {
            return Ok(());
        }
        let mut found: Vec<Selected> = Vec::new();
        for element in self.sets.elements(&set)? {
            let number = |bytes: &[u8], at: usize| {
                bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
            };
            let one = Selected {
                protocol: protocol.and_then(|at| element.from.get(at).copied()),
                ports: port.map(|_| Vec::new()),
                action: is_verdict.then(|| element.verdict.map_or(Action::Other, of_verdict)),
            };
            let same = |other: &&mut Selected| other.protocol == one.protocol && other.action == one.action;
            let range = port.map(|at| (number(&element.from, at), number(&element.to, at)));
            match found.iter_mut().find(same) {
                Some(other) => other.ports.iter_mut().for_each(|ports| ports.extend(range)),
                None => found.push(Selected { ports: range.map(|range| vec![range]), ..one }),
            }
        }
        if is_inverted {
            let ports = found.pop().and_then(|all| all.ports).unwrap_or_default();
            found = vec![Selected { ports: Some(all_but(ports)), ..Selected::default() }];
        }
        let both = |before: &Selected, now: &Selected| Selected {
            protocol: now.protocol.or(before.protocol),
            ports: now.ports.clone().or_else(|| before.ports.clone()),
            action: now.action.clone().or_else(|| before.action.clone()),
        };
        // None where the set is empty: the rule takes nothing.
        self.selected =
            self.selected.iter().flat_map(|before| found.iter().map(|now| both(before, now))).collect();
        Ok(())
    }
}

/// The register an attribute names, in units of 32 bits: NFT_REG_1 to _4 are four of NFT_REG32_00 and up each.
fn register(data: &[u8], kind: u16) -> Option<u32> {
    match at(data, &[kind]).and_then(big)? {
        number @ 1..=4 => Some((number - 1) * 4),
        number => number.checked_sub(8),
    }
}

fn of_verdict(code: u32) -> Action {
    match code {
        0 => Action::Drop,
        1 => Action::Accept,
        _ => Action::Other,
    }
}

fn what_is_loaded(expression: &str, data: &[u8]) -> Loaded {
    let number = |kind| at(data, &[kind]).and_then(big);
    if expression == "meta" {
        // NFTA_META_KEY: NFT_META_PROTOCOL, NFT_META_IIF and _OIF, _IIFNAME and _OIFNAME, _SKUID, _SKGID, _NFPROTO, _L4PROTO.
        return match number(2) {
            Some(1) => Loaded::EtherType,
            Some(4 | 5) => Loaded::InterfaceIndex,
            Some(6 | 7) => Loaded::InterfaceName,
            Some(10) => Loaded::User,
            Some(11) => Loaded::Group,
            Some(15) => Loaded::Family,
            Some(16) => Loaded::Protocol,
            _ => Loaded::Other,
        };
    }
    if expression == "ct" {
        // NFTA_CT_KEY: NFT_CT_STATE is 0.
        return if number(2) == Some(0) { Loaded::State } else { Loaded::Other };
    }
    // NFTA_PAYLOAD_BASE, _OFFSET, _LEN: the network header's protocol, the transport header's destination port.
    match (number(2), number(3), number(4)) {
        (Some(1), Some(9 | 6), Some(1)) => Loaded::Protocol,
        (Some(2), Some(2), Some(2)) => Loaded::DestinationPort,
        (Some(1), Some(16), Some(1..=4)) => Loaded::Destination { v6: false },
        (Some(1), Some(24), Some(1..=16)) => Loaded::Destination { v6: true },
        _ => Loaded::Other,
    }
}

/// NFTA_CMP_OP and NFTA_CMP_DATA.
fn compare(rule: &mut Rule, loaded: Loaded, data: &[u8]) {
    const EQ: u32 = 0;
    const NEQ: u32 = 1;
    const LT: u32 = 2;
    const LTE: u32 = 3;
    const GT: u32 = 4;
    const GTE: u32 = 5;
    const ETH_P_IP: u16 = 0x0800;
    const ETH_P_IPV6: u16 = 0x86dd;
    let operation = at(data, &[2]).and_then(big);
    let value = at(data, &[3, 1]).unwrap_or_default();
    let port = value.first_chunk().map(|two| u16::from_be_bytes(*two));
    let (from, to) = rule.ports.as_ref().and_then(|ports| ports.first().copied()).unwrap_or((0, u16::MAX));
    match (loaded, operation, port) {
        (Loaded::Protocol, Some(EQ), _) => rule.protocol = value.first().copied(),
        (Loaded::InterfaceName, Some(EQ), _) if value.starts_with(b"lo\0") => rule.is_everything_on_lo = true,
        (Loaded::InterfaceIndex, Some(EQ), _) if value.first_chunk() == Some(&1u32.to_ne_bytes()) => {
            rule.is_everything_on_lo = true;
        }
        (Loaded::Destination { v6 }, Some(EQ), _) => {
            let (v4, of_v6) = (Ipv4Addr::LOCALHOST.octets(), Ipv6Addr::LOCALHOST.octets());
            rule.is_to_loopback = if v6 { of_v6.starts_with(value) } else { v4.starts_with(value) };
            rule.other |= !rule.is_to_loopback;
        }
        (Loaded::Family, ..) | (Loaded::EtherType, Some(EQ), Some(ETH_P_IP | ETH_P_IPV6)) => {}
        (Loaded::States(mask), Some(EQ | NEQ), _) if value.iter().all(|byte| *byte == 0) => {
            rule.states(mask, operation == Some(EQ));
        }
        (Loaded::State, Some(EQ), _) if value.len() == 4 => {
            rule.states(value.first_chunk().map_or(0, |four| u32::from_ne_bytes(*four)), false);
        }
        (Loaded::User, Some(NEQ), _) => {
            rule.not_user = value.first_chunk().map(|four| u32::from_ne_bytes(*four));
        }
        (Loaded::InterfaceName, Some(NEQ), _) if value.starts_with(b"lo\0") => rule.is_of_interface = true,
        (Loaded::InterfaceIndex, Some(NEQ), _) if value.first_chunk() == Some(&1u32.to_ne_bytes()) => {
            rule.is_of_interface = true;
        }
        (Loaded::User | Loaded::Group, Some(EQ), _) => {
            let id = value.first_chunk().map(|four| u32::from_ne_bytes(*four));
            if loaded == Loaded::User { rule.user = id } else { rule.group = id }
        }
        (Loaded::InterfaceName | Loaded::InterfaceIndex, Some(EQ), _) => rule.is_of_interface = true,
        (Loaded::DestinationPort, Some(EQ), Some(port)) => rule.ports = Some(vec![(port, port)]),
        (Loaded::DestinationPort, Some(NEQ), Some(port)) => rule.ports = Some(all_but(vec![(port, port)])),
        (Loaded::DestinationPort, Some(GTE), Some(port)) => rule.ports = Some(vec![(port, to)]),
        (Loaded::DestinationPort, Some(GT), Some(port)) => {
            rule.ports = Some(vec![(port.saturating_add(1), to)])
        }
        (Loaded::DestinationPort, Some(LTE), Some(port)) => rule.ports = Some(vec![(from, port)]),
        (Loaded::DestinationPort, Some(LT), Some(port)) => {
            rule.ports = Some(vec![(from, port.saturating_sub(1))])
        }
        _ => rule.other = true,
    }
}

/// NFTA_RANGE_OP (1 is NFT_RANGE_NEQ), NFTA_RANGE_FROM_DATA and _TO_DATA.
fn range(rule: &mut Rule, loaded: Loaded, data: &[u8]) {
    let port = |kind| at(data, &[kind, 1])?.first_chunk().map(|two| u16::from_be_bytes(*two));
    let (Loaded::DestinationPort, Some(from), Some(to)) = (loaded, port(3), port(4)) else {
        rule.other = true;
        return;
    };
    let is_inverted = at(data, &[2]).and_then(big) == Some(1);
    rule.ports = Some(if is_inverted { all_but(vec![(from, to)]) } else { vec![(from, to)] });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_are_no_rules() {
        for length in 0..64 {
            for byte in [0, 1, 0xff] {
                let bytes = vec![byte; length];
                let rules = rules_of(&bytes, &mut Sets::default()).unwrap();
                assert!(rules.iter().all(|rule| rule.action == Action::Other));
                assert!(policy_of_chain(&bytes).is_none());
            }
        }
    }
}
