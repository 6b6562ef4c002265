//! Prefixes as intervals: which address speaks for a prefix, and which prefixes say nothing new.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::snapshot::{Outcome, Route};

/// A prefix as an interval of numbers in host byte order. Sorted, a prefix comes right before everything
/// inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    /// Bits of an address: 32 or 128.
    width: u8,
    /// The lowest address.
    first: u128,
    /// Length of the prefix.
    len: u8,
}

impl Block {
    /// The prefix of `len` bits that holds `address`; `None` if an address has not that many bits.
    pub(super) fn new(address: IpAddr, len: u8) -> Option<Self> {
        let (width, number) = match address {
            IpAddr::V4(v4) => (32, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (128, v6.to_bits()),
        };
        (len <= width).then(|| Self { width, first: number & !host_mask(width, len), len })
    }

    /// The highest address.
    fn last(&self) -> u128 {
        self.first | host_mask(self.width, self.len)
    }

    /// Whether `other` is this prefix or inside it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.width == other.width
            && (self.first..=self.last()).contains(&other.first)
            && self.len <= other.len
    }

    fn is_v6(&self) -> bool {
        self.width == 128
    }

    /// One of its addresses as an address.
    pub(super) fn address(&self, number: u128) -> IpAddr {
        if self.is_v6() {
            IpAddr::V6(Ipv6Addr::from_bits(number))
        } else {
            // Numbers of a 32-bit block come from `first` and `last`, which fit.
            IpAddr::V4(Ipv4Addr::from_bits(number as u32))
        }
    }

    fn net(&self) -> IpNet {
        match self.address(self.first) {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, self.len)),
            IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, self.len)),
        }
    }
}

const fn host_mask(width: u8, len: u8) -> u128 {
    match width - len {
        0 => 0,
        host => u128::MAX >> (128 - host),
    }
}

/// Two addresses that belong to a prefix but to no more specific one: the lowest and the highest such address
/// (which may be the same).
pub(super) type Representatives = Option<(IpAddr, IpAddr)>;

/// For each of the sorted, distinct `blocks` its representatives; `None` where the more specific ones leave
/// no address.
///
/// One pass with a stack of the open prefixes: each keeps the lowest address that no child has taken yet.
pub(super) fn representatives(blocks: &[Block]) -> Vec<Representatives> {
    struct Open {
        index: usize,
        /// First address after all children so far; `None` after the last address there is.
        free: Option<u128>,
        gap: Option<(u128, u128)>,
    }
    fn note(open: &mut Open, low: u128, high: u128) {
        open.gap = Some((open.gap.map_or(low, |(first, _)| first), high));
    }
    fn close(blocks: &[Block], stack: &mut Vec<Open>, found: &mut [Representatives]) {
        let Some(mut open) = stack.pop() else { return };
        let block = blocks[open.index];
        if let Some(free) = open.free.filter(|free| *free <= block.last()) {
            note(&mut open, free, block.last());
        }
        found[open.index] = open.gap.map(|(low, high)| (block.address(low), block.address(high)));
        if let Some(parent) = stack.last_mut() {
            parent.free = block.last().checked_add(1);
        }
    }

    let mut found = vec![None; blocks.len()];
    let mut stack: Vec<Open> = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        while stack.last().is_some_and(|open| !blocks[open.index].covers(block)) {
            close(blocks, &mut stack, &mut found);
        }
        if let Some(parent) = stack.last_mut()
            && let Some(free) = parent.free.filter(|free| *free < block.first)
        {
            note(parent, free, block.first - 1);
        }
        stack.push(Open { index, free: Some(block.first), gap: None });
    }
    while !stack.is_empty() {
        close(blocks, &mut stack, &mut found);
    }
    found
}

/// The routes of sorted, distinct prefixes, without those whose nearest kept less specific prefix says the
/// same.
pub(super) fn merge(answers: impl IntoIterator<Item = (Block, Outcome)>) -> Vec<Route> {
    let mut open: Vec<(Block, Outcome)> = Vec::new();
    let mut routes = Vec::new();
    for (block, outcome) in answers {
        while open.last().is_some_and(|(kept, _)| !kept.covers(&block)) {
            open.pop();
        }
        if open.last().is_some_and(|(_, said)| *said == outcome) {
            continue;
        }
        routes.push(Route { prefix: block.net(), outcome: outcome.clone() });
        open.push((block, outcome));
    }
    routes
}

/// The prefixes at which the choice between several source addresses can change.
///
/// RFC 6724 rule 8 prefers the address that shares most leading bits with the destination, and
/// `ipv6_get_saddr_eval` counts no more than the address's own prefix length. Two addresses that differ after
/// `c` bits and have prefixes of `p` and `q` bits compare differently only for destinations that share more
/// than `c`, `p` or `q` bits with one of them.
pub(super) fn source_splits(addresses: &[(Ipv6Addr, u8)]) -> Vec<Block> {
    if addresses.len() < 2 {
        return Vec::new();
    }
    let mut bits: Vec<u128> = addresses.iter().map(|(address, _)| address.to_bits()).collect();
    bits.sort_unstable();
    bits.dedup();
    let mut lengths: Vec<u8> = addresses.iter().map(|(_, len)| *len).collect();
    lengths.extend(bits.windows(2).map(|pair| (pair[0] ^ pair[1]).leading_zeros() as u8));
    lengths.sort_unstable();
    lengths.dedup();
    bits.iter()
        .flat_map(|bits| lengths.iter().map(|len| (*bits, len + 1)))
        .filter_map(|(bits, len)| Block::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), len))
        .collect()
}
