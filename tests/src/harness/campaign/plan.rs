//! The plan of a campaign: a pure function of the seed.

use crate::harness::parity::random::Random;

/// More calls of bpf(2) than a change of the policy makes: the last ones hit nothing.
const BPF_CALLS: usize = 90;

/// One disturbance, made under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another policy comes into force.
    Change,
    Refresh,
    /// The programs are swapped for those of an older version, or back.
    Swap,
    /// `attach` of another policy is killed at this call of bpf(2).
    KilledChange(usize),
    /// This call of bpf(2) fails while another policy is attached.
    FailedChange(usize),
    KilledRefresh(usize),
    FailedRefresh(usize),
    /// An address of the pod comes, or goes.
    MoveAddress,
    /// The proxy's old listeners close when the new ones listen.
    ReloadProxy,
    /// The proxy does not listen for a moment.
    RestartProxy,
}

impl Step {
    /// Whether a connection may fail in this way. A listener that closes resets what it has not accepted.
    pub fn allows(self, failure: &str) -> bool {
        match self {
            Self::ReloadProxy => failure != "ECONNREFUSED",
            Self::RestartProxy => true,
            _ => false,
        }
    }
}

/// The steps of a seed, without end. The first ten are of all kinds.
pub fn steps(seed: u64) -> impl Iterator<Item = Step> {
    let mut random = Random::new(seed);
    let mut round: Vec<Step> = Vec::new();
    std::iter::repeat_with(move || {
        if round.is_empty() {
            let mut call = || 1 + random.below(BPF_CALLS);
            round = vec![
                Step::KilledChange(call()),
                Step::FailedChange(call()),
                Step::KilledRefresh(call()),
                Step::FailedRefresh(call()),
                Step::Change,
                Step::Refresh,
                Step::Swap,
                Step::MoveAddress,
                Step::ReloadProxy,
                Step::RestartProxy,
            ];
            random.shuffle(&mut round);
        }
        round.pop().unwrap_or(Step::Refresh)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_steps_for_ever() {
        let first = |seed| steps(seed).take(100).collect::<Vec<_>>();
        assert_eq!(first(7), first(7));
        assert_ne!(first(7), first(8));
        assert!(first(7)[..10].contains(&Step::Swap) && first(7)[..10].contains(&Step::RestartProxy));
    }
}
