//! The arithmetic of prefixes, checked address by address in ranges small enough for it; tests/routes/ has
//! the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::prefix::{Block, merge, representatives, source_splits};
use super::{Outcome, Route};
use crate::netlink::{Message, Payload};

fn block(prefix: &str) -> Block {
    let net: IpNet = prefix.parse().unwrap();
    Block::new(net.addr(), net.prefix_len()).unwrap()
}

fn pair(low: &str, high: &str) -> Option<(IpAddr, IpAddr)> {
    Some((low.parse().unwrap(), high.parse().unwrap()))
}

/// The 256 addresses of a range at one end of a family, where arithmetic could overflow.
#[derive(Clone, Copy, Debug)]
enum Range {
    V4Low,
    V4High,
    V6Low,
    V6High,
}

impl Range {
    fn address(self, low: u8) -> IpAddr {
        match self {
            Self::V4Low => Ipv4Addr::from_bits(low.into()).into(),
            Self::V4High => Ipv4Addr::from_bits(u32::MAX << 8 | u32::from(low)).into(),
            Self::V6Low => Ipv6Addr::from_bits(low.into()).into(),
            Self::V6High => Ipv6Addr::from_bits(u128::MAX << 8 | u128::from(low)).into(),
        }
    }

    fn host(self, low: u8) -> Block {
        self.block(low, 8)
    }

    /// The prefix of the last `8 - len` bits.
    fn block(self, low: u8, len: u8) -> Block {
        let width = if self.address(0).is_ipv4() { 32 } else { 128 };
        Block::new(self.address(low), width - 8 + len).unwrap()
    }
}

fn range() -> impl Strategy<Value = Range> {
    prop_oneof![Just(Range::V4Low), Just(Range::V4High), Just(Range::V6Low), Just(Range::V6High)]
}

/// Sorted, distinct prefixes inside a range; short ones are rare, so that some get fully covered.
fn blocks() -> impl Strategy<Value = (Range, Vec<Block>)> {
    (range(), prop::collection::vec((any::<u8>(), 0u8..=8), 0..60)).prop_map(|(range, raw)| {
        let set: BTreeSet<Block> = raw.into_iter().map(|(low, len)| range.block(low, len)).collect();
        (range, set.into_iter().collect())
    })
}

/// The place of the longest prefix that holds an address.
fn longest(blocks: &[Block], host: &Block) -> Option<usize> {
    blocks.iter().rposition(|block| block.covers(host))
}

fn outcome(number: u8) -> Outcome {
    Outcome::Refused { errno: number.into() }
}

#[test]
fn the_representative_is_the_first_address_no_child_takes() {
    let set =
        ["0.0.0.0/0", "0.0.0.0/32", "10.0.0.0/24", "10.0.0.0/32", "10.0.0.255/32", "255.255.255.255/32"];
    let blocks = set.map(block);
    assert_eq!(
        representatives(&blocks),
        [
            pair("0.0.0.1", "255.255.255.254"),
            pair("0.0.0.0", "0.0.0.0"),
            pair("10.0.0.1", "10.0.0.254"),
            pair("10.0.0.0", "10.0.0.0"),
            pair("10.0.0.255", "10.0.0.255"),
            pair("255.255.255.255", "255.255.255.255"),
        ]
    );
}

#[test]
fn a_covered_prefix_has_no_representative() {
    let blocks = ["::/0", "::/1", "::/2", "4000::/2", "8000::/1"].map(block);
    let found = representatives(&blocks);
    assert_eq!(found[..2], [None, None]);
    assert!(found[2..].iter().all(Option::is_some));
}

