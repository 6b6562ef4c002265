//! Lets packets meet the base chains in the kernel's order: what a rule may do counts as much as it is known.

use std::collections::HashMap;

use super::packet::{Device, ESTABLISHED, Hook, Packet, Truth, UNTRACKED, Value, View};
use super::program::{Effect, Step, run};
use super::rule::{Action, Rule};
use super::verdict::Verdict;

/// A rule: what it does, and what to call it. One that selects by a set has several names.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub steps: Vec<Step>,
    pub told: Vec<Rule>,
}

/// The chains of a table.
pub(super) type Chains = HashMap<String, Vec<Entry>>;

/// A chain that packets meet at a hook.
#[derive(Debug)]
pub(super) struct Base {
    /// NFPROTO_*.
    pub family: u8,
    pub hook: Hook,
    pub priority: i32,
    /// Those of a device.
    pub devices: Vec<String>,
    /// It sees only the first packet of a connection.
    pub is_nat: bool,
    /// Which of the tables, and which of its chains.
    pub table: usize,
    pub chain: String,
    /// What happens to packets that no rule takes.
    pub policy: Rule,
}

/// Everything netfilter has in a namespace.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub tables: Vec<Chains>,
    pub bases: Vec<Base>,
}

/// What becomes of a packet.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// What stops it for certain.
    pub stopped: Option<Rule>,
    /// What may stop it.
    pub doubtful: Vec<Rule>,
    /// Its addresses may be translated: what is said of other packets of its connection does not hold.
    pub is_translated: bool,
}

/// More rules than this are not followed: chains that jump to each other could be walked without end.
const MOST: usize = 200_000;
/// NFT_JUMP_STACK_SIZE.
const DEEPEST: usize = 16;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;
/// NF_IP_PRI_CONNTRACK.
const CONNTRACK: i32 = -200;

impl Ruleset {
    /// All rules, whether a packet meets them or not.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.tables.iter().flat_map(HashMap::values).flatten().flat_map(|entry| &entry.told)
    }

    /// Lets a packet pass these hooks.
    pub(super) fn follow(&self, packet: &Packet, path: &[(Hook, &Device)]) -> Fate {
        let (mut packet, mut fate) = (packet.clone(), Fate::default());
        let family = if packet.v6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        for (hook, device) in path {
            let is_of = |base: &&Base| {
                base.hook == *hook
                    && [family, NFPROTO_INET, NFPROTO_NETDEV].contains(&base.family)
                    && (*hook != Hook::Ingress || base.devices.contains(&device.name))
                    && !(base.is_nat && packet.state == Some(ESTABLISHED))
            };
            let mut bases: Vec<&Base> = self.bases.iter().filter(is_of).collect();
            bases.sort_by_key(|base| base.priority);
            for base in bases {
                // What came over lo has been seen on its way out.
                let is_late = *hook != Hook::Output && path[0].0 == Hook::Output;
                let is_tracked = *hook != Hook::Ingress && (is_late || base.priority > CONNTRACK);
                let chains = self.tables.get(base.table);
                let Some(chains) = chains else { continue };
                let mut walk = Walk {
                    chains,
                    packet: &mut packet,
                    hook: *hook,
                    device,
                    is_tracked,
                    passes: false,
                    is_translated: false,
                    drops: Vec::new(),
                    left: MOST,
                };
                if walk.chain(&base.chain, 0) {
                    match base.policy.action {
                        Action::Accept => walk.passes = true,
                        _ => walk.drops.push(base.policy.clone()),
                    }
                }
                fate.is_translated |= walk.is_translated;
                let Walk { passes, mut drops, .. } = walk;
                if !passes {
                    fate.stopped = drops.pop();
                    return fate;
                }
                fate.doubtful.extend(drops);
            }
        }
        fate
    }
}

struct Walk<'a> {
    chains: &'a Chains,
    packet: &'a mut Packet,
    hook: Hook,
    device: &'a Device,
    is_tracked: bool,
    /// It may get through.
    passes: bool,
    is_translated: bool,
    /// What stops it, the last one for certain if it cannot pass.
    drops: Vec<Rule>,
    left: usize,
}

