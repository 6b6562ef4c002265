//! Matches and targets of x_tables (uapi/linux/netfilter/xt_*.h), of legacy iptables and of iptables-nft.

use super::packet::Field;
use super::program::{Effect, Operation, Step};
use super::verdict::{Element, Verdict};

/// A register that no expression of nf_tables has.
const SCRATCH: usize = 64;
const SOURCE_PORT: Field = Field::Transport { offset: 0, len: 2 };
const DESTINATION_PORT: Field = Field::Transport { offset: 2, len: 2 };

/// Numbers of the queues that a program reads; None: nobody knows.
pub(super) type Readers = Option<Vec<u16>>;

/// Those of the calling thread's namespace. Without the file no program can read one.
pub(super) fn readers() -> Readers {
    let text = std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue");
    match text {
        Ok(text) => {
            let number = |line: &str| line.split_ascii_whitespace().next()?.parse().ok();
            Some(text.lines().filter_map(number).collect())
        }
        Err(e) => (e.kind() == std::io::ErrorKind::NotFound).then(Vec::new),
    }
}

/// What becomes of a packet for one of these queues. One that nobody reads drops (`nf_queue`), unless it says otherwise.
pub(super) fn queue(first: u16, count: u16, bypass: bool, readers: &Readers) -> Verdict {
    let last = first.saturating_add(count.saturating_sub(1));
    match readers {
        Some(readers) if !readers.iter().any(|one| (first..=last).contains(one)) => {
            if bypass {
                Verdict::Accept
            } else {
                Verdict::Drop
            }
        }
        _ => Verdict::Perhaps,
    }
}

fn half(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..)?.first_chunk().map(|two| u16::from_ne_bytes(*two))
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?.first_chunk().map(|four| u32::from_ne_bytes(*four))
}

fn load(field: Field) -> Step {
    Step::Load { to: SCRATCH, field }
}

/// A field with a mask that is, or is not, a value.
pub(super) fn masked(field: Field, mask: &[u8], value: &[u8], is_inverted: bool) -> Vec<Step> {
    let operation = if is_inverted { Operation::Unequal } else { Operation::Equal };
    vec![
        load(field),
        Step::Mask { from: SCRATCH, to: SCRATCH, mask: mask.to_vec(), xor: Vec::new() },
        Step::Compare { register: SCRATCH, operation, value: value.to_vec() },
    ]
}

fn range(field: Field, from: &[u8], to: &[u8], inverted: bool) -> Vec<Step> {
    vec![load(field), Step::Range { register: SCRATCH, from: from.into(), to: to.into(), inverted }]
}

/// The steps of `-m NAME`.
pub(super) fn condition(name: &str, revision: u8, data: &[u8]) -> Vec<Step> {
    let steps = match (name, revision) {
        ("comment", _) => Some(Vec::new()),
        ("tcp" | "udp", _) => ports(data, name == "tcp"),
        ("multiport", 1) => multiport(data),
        ("owner", 1) => owner(data),
        ("mark", 1) => mark(data),
        ("conntrack", 1..=3) => conntrack(data, revision),
        // struct xt_state_info.
        ("state", _) => word(data, 0).map(|mask| state(mask, false)),
        _ => None,
    };
    steps.unwrap_or_else(|| vec![Step::Unknown])
}

/// struct xt_tcp and xt_udp.
fn ports(data: &[u8], is_tcp: bool) -> Option<Vec<Step>> {
    let inverted = *data.get(if is_tcp { 11 } else { 8 })?;
    let mut steps = Vec::new();
    for (field, at, bit) in [(SOURCE_PORT, 0, 1), (DESTINATION_PORT, 4, 2)] {
        let (from, to) = (half(data, at)?, half(data, at + 2)?);
        if (from, to) != (0, u16::MAX) || inverted & bit != 0 {
            steps.extend(range(field, &from.to_be_bytes(), &to.to_be_bytes(), inverted & bit != 0));
        }
    }
    if is_tcp {
        let (option, mask, flags) = (data[8], data[9], data[10]);
        steps.extend((option != 0).then_some(Step::Unknown));
        if mask != 0 || inverted & 4 != 0 {
            let field = Field::Transport { offset: 13, len: 1 };
            steps.extend(masked(field, &[mask], &[flags], inverted & 4 != 0));
        }
    }
    Some(steps)
}

