//! One rule: its matches and its target.

use ipnet::IpNet;

/// A match for a value, or for any other value (`!`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Is<T> {
    /// Whether `!` inverts the match.
    pub not: bool,
    /// The value.
    pub value: T,
}

impl<T> Is<T> {
    /// Exactly this.
    pub fn exactly(value: T) -> Self {
        Self { not: false, value }
    }

    /// Anything else.
    pub fn not(value: T) -> Self {
        Self { not: true, value }
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Its name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The target of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// RETURN.
    #[default]
    Return,
    /// ACCEPT.
    Accept,
    /// DROP.
    Drop,
    /// A jump to a chain.
    Jump(String),
    /// REDIRECT to this port.
    Redirect(u16),
    /// TPROXY.
    Tproxy {
        /// `--on-port`.
        port: u16,
        /// `--tproxy-mark`.
        mark: u32,
    },
    /// MARK: sets the packet's mark.
    Mark(u32),
    /// CONNMARK save: the connection gets the packet's mark.
    SaveMark,
    /// CONNMARK restore: the packet gets the connection's mark.
    RestoreMark,
    /// CT: tracks the connection in this zone.
    Zone(u16),
}

/// A rule without its chain. The default matches every packet and returns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// `-s`.
    pub source: Option<Is<IpNet>>,
    /// `-d`.
    pub destination: Option<Is<IpNet>>,
    /// `-i`.
    pub input: Option<Is<String>>,
    /// `-o`.
    pub output: Option<Is<String>>,
    /// `-p`.
    pub protocol: Option<Protocol>,
    /// `--sport`.
    pub source_port: Option<u16>,
    /// `--dport`, or `--dports` if there are several.
    pub ports: Option<Is<Vec<u16>>>,
    /// `-m cgroup --path`.
    pub cgroup: Option<Is<String>>,
    /// `--uid-owner`.
    pub uid: Option<Is<u32>>,
    /// `--gid-owner`, all of which must hold.
    pub gids: Vec<Is<u32>>,
    /// `-m mark --mark`.
    pub mark: Option<Is<u32>>,
    /// `-m connmark --mark`.
    pub connection_mark: Option<Is<u32>>,
    /// `--ctstate`, sorted.
    pub states: Vec<String>,
    /// `-j`.
    pub target: Target,
}

impl Spec {
    /// A rule that matches every packet.
    pub fn to(target: Target) -> Self {
        Self { target, ..Self::default() }
    }

    /// A rule that sends every packet to a chain.
    pub fn jump(chain: &str) -> Self {
        Self::to(Target::Jump(chain.into()))
    }

    /// With `-p tcp`.
    pub fn tcp(self) -> Self {
        Self { protocol: Some(Protocol::Tcp), ..self }
    }

    /// With `-p tcp --dport PORT`.
    pub fn port(self, port: u16) -> Self {
        Self { ports: Some(Is::exactly(vec![port])), ..self.tcp() }
    }

    /// With `-p tcp` and none of these ports.
    pub fn no_port(self, ports: &[u16]) -> Self {
        Self { ports: Some(Is::not(ports.to_vec())), ..self.tcp() }
    }

    /// With `-d NET`; without it if the network holds every address.
    pub fn destined(self, net: IpNet) -> Self {
        Self { destination: Some(Is::exactly(net)), ..self }.tidied()
    }

    /// With `! -d NET`.
    pub fn not_destined(self, net: IpNet) -> Self {
        Self { destination: Some(Is::not(net)), ..self }
    }

    /// With `-o lo`.
    pub fn on_lo(self) -> Self {
        Self { output: Some(Is::exactly("lo".into())), ..self }
    }

    /// With an owner that is (or is not) this user.
    pub fn uid(self, uid: Is<u32>) -> Self {
        Self { uid: Some(uid), ..self }
    }

    /// With an owner that is (or is not) of this group.
    pub fn gid(mut self, gid: Is<u32>) -> Self {
        self.gids.push(gid);
        self
    }

    /// As iptables shows it: networks are masked, and a network that holds every address is left out.
    pub fn tidied(mut self) -> Self {
        for net in [&mut self.source, &mut self.destination] {
            if let Some(is) = net {
                is.value = is.value.trunc();
            }
            if net.as_ref().is_some_and(|is| !is.not && is.value.prefix_len() == 0) {
                *net = None;
            }
        }
        self
    }
}
