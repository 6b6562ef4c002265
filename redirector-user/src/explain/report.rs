//! A decision for people and programs.

use std::net::{IpAddr, SocketAddr};

use redirector_common::decision::Decision;
use redirector_common::rule::{Counter, Outcome, Verdict};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use crate::policy::Policy;
use crate::rules::{self, Family, Packet, Protocol, Rules, Table};

pub(super) const PASS: Outcome = Outcome::Decided(Verdict::Pass);

fn name<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(outcome.name())
}

/// What becomes of a connection, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Explanation {
    /// Its verdict, or refused (by routing, before any rule).
    #[serde(serialize_with = "name")]
    #[schemars(with = "String")]
    pub verdict: Outcome,
    /// Port of the proxy that gets it.
    pub port: Option<u16>,
    /// Address and port it is sent to; `null` also where it keeps its destination (from the network).
    pub proxy: Option<SocketAddr>,
    /// The counter of the rule, as in `redirector show`; `null` if no rule was asked.
    pub rule: Option<&'static str>,
    /// The rule in words.
    pub words: String,
    /// Table of the equivalent iptables rule.
    pub table: Option<Table>,
    /// Its chain.
    pub chain: Option<&'static str>,
    /// The rule as iptables-save prints it; of ip6tables if the destination is IPv6.
    pub iptables: Option<String>,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The destination after the kernel's own reading of 0.0.0.0 and `::`.
    pub destination: SocketAddr,
    /// The source address it has; `null` if routing chooses it and is not known.
    pub source: Option<IpAddr>,
    /// User of the socket; `null`: one that no rule names.
    pub uid: Option<u32>,
    /// Group of the socket.
    pub gid: Option<u32>,
    /// The socket was created in the proxy's cgroup.
    pub in_proxy_cgroup: bool,
    /// Whether it stays in the pod; always false inbound.
    pub lo: bool,
    /// What the answer rests on.
    pub notes: Vec<String>,
}

impl Explanation {
    /// Of a decision about a packet.
    pub(super) fn new(policy: &Policy, decision: Decision, packet: &Packet<'_>) -> Self {
        let family = if packet.destination.is_ipv4() { Family::V4 } else { Family::V6 };
        let port = match decision.verdict {
            Verdict::Pass => None,
            Verdict::Outbound => Some(policy.outbound_port),
            Verdict::Inbound => Some(policy.inbound_port),
            Verdict::Dns => Some(policy.dns_port),
        };
        let rules = Rules::of(policy);
        let rule = rules.deciding(decision.rule, family, packet);
        let end = rules::end(decision.rule);
        Self {
            verdict: Outcome::Decided(decision.verdict),
            port,
            rule: Some(decision.rule.name()),
            words: decision.rule.help().into(),
            table: rule.map(|rule| rule.chain).or(end).map(|chain| chain.table),
            chain: rule.map(|rule| rule.chain).or(end).map(|chain| chain.name),
            iptables: rule
                .and_then(|rule| rule.line(family))
                .or_else(|| end.map(|chain| format!("-P {} ACCEPT", chain.name))),
            uid: packet.uid,
            gid: packet.gid,
            in_proxy_cgroup: packet.proxy,
            lo: packet.output == Some("lo"),
            ..Self::unruled(packet.protocol, SocketAddr::new(packet.destination, packet.port), "")
        }
    }

    /// It passes, and no rule was asked.
    pub(super) fn unruled(protocol: Protocol, destination: SocketAddr, words: &str) -> Self {
        Self {
            verdict: PASS,
            port: None,
            proxy: None,
            rule: None,
            words: words.into(),
            table: None,
            chain: None,
            iptables: None,
            protocol: protocol.name(),
            destination,
            source: None,
            uid: None,
            gid: None,
            in_proxy_cgroup: false,
            lo: false,
            notes: Vec::new(),
        }
    }

    /// It passes because it is IPv6.
    pub(super) fn without_ipv6(protocol: Protocol, destination: SocketAddr) -> Self {
        Self::unruled(protocol, destination, "IPv6 is not captured (--ipv6 off)")
    }

    /// Routing, which comes first, does not let it go.
    pub(super) fn refuse(&mut self, error: &std::io::Error) {
        self.verdict = Outcome::Refused;
        self.rule = Some(Counter::RefusedByRoute.name());
        self.words = format!("routing comes before the rules: connect() fails with {error}");
        (self.port, self.proxy) = (None, None);
        (self.table, self.chain, self.iptables) = (None, None, None);
    }

    /// Lines of `name  value`.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let verdict = match (self.proxy, self.port) {
            (Some(proxy), _) => format!("{}: to the proxy at {proxy}", self.verdict.name()),
            (None, Some(port)) => format!("{}: to the proxy's listener on port {port}", self.verdict.name()),
            (None, None) if self.verdict == Outcome::Refused => "refused: it goes nowhere".into(),
            (None, None) => "pass: on its own way".into(),
        };
        let from = self.source.map(|source| format!(" from {source}")).unwrap_or_default();
        let owner = |kind, id: Option<u32>| id.map(|id| format!(", {kind} {id}")).unwrap_or_default();
        let owner = owner("uid", self.uid) + &owner("gid", self.gid);
        let owner = owner + if self.in_proxy_cgroup { ", of the proxy's cgroup" } else { "" };
        let lo = if self.lo { ", stays in the pod (lo)" } else { "" };
        let mut lines = vec![
            ("connection", format!("{}{from} to {}{owner}{lo}", self.protocol, self.destination)),
            ("verdict", verdict),
        ];
        lines.push(match self.rule {
            Some(rule) => ("rule", format!("{rule}: {}", self.words)),
            None => ("rule", self.words.clone()),
        });
        if let (Some(table), Some(chain), Some(text)) = (self.table, self.chain, &self.iptables) {
            lines.push(("chain", format!("{} {chain}", table.name())));
            lines.push((if self.destination.is_ipv4() { "iptables" } else { "ip6tables" }, text.clone()));
        }
        lines
    }
}