/// struct xt_multiport_v1.
fn multiport(data: &[u8]) -> Option<Vec<Step>> {
    let (which, count, inverted) = (*data.first()?, usize::from(*data.get(1)?).min(15), *data.get(47)? != 0);
    let (mut elements, mut at) = (Vec::new(), 0);
    while at < count {
        let begins_range = usize::from(*data.get(32 + at)? != 0);
        let port = |at: usize| half(data, 2 + 2 * at).map(|port| port.to_be_bytes().to_vec());
        let (from, to) = (port(at)?, port(at + begins_range)?);
        elements.push(Element { from, to, verdict: None, chain: None });
        at += 1 + begins_range;
    }
    let of = |field| {
        let elements = elements.clone();
        vec![load(field), Step::Lookup { register: SCRATCH, len: 2, elements, inverted: false }]
    };
    let of = match which {
        0 => vec![of(SOURCE_PORT)],
        1 => vec![of(DESTINATION_PORT)],
        _ => vec![of(SOURCE_PORT), of(DESTINATION_PORT)],
    };
    Some(vec![Step::Any { of, inverted }])
}

/// struct xt_owner_match_info.
fn owner(data: &[u8]) -> Option<Vec<Step>> {
    const SOCKET: u8 = 4;
    let (matched, inverted) = (*data.get(16)?, *data.get(17)?);
    let mut steps = Vec::new();
    if matched & inverted & SOCKET != 0 {
        steps.push(Step::Never);
    }
    for (field, at, bit) in [(Field::User, 0, 1), (Field::Group, 8, 2)] {
        if matched & bit == 0 {
            continue;
        }
        let (from, to) = (word(data, at)?, word(data, at + 4)?);
        steps.push(load(field));
        if cfg!(target_endian = "little") {
            steps.push(Step::Swap { from: SCRATCH, to: SCRATCH, len: 4, size: 4 });
        }
        let (from, to) = (from.to_be_bytes().into(), to.to_be_bytes().into());
        steps.push(Step::Range { register: SCRATCH, from, to, inverted: inverted & bit != 0 });
    }
    // Supplementary groups, and what else may come.
    steps.extend((matched & !7 != 0).then_some(Step::Unknown));
    Some(steps)
}

/// struct xt_mark_mtinfo1.
fn mark(data: &[u8]) -> Option<Vec<Step>> {
    Some(masked(Field::Mark, data.get(4..8)?, data.get(..4)?, *data.get(8)? != 0))
}

/// struct xt_conntrack_mtinfo1 to 3, if it asks for the state alone.
fn conntrack(data: &[u8], revision: u8) -> Option<Vec<Step>> {
    let (matched, inverted) = (half(data, 146)?, half(data, 148)?);
    let mask = if revision == 1 { u16::from(*data.get(150)?) } else { half(data, 150)? };
    // XT_CONNTRACK_STATE_SNAT, _DNAT and _UNTRACKED are 1 << 6 to 8.
    let is_translated = mask & 0xc0 != 0;
    let mask = u32::from(mask & 0x3f | mask >> 2 & 0x40);
    (matched == 1 && !is_translated).then(|| state(mask, inverted & 1 != 0))
}

/// XT_STATE_BIT is NF_CT_STATE_BIT, and XT_STATE_UNTRACKED that of nf_tables, too.
fn state(mask: u32, is_inverted: bool) -> Vec<Step> {
    masked(Field::State, &mask.to_ne_bytes(), &[0; 4], !is_inverted)
}

/// The steps of `-j NAME`.
pub(super) fn target(name: &str, revision: u8, data: &[u8], readers: &Readers) -> Vec<Step> {
    let verdict = |verdict| vec![Step::Verdict(verdict)];
    let translated = |effect| vec![Step::Effect(effect), Step::Verdict(Verdict::Accept)];
    match name {
        "REJECT" => verdict(Verdict::Drop),
        "NFQUEUE" => {
            // struct xt_NFQ_info and its successors: first queue, count, flags (NFQ_FLAG_BYPASS).
            let first = half(data, 0).unwrap_or_default();
            let count = half(data, 2).filter(|_| revision > 0).unwrap_or(1);
            let bypass = revision > 1 && half(data, 4).is_some_and(|flags| flags & 1 != 0);
            verdict(queue(first, count, bypass, readers))
        }
        "REDIRECT" | "DNAT" | "NETMAP" => translated(Effect::Destination),
        "SNAT" | "MASQUERADE" => translated(Effect::Source),
        "MARK" | "CONNMARK" => vec![Step::Effect(Effect::Mark)],
        "NOTRACK" => vec![Step::Effect(Effect::Untrack)],
        // XT_CT_NOTRACK.
        "CT" if half(data, 0).is_some_and(|flags| flags & 1 != 0) => vec![Step::Effect(Effect::Untrack)],
        "CT" | "LOG" | "NFLOG" | "TRACE" | "TCPMSS" | "TOS" | "DSCP" | "CLASSIFY" | "CHECKSUM" | "TTL"
        | "HL" | "SET" | "AUDIT" | "SECMARK" | "CONNSECMARK" | "RATEEST" | "TEE" | "ECN" => Vec::new(),
        _ => vec![Step::Unknown, Step::Verdict(Verdict::Perhaps)],
    }
}