impl<'a> Walk<'a> {
    /// Whether the packet may come back from a chain.
    fn chain(&mut self, name: &str, depth: usize) -> bool {
        let Some(entries) = self.chains.get(name).filter(|_| depth <= DEEPEST) else {
            // A chain without rules is not listed by them.
            self.passes |= depth > DEEPEST;
            return true;
        };
        let mut comes_back = false;
        for entry in entries {
            let Some(left) = self.left.checked_sub(1) else {
                self.passes = true;
                return true;
            };
            self.left = left;
            match self.entry(entry, depth) {
                After::Next => {}
                After::MayReturn => comes_back = true,
                After::Return => return true,
                After::Ended => return comes_back,
            }
        }
        true
    }

    fn entry(&mut self, entry: &'a Entry, depth: usize) -> After {
        let (packet, hook, device) = (&*self.packet, self.hook, self.device);
        let result = run(&entry.steps, View { packet, hook, device, is_tracked: self.is_tracked });
        result.effects.iter().for_each(|(effect, truth)| self.apply(*effect, *truth));
        let mut after = After::Next;
        let count = result.verdicts.len();
        for (at, verdict) in result.verdicts.into_iter().enumerate() {
            let is_certain = result.is_certain && at + 1 == count;
            let comes_back = match verdict {
                Verdict::Continue => continue,
                Verdict::Accept | Verdict::Perhaps => {
                    self.passes = true;
                    false
                }
                Verdict::Drop => {
                    self.drops.extend(self.name(entry));
                    false
                }
                Verdict::Jump(chain) => {
                    if self.chain(&chain, depth + 1) {
                        continue;
                    }
                    false
                }
                Verdict::Goto(chain) => self.chain(&chain, depth + 1),
                Verdict::Return => true,
            };
            after = match (is_certain, comes_back) {
                (true, true) => return After::Return,
                (true, false) if after == After::MayReturn => return After::Return,
                (true, false) => return After::Ended,
                (false, true) => After::MayReturn,
                (false, false) => after,
            };
        }
        after
    }

    /// What to call a rule that stops a packet.
    fn name(&self, entry: &Entry) -> Option<Rule> {
        let [_, port] = &self.packet.ports;
        let port = port.bits.first_chunk().map_or(0, |two| u16::from_be_bytes(*two));
        let stops = |rule: &&Rule| matches!(rule.action, Action::Drop | Action::Reject | Action::Queue);
        let stopping = || entry.told.iter().filter(stops);
        let takes = |rule: &&Rule| rule.takes(self.packet.protocol, port);
        stopping().find(takes).or_else(|| stopping().next()).or(entry.told.first()).cloned()
    }

    fn apply(&mut self, effect: Effect, truth: Truth) {
        let packet = &mut *self.packet;
        let forget = |value: &mut Value| *value = Value::unknown(value.bits.len());
        match effect {
            Effect::Untrack => packet.state = (truth == Truth::Yes).then_some(UNTRACKED),
            Effect::Mark => packet.mark = None,
            Effect::Source | Effect::Destination => {
                self.is_translated = true;
                [&mut packet.source, &mut packet.destination].into_iter().for_each(forget);
                packet.ports.iter_mut().for_each(forget);
            }
        }
    }
}

