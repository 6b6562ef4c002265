//! The plan of a campaign: a pure function of the seed.

use crate::harness::parity::random::Random;
use crate::harness::strace::{At, Fault};

/// System calls of the commands, and about as many of each as a change of the policy makes: the last ones hit nothing.
const CALLS: [(&str, usize); 10] = [
    ("bpf", 90),
    ("sendto", 20),
    ("recvfrom", 40),
    ("socket", 12),
    ("setns", 12),
    ("openat", 100),
    ("read", 100),
    ("unlink", 20),
    ("rename", 2),
    ("mkdir", 2),
];
const ERRORS: [&str; 4] = ["EPERM", "ENOMEM", "EMFILE", "EIO"];

/// A command that is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `attach` of another policy.
    Change,
    Refresh,
    Upgrade,
}

/// One disturbance, made under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another policy comes into force.
    Change,
    Refresh,
    /// The programs are swapped for those of an older version, or back.
    Swap,
    /// A system call of a command fails, or kills it.
    Disturbed(Verb, Fault, At),
    /// An address of the pod comes, or goes.
    MoveAddress,
    /// A route of the pod comes, or goes.
    MoveRoute,
    /// The proxy opens so many listeners of each kind, then its old ones close.
    ReloadProxy(usize),
    /// The proxy does not listen for a moment.
    RestartProxy,
    /// A bpffs is mounted over the one that holds the instance, and taken away.
    MountOver,
    /// The network makes connections to many ports without a listener.
    Flood,
    /// Packets on lo are handled by another processor from now on (RPS), or no more.
    Rps,
    /// A call fails, or kills the command, in the first attach of another pod.
    FirstAttach(Fault, At),
    /// The same in its detach.
    LastDetach(Fault, At),
    /// The same in the passes of an agent that keeps it.
    AgentPasses(Fault, At),
    /// The bpffs under an agent is unmounted, and another one mounted there.
    AgentRemount,
    /// The other pod makes more connections, and to more destinations, than its instance has room for.
    Quotas,
}

impl Step {
    /// Whether it is about the pod that comes and goes.
    pub fn is_of_the_comer(self) -> bool {
        matches!(
            self,
            Self::FirstAttach(..)
                | Self::LastDetach(..)
                | Self::AgentPasses(..)
                | Self::AgentRemount
                | Self::Quotas
        )
    }

    /// Whether a connection may fail in this way. A listener that closes resets what it has not accepted.
    pub fn allows(self, failure: &str) -> bool {
        match self {
            Self::ReloadProxy(_) => failure != "ECONNREFUSED",
            Self::RestartProxy => true,
            _ => false,
        }
    }
}

/// The steps of a seed, without end. The first of them are of all kinds.
pub fn steps(seed: u64) -> impl Iterator<Item = Step> {
    let mut random = Random::new(seed);
    let mut round: Vec<Step> = Vec::new();
    std::iter::repeat_with(move || {
        if round.is_empty() {
            round = new_round(&mut random);
        }
        round.pop().unwrap_or(Step::Refresh)
    })
}

/// Each step once.
pub const STEPS_OF_A_ROUND: usize = 25;

fn new_round(random: &mut Random) -> Vec<Step> {
    let mut round = Vec::new();
    let kinds: [fn(Fault, At) -> Step; 6] = [
        |fault, at| Step::Disturbed(Verb::Change, fault, at),
        |fault, at| Step::Disturbed(Verb::Refresh, fault, at),
        |fault, at| Step::Disturbed(Verb::Upgrade, fault, at),
        Step::FirstAttach,
        Step::LastDetach,
        Step::AgentPasses,
    ];
    for kind in kinds {
        for kills in [true, false] {
            let (call, most) = *random.pick(&CALLS);
            let at = At { call, number: 1 + random.below(most) };
            let fault = if kills { Fault::Kill } else { Fault::Errno(ERRORS[random.below(ERRORS.len())]) };
            round.push(kind(fault, at));
        }
    }
    round.extend([
        Step::Change,
        Step::Refresh,
        Step::Swap,
        Step::MoveAddress,
        Step::MoveRoute,
        Step::ReloadProxy(2),
        Step::ReloadProxy(20),
        Step::RestartProxy,
        Step::MountOver,
        Step::Flood,
        Step::Rps,
        Step::AgentRemount,
        Step::Quotas,
    ]);
    random.shuffle(&mut round);
    round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_for_ever() {
        let first = |seed| steps(seed).take(100).collect::<Vec<_>>();
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
        let round = &first(7)[..STEPS_OF_A_ROUND];
        for step in [Step::Swap, Step::RestartProxy, Step::ReloadProxy(20), Step::MountOver, Step::Rps] {
            assert_eq!(round.iter().filter(|other| **other == step).count(), 1, "{step:?}");
        }
    }
}
