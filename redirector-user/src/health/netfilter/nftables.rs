//! The rules of nf_tables, which iptables-nft makes, too (uapi/linux/netfilter/nf_tables.h).

use super::rule::{Action, Rule};
use crate::base::error::Result;
use crate::base::text::nul_terminated as text;
use crate::netlink::{Payload, attributes, nf_tables};

/// Those of the calling thread's namespace.
pub(super) fn rules() -> Result<Vec<Rule>> {
    let mut all = nf_tables::list("the chains of nf_tables", nf_tables::GETCHAIN, policy_of_chain)?;
    all.extend(nf_tables::list("the rules of nf_tables", nf_tables::GETRULE, rule)?);
    Ok(all)
}

fn big(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|four| u32::from_be_bytes(*four))
}

/// An attribute by the path of kinds that leads to it.
fn at<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |bytes, kind| attributes(bytes).find(|(own, _)| own == kind).map(|(_, value)| value))
}

/// The policy of a base chain at INPUT or OUTPUT, if that drops.
fn policy_of_chain(payload: &[u8]) -> Option<Rule> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const HOOKNUM: u16 = 1;
    const LOCAL_IN: u32 = 1;
    const LOCAL_OUT: u32 = 3;
    const NF_DROP: u32 = 0;
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let hook = big(at(chain.get(HOOK)?, &[HOOKNUM])?)?;
    let drops = big(chain.get(POLICY)?)? == NF_DROP;
    (drops && matches!(hook, LOCAL_IN | LOCAL_OUT)).then(|| Rule {
        table: format!("nftables {}", text(chain.get(TABLE).unwrap_or_default())),
        chain: format!("{} (policy)", text(chain.get(NAME).unwrap_or_default())),
        is_everything_on_lo: true,
        action: Action::Drop,
        ..Rule::default()
    })
}

/// What a register holds for the comparison that follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Protocol,
    DestinationPort,
    InterfaceName,
    InterfaceIndex,
    /// IPv4 or IPv6: no condition of its own.
    Family,
    Other,
}

fn rule(payload: &[u8]) -> Option<Rule> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    let message = Payload::split(payload, nf_tables::HEADER)?;
    let mut rule = Rule {
        table: format!("nftables {}", text(message.get(TABLE)?)),
        chain: text(message.get(CHAIN)?),
        ..Rule::default()
    };
    let mut loaded = Loaded::Other;
    for (_, expression) in attributes(message.get(EXPRESSIONS)?) {
        let name = text(at(expression, &[NAME])?);
        let data = at(expression, &[DATA]).unwrap_or_default();
        match name.as_str() {
            "payload" | "meta" => loaded = what_is_loaded(&name, data),
            "cmp" => compare(&mut rule, loaded, data),
            // `struct xt_*` of iptables-nft.
            "match" => {
                let revision = at(data, &[2]).and_then(big).unwrap_or_default();
                let name = text(at(data, &[1])?);
                rule.condition(&name, u8::try_from(revision).unwrap_or(u8::MAX), at(data, &[3])?);
            }
            "target" => rule.action = Action::of_target(&text(at(data, &[1])?)),
            "immediate" => {
                // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE.
                match at(data, &[2, 2, 1]).and_then(big) {
                    Some(0) => rule.action = Action::Drop,
                    Some(1) => rule.action = Action::Accept,
                    _ => {}
                }
            }
            "reject" => rule.action = Action::Reject,
            "redir" | "tproxy" => rule.action = Action::Redirect(name),
            // NFTA_NAT_TYPE: NFT_NAT_DNAT is 1.
            "nat" if at(data, &[1]).and_then(big) == Some(1) => rule.action = Action::Redirect("dnat".into()),
            "counter" | "log" | "nat" | "masq" => {}
            _ => rule.other = true,
        }
    }
    Some(rule)
}

fn what_is_loaded(expression: &str, data: &[u8]) -> Loaded {
    let number = |kind| at(data, &[kind]).and_then(big);
    if expression == "meta" {
        // NFTA_META_KEY: NFT_META_IIF and _OIF, _IIFNAME and _OIFNAME, _NFPROTO, _L4PROTO.
        return match number(2) {
            Some(4 | 5) => Loaded::InterfaceIndex,
            Some(6 | 7) => Loaded::InterfaceName,
            Some(15) => Loaded::Family,
            Some(16) => Loaded::Protocol,
            _ => Loaded::Other,
        };
    }
    // NFTA_PAYLOAD_BASE, _OFFSET, _LEN: the network header's protocol, the transport header's destination port.
    match (number(2), number(3), number(4)) {
        (Some(1), Some(9 | 6), Some(1)) => Loaded::Protocol,
        (Some(2), Some(2), Some(2)) => Loaded::DestinationPort,
        _ => Loaded::Other,
    }
}

/// NFTA_CMP_OP and NFTA_CMP_DATA.
fn compare(rule: &mut Rule, loaded: Loaded, data: &[u8]) {
    const EQ: u32 = 0;
    const LT: u32 = 2;
    const LTE: u32 = 3;
    const GT: u32 = 4;
    const GTE: u32 = 5;
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
        (Loaded::Family, ..) => {}
        (Loaded::DestinationPort, Some(EQ), Some(port)) => rule.ports = Some(vec![(port, port)]),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_are_no_rules() {
        for length in 0..64 {
            for byte in [0, 1, 0xff] {
                let bytes = vec![byte; length];
                assert!(rule(&bytes).is_none_or(|rule| rule.action == Action::Other));
                assert!(policy_of_chain(&bytes).is_none());
            }
        }
    }
}