#[test]
fn families_do_not_mix() {
    let blocks = ["0.0.0.0/0", "::/0"].map(block);
    assert_eq!(
        representatives(&blocks),
        [pair("0.0.0.0", "255.255.255.255"), pair("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]
    );
    assert_eq!(merge(blocks.map(|block| (block, outcome(1)))).len(), 2);
}

#[test]
fn a_prefix_longer_than_an_address_is_none() {
    assert_eq!(Block::new(Ipv4Addr::LOCALHOST.into(), 33), None);
    assert_eq!(Block::new(Ipv6Addr::LOCALHOST.into(), 129), None);
}

#[test]
fn one_source_address_splits_nothing() {
    assert!(source_splits(&[("fd00::1".parse().unwrap(), 64)]).is_empty());
}

#[test]
fn an_address_of_two_interfaces_counts_with_both_lengths() {
    let address = "fd00::1".parse().unwrap();
    assert_eq!(source_splits(&[(address, 8), (address, 64)]), ["fd00::/9", "fd00::/65"].map(block));
}

#[test]
fn attributes_are_found_and_padded() {
    let message = Message::new(0, 0, &[7; 12]).attribute(5, b"abc").address(1, Ipv4Addr::LOCALHOST.into());
    let payload = Payload::split(message.body(), 12).unwrap();
    assert_eq!(payload.byte(3), 7);
    assert_eq!(payload.get(5), Some(&b"abc"[..]));
    assert_eq!(payload.get_address(1), Some(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(payload.get(2), None);
}

proptest! {
    #[test]
    fn representatives_are_the_ends_of_what_is_left((range, blocks) in blocks()) {
        let found = representatives(&blocks);
        for (i, block) in blocks.iter().enumerate() {
            let own = |low: &u8| {
                let host = range.host(*low);
                block.covers(&host) && longest(&blocks, &host) == Some(i)
            };
            let left: Vec<u8> = (0..=255u8).filter(own).collect();
            let ends = left.first().zip(left.last());
            let expected = ends.map(|(low, high)| (range.address(*low), range.address(*high)));
            prop_assert_eq!(found[i], expected);
        }
    }

    #[test]
    fn merging_changes_no_answer((range, blocks) in blocks(), seed in prop::collection::vec(0u8..3, 60)) {
        let answers: Vec<_> = blocks.iter().copied().zip(seed.iter().map(|n| outcome(*n))).collect();
        let routes = merge(answers.clone());
        let kept: Vec<Block> = routes.iter().map(|route| block(&route.prefix.to_string())).collect();
        for low in 0..=255u8 {
            let before = longest(&blocks, &range.host(low)).map(|i| &answers[i].1);
            let after = longest(&kept, &range.host(low)).map(|i| &routes[i].outcome);
            prop_assert_eq!(before, after);
        }
        for (i, Route { outcome, .. }) in routes.iter().enumerate() {
            let parent = (0..i).rev().find(|j| kept[*j].covers(&kept[i]));
            prop_assert!(parent.is_none_or(|j| routes[j].outcome != *outcome), "{:?}", kept[i]);
        }
    }

    /// Rule 8 as `ipv6_get_saddr_eval` has it: destinations under the same split rank all addresses the same.
    #[test]
    fn splits_separate_what_ranks_sources_differently(
        raw in prop::collection::vec((any::<u8>(), 0u8..=8), 2..5),
    ) {
        let address = |top: u8| Ipv6Addr::from_bits(u128::from(top) << 120 | 1);
        let addresses: Vec<(Ipv6Addr, u8)> = raw.iter().map(|(top, len)| (address(*top), *len)).collect();
        let splits: BTreeSet<Block> = source_splits(&addresses).into_iter().collect();
        let splits: Vec<Block> = splits.into_iter().collect();
        let mut ranks = vec![None; splits.len() + 1];
        for destination in (0..=255u8).map(address) {
            let score = |(source, len): &(Ipv6Addr, u8)| {
                ((source.to_bits() ^ destination.to_bits()).leading_zeros() as u8).min(*len)
            };
            let scores: Vec<u8> = addresses.iter().map(score).collect();
            let rank: Vec<_> =
                scores.iter().flat_map(|one| scores.iter().map(move |other| one.cmp(other))).collect();
            let host = Block::new(destination.into(), 128).unwrap();
            let place = longest(&splits, &host).map_or(0, |i| i + 1);
            let known = ranks[place].get_or_insert_with(|| rank.clone());
            prop_assert_eq!(&*known, &rank, "under {:?}", place.checked_sub(1).map(|i| splits[i]));
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        super::ask::decode(&bytes);
        if let Some(payload) = Payload::split(&bytes, 12) {
            for kind in 0..32 {
                payload.get(kind);
                payload.get_number(kind);
                payload.get_address(kind);
            }
        }
    }
}
