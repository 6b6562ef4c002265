//! The rules of istio-iptables as data, and a walker that knows nothing of policies.

use redirector_common::decision::Decision;
use redirector_common::rule::{Counter, Verdict};

use crate::setup::{Choice, Dns, MARK, Net, Packet, Setup};

/// What a rule asks of a packet. Owners: a socket without a file (`None`) matches no owner, and every "not".
#[derive(Clone, Debug)]
pub enum Match {
    In(u32),
    Out(u32),
    OnLo,
    Tcp,
    Udp,
    Dport(u16),
    NotDports(Vec<u16>),
    Source(Net),
    Dest(Net),
    NotDest(Net),
    ProxyCgroup,
    NotProxyCgroup,
    Uid(u32),
    NotUid(u32),
    Gid(u32),
    NotGid(u32),
    Mark(u32),
}

impl Match {
    fn holds(&self, p: &Packet) -> bool {
        match self {
            Self::In(index) | Self::Out(index) => p.interface == *index,
            Self::OnLo => p.lo,
            Self::Tcp => p.tcp,
            Self::Udp => !p.tcp,
            Self::Dport(port) => p.dport == *port,
            Self::NotDports(ports) => !ports.contains(&p.dport),
            Self::Source(net) => net.contains(p.src),
            Self::Dest(net) => net.contains(p.dst),
            Self::NotDest(net) => !net.contains(p.dst),
            Self::ProxyCgroup => p.proxy,
            Self::NotProxyCgroup => !p.proxy,
            Self::Uid(id) => p.uid == Some(*id),
            Self::NotUid(id) => p.uid != Some(*id),
            Self::Gid(id) => p.gid == Some(*id),
            Self::NotGid(id) => p.gid != Some(*id),
            Self::Mark(mark) => p.mark == *mark,
        }
    }
}

/// A rule; the verdict `Pass` is RETURN or ACCEPT.
#[derive(Clone, Debug)]
pub struct Rule(pub Vec<Match>, pub Verdict, pub Counter);

/// The rules of one family.
pub struct Rules {
    tproxy: bool,
    nat_output: Vec<Rule>,
    mangle_output: Vec<Rule>,
    prerouting: Vec<Rule>,
    inbound_ports: Vec<Rule>,
}

impl Rules {
    pub fn new(s: &Setup, v4: bool) -> Self {
        Self {
            tproxy: s.tproxy,
            nat_output: nat_output(s, v4),
            mangle_output: mangle_output(s, v4),
            prerouting: prerouting(s, v4),
            inbound_ports: inbound_ports(s),
        }
    }

    /// What becomes of an outgoing packet.
    pub fn outgoing(&self, packet: &Packet) -> Decision {
        let decision = walk(&self.nat_output, packet, Counter::OutDefault);
        let passes = self.tproxy && decision.verdict == Verdict::Pass;
        if passes && walk(&self.mangle_output, packet, NOT_MARKED).rule == MARKED {
            // It comes back over lo with the mark that mangle PREROUTING lets go on to the rules for ports.
            let ports = walk(&self.inbound_ports, packet, Counter::InDefault);
            if ports.verdict == Verdict::Inbound {
                return Decision { verdict: Verdict::Inbound, rule: Counter::OutTproxyLoopback };
            }
        }
        decision
    }

    /// What becomes of an incoming packet, TCP and from the network.
    pub fn incoming(&self, packet: &Packet) -> Decision {
        walk(&self.prerouting, packet, Counter::InDefault)
    }
}

/// First match wins; `default` is the end of the chain.
fn walk(rules: &[Rule], packet: &Packet, default: Counter) -> Decision {
    for Rule(matches, verdict, rule) in rules {
        if matches.iter().all(|m| m.holds(packet)) {
            return Decision { verdict: *verdict, rule: *rule };
        }
    }
    Decision { verdict: Verdict::Pass, rule: default }
}

