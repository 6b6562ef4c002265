//! Named and anonymous sets of nf_tables, and maps to verdicts, as far as rules select by them.

use std::collections::HashMap;

use super::verdict::Element;
use crate::base::error::Result;
use crate::base::text::nul_terminated as text;
use crate::netlink::nf_tables::{at, big};
use crate::netlink::{Payload, attributes, nf_tables};

/// Family, table and name.
pub(super) type SetName = (u8, String, String);

#[derive(Clone, Copy, Debug)]
struct Shape {
    is_interval: bool,
    key_len: usize,
}

/// The sets of the calling thread's namespace; each is read when a rule asks for it.
#[derive(Default)]
pub(super) struct Sets {
    shapes: Option<HashMap<SetName, Shape>>,
    elements: HashMap<SetName, Vec<Element>>,
}

impl Sets {
    /// Length of a set's keys. None: there is no such set.
    pub(super) fn key_len(&mut self, set: &SetName) -> Result<Option<usize>> {
        Ok(self.shape(set)?.map(|shape| shape.key_len))
    }

    fn shape(&mut self, set: &SetName) -> Result<Option<Shape>> {
        if self.shapes.is_none() {
            let request = nf_tables::request(nf_tables::GETSET, 0);
            let all = nf_tables::list("the sets of nf_tables", &request, shape)?;
            self.shapes = Some(all.into_iter().collect());
        }
        Ok(self.shapes.as_ref().and_then(|shapes| shapes.get(set)).copied())
    }

    /// What is in a set.
    pub(super) fn elements(&mut self, set: &SetName) -> Result<&[Element]> {
        if !self.elements.contains_key(set) {
            let Some(shape) = self.shape(set)? else { return Ok(&[]) };
            let (family, table, name) = set;
            // NFTA_SET_ELEM_LIST_TABLE and _SET.
            let request = nf_tables::request(nf_tables::GETSETELEM, *family)
                .attribute(1, &[table.as_bytes(), b"\0"].concat())
                .attribute(2, &[name.as_bytes(), b"\0"].concat());
            let messages = nf_tables::list("the elements of a set of nf_tables", &request, |payload| {
                Some(listed(payload))
            })?;
            let elements = elements(messages.into_iter().flatten().collect(), shape);
            self.elements.insert(set.clone(), elements);
        }
        Ok(self.elements.get(set).map(Vec::as_slice).unwrap_or_default())
    }
}

fn shape(payload: &[u8]) -> Option<(SetName, Shape)> {
    const TABLE: u16 = 1;
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_LEN: u16 = 5;
    const NFT_SET_INTERVAL: u32 = 4;
    let set = Payload::split(payload, nf_tables::HEADER)?;
    let name = (set.byte(0), text(set.get(TABLE)?), text(set.get(NAME)?));
    let flags = set.get(FLAGS).and_then(big).unwrap_or_default();
    let key_len = usize::try_from(big(set.get(KEY_LEN)?)?).ok()?;
    Some((name, Shape { is_interval: flags & NFT_SET_INTERVAL != 0, key_len }))
}

/// An element as the kernel lists it.
struct Listed {
    /// None: the element that stands for all others.
    key: Option<Vec<u8>>,
    /// Of a range of a concatenation.
    last: Option<Vec<u8>>,
    ends_interval: bool,
    verdict: Option<u32>,
    chain: Option<String>,
}

fn listed(payload: &[u8]) -> Vec<Listed> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    const VALUE: u16 = 1;
    const INTERVAL_END: u32 = 1;
    let elements = Payload::split(payload, nf_tables::HEADER).and_then(|message| message.get(ELEMENTS));
    let bytes = |element, kind| at(element, &[kind, VALUE]).map(<[u8]>::to_vec);
    let one = |element| Listed {
        key: bytes(element, KEY),
        last: bytes(element, KEY_END),
        ends_interval: at(element, &[FLAGS]).and_then(big).is_some_and(|flags| flags & INTERVAL_END != 0),
        // NFTA_DATA_VERDICT, NFTA_VERDICT_CODE and _CHAIN.
        verdict: at(element, &[DATA, 2, 1]).and_then(big),
        chain: at(element, &[DATA, 2, 2]).map(text),
    };
    attributes(elements.unwrap_or_default()).map(|(_, element)| one(element)).collect()
}

/// Puts the two ends of intervals together; keys are compared as the kernel compares them, byte by byte.
fn elements(mut all: Vec<Listed>, shape: Shape) -> Vec<Element> {
    let (first, last) = (vec![0; shape.key_len], vec![0xff; shape.key_len]);
    all.sort_by(|a, b| (&a.key, !a.ends_interval).cmp(&(&b.key, !b.ends_interval)));
    let mut elements: Vec<Element> = Vec::new();
    let mut is_open = false;
    for one in all {
        let Some(key) = one.key else {
            elements.push(Element {
                from: first.clone(),
                to: last.clone(),
                verdict: one.verdict,
                chain: one.chain,
            });
            continue;
        };
        // One that begins where another ends is listed without that end.
        if let Some(open) = elements.last_mut().filter(|_| is_open) {
            open.to = before(key.clone());
        }
        is_open = false;
        if one.ends_interval {
            continue;
        }
        let ends_later = shape.is_interval && one.last.is_none();
        let to = if ends_later { last.clone() } else { one.last.unwrap_or_else(|| key.clone()) };
        elements.push(Element { from: key, to, verdict: one.verdict, chain: one.chain });
        is_open = ends_later;
    }
    elements
}

/// The number before one in big endian.
fn before(mut number: Vec<u8>) -> Vec<u8> {
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            break;
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16, ends_interval: bool) -> Listed {
        Listed { key: Some(port.to_be_bytes().into()), last: None, ends_interval, verdict: None, chain: None }
    }

    #[test]
    fn intervals_have_two_ends() {
        let shape = |is_interval| Shape { is_interval, key_len: 2 };
        let ports = |all: Vec<Listed>, is_interval| -> Vec<(u16, u16)> {
            let port = |bytes: &[u8]| u16::from_be_bytes(bytes.try_into().unwrap());
            let all = elements(all, shape(is_interval));
            all.iter().map(|element| (port(&element.from), port(&element.to))).collect()
        };
        assert_eq!(ports(vec![key(22, false), key(9, false)], false), [(9, 9), (22, 22)]);
        // As rbtree lists them, the last first; the kernel begins with an end at 0.
        let intervals = vec![
            key(60_000, false),
            key(59_999, false),
            key(15_011, true),
            key(15_001, false),
            key(15_001, true),
            key(256, false),
            key(0, true),
        ];
        assert_eq!(
            ports(intervals, true),
            [(256, 15_000), (15_001, 15_010), (59_999, 59_999), (60_000, u16::MAX)]
        );
        let all = Listed { key: None, ..key(0, false) };
        assert_eq!(ports(vec![all], false), [(0, u16::MAX)]);
    }

    #[test]
    fn malformed_messages_are_no_sets() {
        for length in 0..64 {
            for byte in [0, 1, 0xff] {
                let bytes = vec![byte; length];
                assert!(shape(&bytes).is_none());
                assert!(listed(&bytes).iter().all(|element| element.verdict.is_none()));
            }
        }
    }
}
