//! Rules of netfilter in the pod's namespace that concern what is captured.

use super::finding::{Finding, some_of};
use crate::base::error::Result;
use crate::pod::live_rules;
use crate::policy::Policy;
use crate::sys::netns::NetNs;

/// What is to be said of them.
pub(super) fn judge(netns: &NetNs, _policy: &Policy) -> Result<Vec<Finding>> {
    let chains = live_rules::istio_chains_of(netns)?;
    Ok(judge_istio(&chains).into_iter().collect())
}

fn judge_istio(chains: &[String]) -> Option<Finding> {
    (!chains.is_empty()).then(|| {
        Finding::fault(
            "istio_rules",
            format!("the network namespace has live netfilter rules of Istio ({})", some_of(chains, 6)),
            "connections are redirected twice",
            "remove them (istio-iptables --cleanup-only in the namespace), or restart the pod without istio-init".into(),
        )
    })
}