/// Matches of the DNS servers of a family whose queries are captured.
fn dns_servers(s: &Setup, v4: bool) -> Vec<Vec<Match>> {
    match &s.dns {
        Dns::Off => Vec::new(),
        Dns::All => vec![vec![]],
        Dns::Servers(servers) => {
            servers.iter().filter(|net| net.is_v4() == v4).map(|net| vec![Match::Dest(*net)]).collect()
        }
    }
}

/// nat OUTPUT and ISTIO_OUTPUT: reference.md c.2.
fn nat_output(s: &Setup, v4: bool) -> Vec<Rule> {
    use Match::*;
    use Verdict::{Inbound, Outbound, Pass};
    let loopback = if v4 { s.loopback } else { Net::host("::1") };
    let passthrough = if v4 { Net::host("127.0.0.6") } else { Net::host("::6") };
    let of_family = |nets: &[Net]| nets.iter().filter(|net| net.is_v4() == v4).copied().collect::<Vec<_>>();
    let d = s.dns != Dns::Off;
    let mut rules = Vec::new();
    let mut rule = |matches: Vec<Match>, verdict, counter| rules.push(Rule(matches, verdict, counter));

    for index in &s.exclude_interfaces {
        rule(vec![Out(*index)], Pass, Counter::OutExcludedInterface);
    }
    for port in &s.exclude_out_ports {
        rule(vec![Tcp, Dport(*port)], Pass, Counter::OutExcludedPort);
        rule(vec![Udp, Dport(*port)], Pass, Counter::OutExcludedPort);
    }
    rule(vec![OnLo, Source(passthrough)], Pass, Counter::OutPassthroughSource);
    let spared = if d { vec![53, s.tunnel_port] } else { vec![s.tunnel_port] };
    let mut owner = |is: Match, is_not, spared: &[u16], [own_call, others, own]: [Counter; 3]| {
        let call = vec![OnLo, NotDest(loopback), Tcp, NotDports(spared.to_vec()), is.clone()];
        rule(call, Inbound, own_call);
        if !s.includes_loopback() {
            let lo = if d { vec![OnLo, Tcp, NotDports(vec![53])] } else { vec![OnLo] };
            rule([lo, vec![is_not]].concat(), Pass, others);
        }
        rule(vec![is], Pass, own);
    };
    use Counter::*;
    if s.proxy_cgroup {
        let counters = [OutProxyCgroupLoopback, OutNotProxyCgroupLoopback, OutProxyCgroup];
        owner(ProxyCgroup, NotProxyCgroup, &spared, counters);
    }
    for uid in &s.uids {
        let counters = [OutProxyUidLoopback, OutNotProxyUidLoopback, OutProxyUid];
        owner(Uid(*uid), NotUid(*uid), &spared, counters);
    }
    for gid in &s.gids {
        let counters = [OutProxyGidLoopback, OutNotProxyGidLoopback, OutProxyGid];
        owner(Gid(*gid), NotGid(*gid), &[s.tunnel_port], counters);
    }
    match &s.owner_groups {
        Choice::All => {
            s.owner_groups_exclude.iter().for_each(|gid| rule(vec![Gid(*gid)], Pass, OutOwnerGroupExcluded))
        }
        Choice::Only(groups) => {
            let none_of_them = groups.iter().map(|gid| NotGid(*gid)).collect();
            rule(none_of_them, Pass, OutOwnerGroupNotIncluded);
        }
    }
    let servers = dns_servers(s, v4);
    for protocol in [Tcp, Udp] {
        for server in &servers {
            let query = vec![protocol.clone(), Dport(53)];
            rule([query, server.clone()].concat(), Verdict::Dns, Counter::OutDns);
        }
    }
    rule(vec![Dest(loopback)], Pass, Counter::OutLoopback);
    for net in of_family(&s.exclude_cidrs) {
        rule(vec![Dest(net)], Pass, Counter::OutExcludedCidr);
    }
    for port in &s.include_out_ports {
        rule(vec![Tcp, Dport(*port)], Outbound, Counter::OutIncludedPort);
    }
    // ISTIO_REDIRECT itself takes only TCP; anything else comes back and falls through.
    match &s.include_cidrs {
        Choice::All => rule(vec![Tcp], Outbound, Counter::OutAll),
        Choice::Only(nets) => {
            of_family(nets).into_iter().for_each(|net| rule(vec![Dest(net), Tcp], Outbound, OutIncludedCidr));
        }
    }
    rules
}

