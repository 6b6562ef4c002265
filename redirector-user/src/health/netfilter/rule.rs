//! As much of a rule as matters here, whichever program made it.

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Reject,
    Queue,
    /// It gives packets another destination, by this name.
    Redirect(String),
    #[default]
    Other,
}

impl Action {
    /// Of a target by its name.
    pub(super) fn of_target(name: &str) -> Self {
        match name {
            "REJECT" => Self::Reject,
            "NFQUEUE" => Self::Queue,
            "REDIRECT" | "DNAT" | "TPROXY" => Self::Redirect(name.to_owned()),
            _ => Self::Other,
        }
    }
}

/// The ports that are in none of these ranges.
pub(super) fn all_but(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let (mut others, mut next) = (Vec::new(), Some(0u16));
    for (from, to) in ranges {
        let Some(first) = next else { break };
        if first < from {
            others.push((first, from - 1));
        }
        next = to.checked_add(1).map(|after| after.max(first));
    }
    others.extend(next.map(|first| (first, u16::MAX)));
    others
}

/// A rule, or the policy of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    /// `iptables filter`, `nftables filter`.
    pub table: String,
    /// Empty where it is not told.
    pub chain: String,
    /// IPPROTO_*; None: all.
    pub protocol: Option<u8>,
    /// Destination ports; None: all.
    pub ports: Option<Vec<(u16, u16)>>,
    /// It takes whatever enters or leaves by lo.
    pub is_everything_on_lo: bool,
    /// It takes what is sent to 127.0.0.1, or `::1`, by their address.
    pub is_to_loopback: bool,
    /// It is about another interface than lo.
    pub is_of_interface: bool,
    /// It is about sockets of this user.
    pub user: Option<u32>,
    /// The same of a group.
    pub group: Option<u32>,
    /// It has conditions beside these.
    pub other: bool,
    pub action: Action,
}

impl Rule {
    /// Whether packets of this protocol to this port are taken, if its other conditions hold.
    pub(super) fn takes(&self, protocol: u8, port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
            && self
                .ports
                .as_ref()
                .is_none_or(|ports| ports.iter().any(|(from, to)| (*from..=*to).contains(&port)))
    }

    /// Whether it takes all of its protocol.
    pub(super) fn is_unconditional(&self) -> bool {
        self.ports.is_none() && !self.is_particular()
    }

    /// Whether it has conditions beside protocol, port, lo and loopback's address.
    pub(super) fn is_particular(&self) -> bool {
        self.other || self.is_of_interface || self.user.is_some() || self.group.is_some()
    }

    /// A condition of a match of x_tables, as `-m NAME` (struct xt_tcp, xt_udp, xt_multiport_v1).
    pub(super) fn condition(&mut self, name: &str, revision: u8, data: &[u8]) {
        let port = |at: usize| data.get(at..at + 2).map(|two| u16::from_ne_bytes([two[0], two[1]]));
        const INVERTED: u8 = 2;
        if name == "tcp" || name == "udp" {
            // Source ports; an option, and flags, of TCP.
            let plain = name == "udp" || data.get(8..10) == Some(&[0, 0]);
            self.other |= (port(0), port(2)) != (Some(0), Some(u16::MAX)) || !plain;
        }
        match name {
            "tcp" | "udp" => match (port(4), port(6), data.get(if name == "tcp" { 11 } else { 8 })) {
                (Some(0), Some(u16::MAX), _) => {}
                (Some(from), Some(to), Some(inverted)) => {
                    let ports = vec![(from, to)];
                    self.ports = Some(if inverted & INVERTED == 0 { ports } else { all_but(ports) });
                }
                _ => self.other = true,
            },
            // Destination ports, or both; not inverted.
            "multiport"
                if revision == 1 && matches!(data.first(), Some(1 | 2)) && data.get(47) == Some(&0) =>
            {
                let count = usize::from(data.get(1).copied().unwrap_or_default()).min(15);
                let mut ports = Vec::new();
                let mut at = 0;
                while at < count {
                    let begins_range = data.get(32 + at).is_some_and(|flag| *flag != 0);
                    let (Some(from), Some(to)) =
                        (port(2 + 2 * at), port(2 + 2 * (at + usize::from(begins_range))))
                    else {
                        break;
                    };
                    ports.push((from, to));
                    at += 1 + usize::from(begins_range);
                }
                self.ports = Some(ports);
            }
            // struct xt_owner_match_info: first and last uid, first and last gid, what is matched, what is inverted.
            "owner" => {
                let id =
                    |at: usize| data.get(at..at + 4)?.first_chunk().map(|four| u32::from_ne_bytes(*four));
                let flags = data.get(16..18);
                let one =
                    |at, bit| id(at).filter(|first| flags == Some(&[bit, 0]) && id(at + 4) == Some(*first));
                (self.user, self.group) = (one(0, 1), one(8, 2));
                self.other |= self.user.is_none() && self.group.is_none();
            }
            "comment" => {}
            _ => self.other = true,
        }
    }

    /// For people.
    pub(super) fn told(&self) -> String {
        let mut text = self.table.clone();
        if !self.chain.is_empty() {
            text = format!("{text} {}", self.chain);
        }
        let protocol = match self.protocol {
            Some(6) => " tcp".to_owned(),
            Some(17) => " udp".to_owned(),
            Some(other) => format!(" protocol {other}"),
            None => String::new(),
        };
        let range =
            |(from, to): &(u16, u16)| if from == to { from.to_string() } else { format!("{from}-{to}") };
        let ports = self
            .ports
            .iter()
            .map(|ports| format!(" to port {}", ports.iter().map(range).collect::<Vec<_>>().join(",")));
        let ports = ports.collect::<String>();
        let lo = match (self.is_everything_on_lo, self.is_to_loopback) {
            (true, _) => " on lo",
            (false, true) => " to loopback",
            (false, false) => "",
        };
        let owner = match (self.user, self.group) {
            (Some(user), _) => format!(" from uid {user}"),
            (None, Some(group)) => format!(" from gid {group}"),
            (None, None) => String::new(),
        };
        let action = match &self.action {
            Action::Accept => "ACCEPT",
            Action::Drop => "DROP",
            Action::Reject => "REJECT",
            Action::Queue => "QUEUE",
            Action::Redirect(name) => name,
            Action::Other => "other",
        };
        format!("{text}:{protocol}{ports}{owner}{lo} {action}")
    }
}
