//! Packets of captured traffic, as far as they are known, and what a rule may ask of them.

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Unknown,
}

impl Truth {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Unknown,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        (self.inverted(true)).and(other.inverted(true)).inverted(true)
    }

    /// The opposite, if that is wanted.
    pub(super) fn inverted(self, is_inverted: bool) -> Self {
        match (self, is_inverted) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            _ => self,
        }
    }
}

/// Bytes of which some bits are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    /// Zero where a bit is not known.
    pub bits: Vec<u8>,
    /// The bits that are known.
    pub known: Vec<u8>,
    /// What it is not.
    pub never: Vec<Vec<u8>>,
}

impl Value {
    pub(super) fn known(bytes: &[u8]) -> Self {
        Self { bits: bytes.to_vec(), known: vec![0xff; bytes.len()], never: Vec::new() }
    }

    pub(super) fn unknown(len: usize) -> Self {
        Self { bits: vec![0; len], known: vec![0; len], never: Vec::new() }
    }

    /// Those bits that are in a mask.
    pub(super) fn partly(bytes: &[u8], mask: &[u8]) -> Self {
        let bits = bytes.iter().zip(mask).map(|(byte, mask)| byte & mask).collect();
        Self { bits, known: mask.to_vec(), never: Vec::new() }
    }

    /// Bytes of it; those after its end are not known.
    fn part(&self, offset: usize, len: usize) -> Self {
        let byte = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or_default();
        let part = |bytes: &[u8]| (offset..offset + len).map(|at| byte(bytes, at)).collect();
        Self { bits: part(&self.bits), known: part(&self.known), never: Vec::new() }
    }

    fn then(mut self, next: &Self) -> Self {
        self.bits.extend(&next.bits);
        self.known.extend(&next.known);
        self
    }

    /// Whether it is this one.
    pub(super) fn is(&self, other: &[u8]) -> Truth {
        let all = || self.bits.iter().zip(&self.known).zip(other);
        if other.len() > self.bits.len()
            || all().any(|((bits, known), other)| (bits ^ other) & known != 0)
            || self.never.iter().any(|never| never == other)
        {
            return Truth::No;
        }
        if all().all(|((_, known), _)| *known == 0xff) { Truth::Yes } else { Truth::Unknown }
    }

    /// Whether it is within these two, in big endian.
    pub(super) fn is_within(&self, from: &[u8], to: &[u8]) -> Truth {
        if from == to {
            return self.is(from);
        }
        let highest: Vec<u8> = self.bits.iter().zip(&self.known).map(|(bits, known)| bits | !known).collect();
        if highest.as_slice() < from || self.bits.as_slice() > to {
            Truth::No
        } else if self.bits.as_slice() >= from && highest.as_slice() <= to {
            Truth::Yes
        } else {
            Truth::Unknown
        }
    }
}

/// Where a packet meets rules (`enum nf_inet_hooks`), and the device's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress,
    PreRouting,
    Input,
    Output,
    PostRouting,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub name: String,
    pub index: u32,
    pub addresses: Vec<Vec<u8>>,
}

impl Device {
    fn is_lo(&self) -> bool {
        self.index == 1
    }

    /// Whether an address is local to lo: 127.0.0.0/8, and what it has. None: nobody knows.
    fn has(&self, address: &Value) -> Option<bool> {
        let is_own = self.addresses.iter().any(|own| address.is(own) == Truth::Yes);
        let is_loopback = address.bits.len() == 4 && address.is(&[127]) == Truth::Yes;
        let is_known = is_own || is_loopback || address.known.iter().all(|known| *known == 0xff);
        is_known.then_some(is_own || is_loopback)
    }
}

pub(super) const NEW: u32 = 1 << 3;
pub(super) const ESTABLISHED: u32 = 1 << 1;
pub(super) const UNTRACKED: u32 = 1 << 6;
pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub v6: bool,
    pub protocol: u8,
    pub source: Value,
    pub destination: Value,
    pub ports: [Value; 2],
    /// Of TCP.
    pub flags: u8,
    /// Bit of conntrack's state (`NF_CT_STATE_BIT`).
    pub state: Option<u32>,
    /// The sender's, in the order of this machine.
    pub user: Value,
    pub group: Value,
    pub mark: Option<u32>,
}

/// What a condition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Network {
        offset: usize,
        len: usize,
    },
    Transport {
        offset: usize,
        len: usize,
    },
    EtherType,
    Mark,
    InIndex,
    OutIndex,
    InName,
    OutName,
    InType,
    User,
    Group,
    Family,
    Protocol,
    State,
    /// The type of the destination on the interface it came by (`fib daddr . iif type`).
    TypeOnInterface,
    Unknown,
}

/// A packet at a hook.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub packet: &'a Packet,
    pub hook: Hook,
    /// Where it comes from, or goes to.
    pub device: &'a Device,
    /// Conntrack has seen it: its hooks come at -200 (NF_IP_PRI_CONNTRACK).
    pub is_tracked: bool,
}

