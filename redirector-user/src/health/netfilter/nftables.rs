//! The rules of nf_tables, which iptables-nft makes, too (uapi/linux/netfilter/nf_tables.h).

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::evaluate::{Base, Chains, Entry, Ruleset};
use super::expressions::{self, register, writes_port};
use super::packet::Hook;
use super::rule::{Action, Rule, all_but};
use super::sets::{SetName, Sets};
use super::xt::Readers;
use crate::base::error::Result;
use crate::base::text::nul_terminated as text;
use crate::netlink::nf_tables::{at, big};
use crate::netlink::{Payload, attributes, nf_tables};

/// Adds those of the calling thread's namespace.
pub(super) fn read(chains: &[Vec<u8>], readers: &Readers, into: &mut Ruleset) -> Result<()> {
    let dormant =
        nf_tables::list("the tables of nf_tables", &nf_tables::request(nf_tables::GETTABLE, 0), dormant)?;
    let mut tables: HashMap<Table, usize> = HashMap::new();
    let mut table = |into: &mut Ruleset, name: &Table| {
        *tables.entry(name.clone()).or_insert_with(|| {
            into.tables.push(Chains::new());
            into.tables.len() - 1
        })
    };
    let mut of_lo: Vec<(Table, String)> = Vec::new();
    for (name, base) in chains.iter().filter_map(|chain| base(chain)) {
        if base.devices.iter().any(|device| device == "lo") {
            of_lo.push((name.clone(), base.chain.clone()));
        }
        if !dormant.contains(&name) {
            let table = table(into, &name);
            into.bases.push(Base { table, ..base });
        }
    }
    let mut sets = Sets::default();
    for payload in nf_tables::payloads("the rules of nf_tables", nf_tables::GETRULE)? {
        let Some((name, chain, mut entry)) = entry(&payload, &mut sets, readers)? else { continue };
        if dormant.contains(&name) {
            continue;
        }
        let is_of_lo = of_lo.iter().any(|(table, own)| *table == name && *own == chain);
        entry.told.iter_mut().for_each(|rule| rule.is_everything_on_lo |= is_of_lo);
        let table = table(into, &name);
        into.tables[table].entry(chain).or_default().push(entry);
    }
    Ok(())
}

/// Family and name.
type Table = (u8, String);

/// NFTA_TABLE_NAME and _FLAGS, of which NFT_TABLE_F_DORMANT is 1: its chains are not registered.
fn dormant(payload: &[u8]) -> Option<Table> {
    let table = Payload::split(payload, nf_tables::HEADER)?;
    let is_dormant = table.get(2).and_then(big)? & 1 != 0;
    is_dormant.then(|| (table.byte(0), text(table.get(1).unwrap_or_default())))
}

/// A base chain that what is captured meets.
fn base(payload: &[u8]) -> Option<(Table, Base)> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const TYPE: u16 = 7;
    // NFTA_HOOK_HOOKNUM, _PRIORITY, _DEV and _DEVS.
    const NUMBER: u16 = 1;
    const PRIORITY: u16 = 2;
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    const NETDEV: u8 = 5;
    const NF_DROP: u32 = 0;
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let (family, hook) = (chain.byte(0), chain.get(HOOK)?);
    let number = |kind| at(hook, &[kind]).and_then(big);
    let of_hook = match (family, number(NUMBER)?) {
        (NETDEV, 0) | (1, 5) => Hook::Ingress,
        (NETDEV, _) => return None,
        (_, 0) => Hook::PreRouting,
        (_, 1) => Hook::Input,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::PostRouting,
        _ => return None,
    };
    let several = attributes(at(hook, &[DEVICES]).unwrap_or_default()).map(|(_, name)| text(name));
    let name = text(chain.get(NAME)?);
    let table = text(chain.get(TABLE)?);
    let drops = chain.get(POLICY).and_then(big) == Some(NF_DROP);
    let policy = Rule {
        table: format!("nftables {table}"),
        chain: format!("{name} (policy)"),
        is_everything_on_lo: true,
        action: if drops { Action::Drop } else { Action::Accept },
        ..Rule::default()
    };
    Some((
        (family, table),
        Base {
            family,
            hook: of_hook,
            priority: number(PRIORITY).unwrap_or_default().cast_signed(),
            devices: at(hook, &[DEVICE]).map(text).into_iter().chain(several).collect(),
            is_nat: chain.get(TYPE).is_some_and(|kind| kind.starts_with(b"nat")),
            table: 0,
            chain: name,
            policy,
        },
    ))
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

/// A rule, and the table and chain it is in.
fn entry(payload: &[u8], sets: &mut Sets, readers: &Readers) -> Result<Option<(Table, String, Entry)>> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let Some(message) = Payload::split(payload, nf_tables::HEADER) else { return Ok(None) };
    let (Some(table), Some(chain), Some(expressions)) =
        (message.get(TABLE), message.get(CHAIN), message.get(EXPRESSIONS))
    else {
        return Ok(None);
    };
    let (family, table, chain) = (message.byte(0), text(table), text(chain));
    let rule = Rule { table: format!("nftables {table}"), chain: chain.clone(), ..Rule::default() };
    let (loaded, selected) = (HashMap::new(), vec![Selected::default()]);
    let mut reading = Reading { family, table, rule, loaded, selected, sets };
    let mut steps = Vec::new();
    for (_, expression) in attributes(expressions) {
        reading.expression(expression)?;
        let of = (family, reading.table.as_str());
        steps.extend(expressions::steps(expression, of, reading.sets, readers)?);
    }
    let rule = reading.rule;
    let with = |selected: Selected| Rule {
        protocol: selected.protocol.or(rule.protocol),
        ports: selected.ports.or_else(|| rule.ports.clone()),
        action: selected.action.unwrap_or_else(|| rule.action.clone()),
        ..rule.clone()
    };
    let told = reading.selected.into_iter().map(with).collect();
    Ok(Some(((family, reading.table), chain, Entry { steps, told })))
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
            // Another destination port is written.
            "payload" if writes_port(data) => rule.action = Action::Redirect("rewrite".into()),
            "payload" | "meta" => {
                if let Some(to) = register(data, 1) {
                    self.loaded.insert(to, what_is_loaded(&name, data));
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
            "queue" => rule.action = Action::Queue,
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
                assert!(entry(&bytes, &mut Sets::default(), &None).unwrap().is_none());
                assert!(base(&bytes).is_none() && dormant(&bytes).is_none());
            }
        }
    }
}
