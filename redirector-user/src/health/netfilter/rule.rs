//! As much of a rule as matters here, whichever program made it.

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Drop,
    Reject,
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
    /// It is about sockets of all users but this one.
    pub not_user: Option<u32>,
    /// It is about sockets of this group.
    pub group: Option<u32>,
    /// By the state of connections (conntrack) it never takes the first packet of one.
    pub established: bool,
    /// It stands in the chain of INPUT itself, or is its policy.
    pub is_input: bool,
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

    /// A rule of the chain of a hook (NF_INET_*), which packets over lo meet, too.
    pub(super) fn of_base_chain(self, hook: Option<u32>) -> Self {
        const LOCAL_IN: u32 = 1;
        const FORWARD: u32 = 2;
        let stops = matches!(self.action, Action::Drop | Action::Reject);
        let takes_all = hook.is_some_and(|hook| hook != FORWARD)
            && stops
            && self.is_unconditional()
            && !self.is_to_loopback;
        Self {
            is_everything_on_lo: self.is_everything_on_lo || takes_all,
            is_input: hook == Some(LOCAL_IN),
            ..self
        }
    }

    /// Whether it is the policy of a chain.
    pub(super) fn is_policy(&self) -> bool {
        self.chain.ends_with("(policy)")
    }

    /// Whether it is about what stays in the pod.
    pub(super) fn is_of_lo(&self) -> bool {
        self.is_everything_on_lo || self.is_to_loopback
    }

    /// Whether it takes all of its protocol.
    pub(super) fn is_unconditional(&self) -> bool {
        self.ports.is_none() && !self.is_particular()
    }

    /// Whether it has conditions beside protocol, port, lo and loopback's address.
    pub(super) fn is_particular(&self) -> bool {
        self.other || self.established || self.is_of_interface || self.user.is_some() || self.group.is_some()
    }

    /// Whether it names ports by leaving some out: rules before it may let through what it takes.
    pub(super) fn is_broad(&self) -> bool {
        let count = |(from, to): &(u16, u16)| u32::from(to.saturating_sub(*from)) + 1;
        self.ports
            .as_ref()
            .is_some_and(|ports| ports.iter().map(count).sum::<u32>() > u32::from(u16::MAX) / 2)
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
                let but =
                    |at, bit| id(at).filter(|first| flags == Some(&[bit, bit]) && id(at + 4) == Some(*first));
                (self.user, self.not_user, self.group) = (one(0, 1), but(0, 1), one(8, 2));
                self.other |= self.user.or(self.not_user).or(self.group).is_none();
            }
            // struct xt_state_info; struct xt_conntrack_mtinfo2 and 3, if they ask for the state alone.
            "state" => match data.first_chunk().map(|four| u32::from_ne_bytes(*four)) {
                Some(mask) => self.states(mask, false),
                None => self.other = true,
            },
            "conntrack" if matches!(revision, 2 | 3) && port(146) == Some(1) => {
                self.states(port(150).unwrap_or_default().into(), port(148) == Some(1));
            }
            "comment" => {}
            _ => self.other = true,
        }
    }

    /// A condition by the states of connections (NF_CT_STATE_BIT), or by all but those.
    pub(super) fn states(&mut self, mask: u32, inverted: bool) {
        const NEW: u32 = 8;
        self.established |= (mask & NEW == 0) != inverted;
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
        let owner = match (self.user, self.not_user, self.group) {
            (Some(user), ..) => format!(" from uid {user}"),
            (None, Some(user), _) => format!(" from all but uid {user}"),
            (None, None, Some(group)) => format!(" from gid {group}"),
            (None, None, None) => String::new(),
        };
        let action = match &self.action {
            Action::Accept => "ACCEPT",
            Action::Drop => "DROP",
            Action::Reject => "REJECT",
            Action::Redirect(name) => name,
            Action::Other => "other",
        };
        format!("{text}:{protocol}{ports}{owner}{lo} {action}")
    }
}