/// Where a packet goes on after a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Next,
    MayReturn,
    Return,
    Ended,
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Field, NEW, SYN};
    use super::super::program::Operation;
    use super::*;

    fn syn() -> Packet {
        Packet {
            v6: false,
            protocol: 6,
            source: Value::known(&[10, 0, 0, 2]),
            destination: Value::partly(&[127, 128, 0, 0], &[255, 128, 0, 0]),
            ports: [Value::unknown(2), Value::known(&15001u16.to_be_bytes())],
            flags: SYN,
            state: Some(NEW),
            user: Value { never: vec![1337u32.to_ne_bytes().to_vec()], ..Value::unknown(4) },
            group: Value::unknown(4),
            mark: Some(0),
        }
    }

    fn is(field: Field, value: &[u8]) -> Vec<Step> {
        let compare = Step::Compare { register: 0, operation: Operation::Equal, value: value.to_vec() };
        vec![Step::Load { to: 0, field }, compare]
    }

    type Rules<'a> = &'a [(Vec<Step>, Verdict)];

    fn stopped(chains: &[(&str, Rules<'_>)], drops: bool) -> bool {
        let entry = |(steps, verdict): &(Vec<Step>, Verdict)| Entry {
            steps: steps.iter().cloned().chain([Step::Verdict(verdict.clone())]).collect(),
            told: vec![Rule { action: Action::Drop, ..Rule::default() }],
        };
        let chain =
            |(name, rules): &(&str, Rules<'_>)| ((*name).to_owned(), rules.iter().map(entry).collect());
        let action = if drops { Action::Drop } else { Action::Accept };
        let base = Base {
            family: 1,
            hook: Hook::Input,
            priority: 0,
            devices: Vec::new(),
            is_nat: false,
            table: 0,
            chain: "base".into(),
            policy: Rule { action, ..Rule::default() },
        };
        let ruleset = Ruleset { tables: vec![chains.iter().map(chain).collect()], bases: vec![base] };
        let lo = Device { name: "lo".into(), index: 1, addresses: Vec::new() };
        ruleset.follow(&syn(), &[(Hook::Output, &lo), (Hook::Input, &lo)]).stopped.is_some()
    }

    #[test]
    fn what_is_not_known_stops_nothing() {
        let unknown = || vec![Step::Unknown];
        assert!(stopped(&[], true) && !stopped(&[], false));
        assert!(stopped(&[("base", &[(vec![], Verdict::Drop)])], false));
        assert!(!stopped(&[("base", &[(unknown(), Verdict::Drop)])], false));
        assert!(!stopped(&[("base", &[(unknown(), Verdict::Accept), (vec![], Verdict::Drop)])], false));
        assert!(stopped(
            &[("base", &[(vec![Step::Never], Verdict::Accept), (vec![], Verdict::Drop)])],
            false
        ));
        assert!(stopped(&[("base", &[(unknown(), Verdict::Drop), (vec![], Verdict::Drop)])], false));
        assert!(!stopped(&[("base", &[(vec![], Verdict::Perhaps)])], true));
    }

    #[test]
    fn conditions_of_what_is_known() {
        let transport = |offset, len| Field::Transport { offset, len };
        let drops = |field, value: &[u8]| stopped(&[("base", &[(is(field, value), Verdict::Drop)])], false);
        assert!(drops(transport(2, 2), &15001u16.to_be_bytes()));
        assert!(!drops(transport(2, 2), &15006u16.to_be_bytes()));
        assert!(!drops(transport(13, 1), &[2]), "it may ask for ECN");
        assert!(drops(Field::Network { offset: 12, len: 4 }, &[10, 0, 0, 2]));
        assert!(drops(Field::Network { offset: 16, len: 1 }, &[127]));
        assert!(drops(Field::InName, b"lo\0"));
        assert!(!drops(Field::OutName, b"lo\0"), "nothing leaves at INPUT");
        assert!(!drops(Field::User, &1000u32.to_ne_bytes()));
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        let jump = || Verdict::Jump("sub".into());
        let goto = || Verdict::Goto("sub".into());
        let accept: &[_] = &[(vec![], Verdict::Accept)];
        let back: &[_] = &[(vec![], Verdict::Return), (vec![], Verdict::Accept)];
        let unsure: &[_] = &[(vec![Step::Unknown], Verdict::Return), (vec![], Verdict::Drop)];
        let base = |verdict| vec![(vec![], verdict), (vec![], Verdict::Accept)];
        assert!(!stopped(&[("base", &base(jump())), ("sub", back)], true));
        assert!(stopped(&[("base", &base(goto())), ("sub", back)], true));
        assert!(!stopped(&[("base", &base(goto())), ("sub", accept)], true));
        assert!(!stopped(&[("base", &base(jump())), ("sub", unsure)], true));
        assert!(stopped(&[("base", &base(goto())), ("sub", unsure)], true));
        let endless: &[_] = &[(vec![], jump()), (vec![], jump())];
        assert!(!stopped(&[("base", endless), ("sub", endless)], true));
        assert!(!stopped(&[("base", &base(Verdict::Return)), ("sub", accept)], false));
    }
}
