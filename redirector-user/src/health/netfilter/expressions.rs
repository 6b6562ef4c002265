//! The expressions of rules of nf_tables, as steps (uapi/linux/netfilter/nf_tables.h).

use super::packet::Field;
use super::program::{Effect, Operation, Step};
use super::sets::{SetName, Sets};
use super::verdict::{Verdict, verdict};
use super::xt::{self, Readers};
use crate::base::error::Result;
use crate::base::text::nul_terminated as text;
use crate::netlink::nf_tables::{at, big};

/// What one adds to the steps of its rule. Family and table are those of its sets.
pub(super) fn steps(
    expression: &[u8],
    (family, table): (u8, &str),
    sets: &mut Sets,
    readers: &Readers,
) -> Result<Vec<Step>> {
    let name = text(at(expression, &[1]).unwrap_or_default());
    let data = at(expression, &[2]).unwrap_or_default();
    let named = || text(at(data, &[1]).unwrap_or_default());
    let number = |kind| at(data, &[kind]).and_then(big);
    let revision = || number(2).and_then(|revision| u8::try_from(revision).ok()).unwrap_or(u8::MAX);
    let info = || at(data, &[3]).unwrap_or_default();
    let translated = |effect| vec![Step::Effect(effect), Step::Verdict(Verdict::Accept)];
    Ok(match name.as_str() {
        "match" => xt::condition(&named(), revision(), info()),
        "target" => xt::target(&named(), revision(), info(), readers),
        "lookup" => {
            let set = (family, table.to_owned(), named());
            look_up(data, &set, sets)?
        }
        "immediate" => match at(data, &[2, 2, 1]).and_then(big) {
            Some(code) => vec![Step::Verdict(decided(code, at(data, &[2, 2, 2]).map(text), readers))],
            None => vec![Step::Forget],
        },
        "reject" => vec![Step::Verdict(Verdict::Drop)],
        "queue" => {
            // NFTA_QUEUE_NUM, _TOTAL and _FLAGS; a number in a register is not known.
            let half = |kind| at(data, &[kind])?.first_chunk().map(|two| u16::from_be_bytes(*two));
            let bypass = half(3).is_some_and(|flags| flags & 1 != 0);
            vec![Step::Verdict(match half(1) {
                Some(first) => xt::queue(first, half(2).unwrap_or(1), bypass, readers),
                None => Verdict::Perhaps,
            })]
        }
        // NFT_NAT_SNAT is 0.
        "nat" if number(1) == Some(0) => translated(Effect::Source),
        "masq" => translated(Effect::Source),
        "nat" | "redir" => translated(Effect::Destination),
        "notrack" => vec![Step::Effect(Effect::Untrack)],
        "counter" | "log" | "tproxy" | "dup" => Vec::new(),
        "fwd" | "synproxy" => vec![Step::Verdict(Verdict::Perhaps)],
        // NFTA_FIB_RESULT (NFT_FIB_RESULT_ADDRTYPE) and _FLAGS (NFTA_FIB_F_DADDR, NFTA_FIB_F_IIF).
        "fib" if (number(2), number(3)) == (Some(3), Some(10)) => match register(data, 1) {
            Some(to) => vec![Step::Load { to: to as usize, field: Field::TypeOnInterface }],
            None => vec![Step::Forget],
        },
        "fib" | "socket" | "rt" | "numgen" | "hash" | "osf" | "tunnel" | "xfrm" | "exthdr" => {
            vec![Step::Forget, Step::Unknown]
        }
        name => of_registers(name, data).unwrap_or_else(|| vec![Step::Unknown]),
    })
}

/// The register an attribute names, in units of 32 bits: NFT_REG_1 to _4 are four of NFT_REG32_00 and up each.
pub(super) fn register(data: &[u8], kind: u16) -> Option<u32> {
    match at(data, &[kind]).and_then(big)? {
        number @ 1..=4 => Some((number - 1) * 4),
        number => number.checked_sub(8),
    }
}

/// Whether a destination port is written: at the transport header (NFT_PAYLOAD_TRANSPORT_HEADER); what is read has a
/// register it goes to.
pub(super) fn writes_port(data: &[u8]) -> bool {
    let number = |kind| at(data, &[kind]).and_then(big);
    register(data, 1).is_none() && (number(2), number(3)) == (Some(2), Some(2))
}

/// A verdict that a rule names; NF_QUEUE is 3, with the number of the queue before it.
fn decided(code: u32, chain: Option<String>, readers: &Readers) -> Verdict {
    let (number, bypass) = ((code >> 16) as u16, code & 0x8000 != 0);
    if code & 0xff == 3 { xt::queue(number, 1, bypass, readers) } else { verdict(code, chain) }
}