/// nat PREROUTING and ISTIO_INBOUND, or in TPROXY mode mangle's: reference.md c.3 and c.4. Packets are TCP and from the
/// network.
fn prerouting(s: &Setup, v4: bool) -> Vec<Rule> {
    use Match::*;
    use Verdict::{Outbound, Pass};
    let mut rules = Vec::new();
    let mut rule = |matches: Vec<Match>, verdict, counter| rules.push(Rule(matches, verdict, counter));

    for index in &s.virtual_interfaces {
        match &s.include_cidrs {
            Choice::All => rule(vec![In(*index)], Outbound, Counter::InVirtualCaptured),
            Choice::Only(nets) => {
                for net in nets.iter().filter(|net| net.is_v4() == v4) {
                    rule(vec![In(*index), Dest(*net)], Outbound, Counter::InVirtualCaptured);
                }
            }
        }
    }
    for index in &s.virtual_interfaces {
        rule(vec![In(*index)], Pass, Counter::InVirtualPassed);
    }
    for index in &s.exclude_interfaces {
        rule(vec![In(*index)], Pass, Counter::InExcludedInterface);
    }
    // Without ports nothing jumps to ISTIO_INBOUND; with TPROXY it is mangle's, which has no rule for the tunnel.
    let jumps = s.in_ports != Choice::Only(Vec::new());
    if jumps && !s.tproxy {
        rule(vec![Dport(s.tunnel_port)], Pass, Counter::InTunnel);
    }
    rules.extend(inbound_ports(s));
    rules
}

/// The rules of ISTIO_INBOUND for ports, in nat or in mangle.
fn inbound_ports(s: &Setup) -> Vec<Rule> {
    use Match::Dport;
    use Verdict::{Inbound, Pass};
    match &s.in_ports {
        Choice::All => {
            let excluded = s.exclude_in_ports.iter();
            let mut rules: Vec<Rule> =
                excluded.map(|port| Rule(vec![Dport(*port)], Pass, Counter::InExcludedPort)).collect();
            rules.push(Rule(Vec::new(), Inbound, Counter::InAll));
            rules
        }
        Choice::Only(ports) => {
            ports.iter().map(|port| Rule(vec![Dport(*port)], Inbound, Counter::InListed)).collect()
        }
    }
}

/// Names for the two ends of mangle OUTPUT, which decides nothing itself.
const MARKED: Counter = Counter::OutTproxyLoopback;
const NOT_MARKED: Counter = Counter::OutDefault;

/// mangle OUTPUT: reference.md c.4. The first rules let go what has 1337 and what has been excluded; `-s 127.0.0.6` is
/// of PREROUTING, where it does the same.
fn mangle_output(s: &Setup, v4: bool) -> Vec<Rule> {
    use Match::{Gid, Mark, NotDest, OnLo, Out, ProxyCgroup, Source, Tcp, Uid};
    let (loopback, passthrough) = if v4 { (s.loopback, "127.0.0.6") } else { (Net::host("::1"), "::6") };
    let let_go = |matches| Rule(matches, Verdict::Pass, NOT_MARKED);
    let mut rules: Vec<Rule> = s.exclude_interfaces.iter().map(|index| let_go(vec![Out(*index)])).collect();
    rules.push(let_go(vec![Tcp, OnLo, Mark(MARK)]));
    rules.push(let_go(vec![Tcp, OnLo, Source(Net::host(passthrough))]));
    let cgroup = s.proxy_cgroup.then_some(ProxyCgroup).into_iter();
    let owners = s.uids.iter().map(|uid| Uid(*uid)).chain(s.gids.iter().map(|gid| Gid(*gid)));
    for owner in cgroup.chain(owners) {
        rules.push(Rule(vec![NotDest(loopback), Tcp, OnLo, owner], Verdict::Pass, MARKED));
    }
    rules
}