impl View<'_> {
    fn comes_in(&self) -> bool {
        matches!(self.hook, Hook::Ingress | Hook::PreRouting | Hook::Input)
    }

    /// None: there is no such thing, and a rule that asks for it does not match (NFT_BREAK).
    pub(super) fn field(&self, field: Field) -> Option<Value> {
        let packet = self.packet;
        // `nft_meta_store_ifname`, `_ifindex`: of no device it is empty.
        let device = |is_there: bool| is_there.then_some(self.device);
        let name = |device: Option<&Device>| {
            let mut name = device.map(|device| device.name.as_bytes().to_vec()).unwrap_or_default();
            name.resize(16, 0);
            Value::known(&name)
        };
        let index =
            |device: Option<&Device>| Value::known(&device.map_or(0, |device| device.index).to_ne_bytes());
        // `skb->sk` is not told on the way in.
        let sender = |value: &Value| if self.comes_in() { Value::unknown(4) } else { value.clone() };
        Some(match field {
            Field::Network { offset, len } => self.network().part(offset, len),
            Field::Transport { offset, len } => self.transport().part(offset, len),
            Field::EtherType => Value::known(if packet.v6 { &[0x86, 0xdd] } else { &[8, 0] }),
            Field::Mark => packet.mark.map_or(Value::unknown(4), |mark| Value::known(&mark.to_ne_bytes())),
            Field::InIndex => index(device(self.comes_in())),
            Field::OutIndex => index(device(!self.comes_in())),
            Field::InName => name(device(self.comes_in())),
            Field::OutName => name(device(!self.comes_in())),
            // ARPHRD_LOOPBACK.
            Field::InType if !self.comes_in() => return None,
            Field::InType if self.device.is_lo() => Value::known(&772u16.to_ne_bytes()),
            Field::User => sender(&packet.user),
            Field::Group => sender(&packet.group),
            Field::Family => Value::known(&[if packet.v6 { 10 } else { 2 }]),
            Field::Protocol => Value::known(&[packet.protocol]),
            Field::State => match packet.state.filter(|_| self.is_tracked) {
                Some(state) => Value::known(&state.to_ne_bytes()),
                None => Value::unknown(4),
            },
            // `__inet_dev_addr_type`, `__nft_fib6_eval_type`: what another interface has is RTN_UNICAST there, not RTN_LOCAL.
            Field::TypeOnInterface if self.comes_in() && self.device.is_lo() => {
                let kind = |is_local| Value::known(&if is_local { 2u32 } else { 1 }.to_ne_bytes());
                self.device.has(&packet.destination).map_or(Value::unknown(4), kind)
            }
            Field::TypeOnInterface => Value::unknown(4),
            Field::InType | Field::Unknown => Value::unknown(16),
        })
    }

    fn network(&self) -> Value {
        let packet = self.packet;
        let (known, unknown) = (Value::known, Value::unknown);
        let head = if packet.v6 {
            Value::partly(&[0x60], &[0xf0])
                .then(&unknown(5))
                .then(&known(&[packet.protocol]))
                .then(&unknown(1))
        } else {
            // No fragment of another.
            let fragment = Value::partly(&[0, 0], &[0x3f, 0xff]);
            let head = known(&[0x45]).then(&unknown(5)).then(&fragment).then(&unknown(1));
            head.then(&known(&[packet.protocol])).then(&unknown(2))
        };
        head.then(&packet.source).then(&packet.destination)
    }

    fn transport(&self) -> Value {
        let [source, destination] = &self.packet.ports;
        let ports = source.clone().then(destination);
        if self.packet.protocol == libc::IPPROTO_TCP as u8 {
            // Not whether it tells congestion (ECE, CWR), which a SYN may ask for, nor PSH, FIN.
            let mask = if self.packet.flags & SYN == 0 { 0x16 } else { 0x3f };
            ports.then(&Value::unknown(9)).then(&Value::partly(&[self.packet.flags], &[mask]))
        } else {
            ports
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_partly_known() {
        let virtual_one = Value::partly(&[127, 128, 0, 0], &[255, 128, 0, 0]);
        assert_eq!(virtual_one.is(&[127, 0, 0, 1]), Truth::No);
        assert_eq!(virtual_one.is(&[127, 200, 0, 1]), Truth::Unknown);
        assert_eq!(virtual_one.is(&[127]), Truth::Yes);
        assert_eq!(virtual_one.is_within(&[127, 0, 0, 0], &[127, 255, 255, 255]), Truth::Yes);
        assert_eq!(virtual_one.is_within(&[127, 0, 0, 0], &[127, 127, 255, 255]), Truth::No);
        assert_eq!(virtual_one.is_within(&[127, 130, 0, 0], &[128, 0, 0, 0]), Truth::Unknown);
        let app = Value { never: vec![vec![1, 2]], ..Value::unknown(2) };
        assert_eq!([app.is(&[1, 2]), app.is(&[1, 3])], [Truth::No, Truth::Unknown]);
        assert_eq!(Truth::Unknown.or(Truth::Yes), Truth::Yes);
        assert_eq!(Truth::Unknown.or(Truth::No), Truth::Unknown);
    }
}