/// What loads, changes and compares registers; None: it is not known here, or malformed.
fn of_registers(name: &str, data: &[u8]) -> Option<Vec<Step>> {
    let number = |kind| at(data, &[kind]).and_then(big);
    let reg = |kind| register(data, kind).map(|register| register as usize);
    let len = |kind| number(kind).map(|len| (len as usize).min(64));
    let value = |kind| at(data, &[kind, 1]).map(<[u8]>::to_vec);
    Some(match name {
        // What is written where ports and addresses are is another destination.
        "payload" if reg(1).is_none() => match (number(2)?, number(3)?) {
            (2, 0..=3) => vec![Step::Effect(Effect::Destination)],
            (1, 12..) => vec![Step::Effect(Effect::Destination)],
            _ => Vec::new(),
        },
        "payload" => vec![Step::Load { to: reg(1)?, field: payload(number(2)?, len(3)?, len(4)?) }],
        // NFT_META_MARK.
        "meta" if reg(1).is_none() => {
            (number(2)? == 3).then_some(Step::Effect(Effect::Mark)).into_iter().collect()
        }
        "meta" => vec![Step::Load { to: reg(1)?, field: meta(number(2)?) }],
        "ct" if reg(1).is_none() => Vec::new(),
        // NFT_CT_STATE.
        "ct" => {
            let field = if number(2)? == 0 { Field::State } else { Field::Unknown };
            vec![Step::Load { to: reg(1)?, field }]
        }
        "cmp" => {
            vec![Step::Compare { register: reg(1)?, operation: operation(number(2)?)?, value: value(3)? }]
        }
        "range" => {
            let inverted = number(2)? == 1;
            vec![Step::Range { register: reg(1)?, from: value(3)?, to: value(4)?, inverted }]
        }
        // Shifts are others (NFTA_BITWISE_OP).
        "bitwise" if number(6).unwrap_or(0) == 0 => {
            vec![Step::Mask { from: reg(1)?, to: reg(2)?, mask: value(4)?, xor: value(5)? }]
        }
        "bitwise" => vec![Step::Forget],
        "byteorder" => {
            let swap = Step::Swap { from: reg(1)?, to: reg(2)?, len: len(4)?, size: len(5)? };
            cfg!(target_endian = "little").then_some(swap).into_iter().collect()
        }
        _ => return None,
    })
}

fn operation(number: u32) -> Option<Operation> {
    use Operation::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Unequal};
    [Equal, Unequal, Less, LessOrEqual, Greater, GreaterOrEqual].get(number as usize).copied()
}

/// NFTA_PAYLOAD_BASE, _OFFSET and _LEN.
fn payload(base: u32, offset: usize, len: usize) -> Field {
    match (base, offset, len) {
        (0, 12, 2) => Field::EtherType,
        (1, ..) => Field::Network { offset, len },
        (2, ..) => Field::Transport { offset, len },
        _ => Field::Unknown,
    }
}

/// `enum nft_meta_keys`.
fn meta(key: u32) -> Field {
    match key {
        1 => Field::EtherType,
        3 => Field::Mark,
        4 => Field::InIndex,
        5 => Field::OutIndex,
        6 => Field::InName,
        7 => Field::OutName,
        8 => Field::InType,
        10 => Field::User,
        11 => Field::Group,
        15 => Field::Family,
        16 => Field::Protocol,
        _ => Field::Unknown,
    }
}

/// NFTA_LOOKUP_SET, _SREG, _DREG (0 is the verdict) and _FLAGS (1 is NFT_LOOKUP_F_INV).
fn look_up(data: &[u8], set: &SetName, sets: &mut Sets) -> Result<Vec<Step>> {
    let number = |kind| at(data, &[kind]).and_then(big);
    let (Some(register), Some(len)) = (register(data, 2), sets.key_len(set)?) else {
        return Ok(vec![Step::Forget, Step::Unknown]);
    };
    let (register, elements) = (register as usize, sets.elements(set)?.to_vec());
    let inverted = number(5).is_some_and(|flags| flags & 1 != 0);
    Ok(match number(3) {
        Some(0) => vec![Step::Map { register, len, elements }],
        // What it maps to is not looked at.
        Some(_) => vec![Step::Lookup { register, len, elements, inverted }, Step::Forget],
        None => vec![Step::Lookup { register, len, elements, inverted }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_expressions_are_not_known() {
        for length in 0..64 {
            for byte in [0, 1, 0xff] {
                let bytes = vec![byte; length];
                let steps = steps(&bytes, (1, "t"), &mut Sets::default(), &None).unwrap();
                assert_eq!(steps, [Step::Unknown]);
            }
        }
    }
}
