//! What to do, from what is wanted and what there is: a pure function, so that every case can be tested.
//!
//! Whatever is captured stays captured when in doubt: an instance is detached only if what it captured is
//! gone, or if whoever wanted it has taken it back.

use crate::instance::inventory::{ActiveInstance, InstanceState, InventoryItem};
use crate::policy::Policy;
use std::collections::BTreeMap;

/// Names of instances that come from files of the configuration.
pub const FILE: &str = "file-";
/// Names of instances that are pods.
pub const POD: &str = "pod-";

/// Something that shall be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Where it is.
    pub at: At,
    /// How; None if nobody can say at the moment (its file cannot be read).
    pub policy: Option<Policy>,
}

/// Where a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It is there.
    Here {
        /// Cookie of its network namespace.
        netns: u64,
        /// Id of its cgroup.
        cgroup: u64,
    },
    /// It is not there (yet), or it could not be found out.
    Unknown,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Attach the target, or give it its policy, or repair it.
    Attach(String),
    /// Swap in the programs of this version.
    Upgrade(String),
    /// Detach an instance.
    Detach {
        /// Its name.
        name: String,
        /// A later one of this name is not meant.
        identity: u64,
        /// For the log.
        why: &'static str,
    },
}

/// The steps, detaching ones first: a name or a namespace may have to become free.
pub fn plan(wants: &BTreeMap<String, Want>, there: &[InventoryItem]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut attach = Vec::new();
    for instance in there {
        match of_instance(instance, wants.get(&instance.name)) {
            Some(Step::Detach { name, identity, why }) => {
                if wants.get(&name).is_some_and(is_ready) {
                    attach.push(Step::Attach(name.clone()));
                }
                steps.push(Step::Detach { name, identity, why });
            }
            step => attach.extend(step),
        }
    }
    let missing = |name: &&String| !there.iter().any(|instance| instance.name == **name);
    let new = wants.iter().filter(|(_, want)| is_ready(want)).map(|(name, _)| name).filter(missing);
    attach.extend(new.cloned().map(Step::Attach));
    steps.extend(attach);
    steps
}

fn is_ready(want: &Want) -> bool {
    want.policy.is_some() && want.at != At::Unknown
}

fn of_instance(instance: &InventoryItem, want: Option<&Want>) -> Option<Step> {
    let name = instance.name.clone();
    let identity = instance.identity;
    let detach = |why| Some(Step::Detach { name: name.clone(), identity, why });
    let is_file = name.starts_with(FILE);
    let ours = is_file || name.starts_with(POD);
    match &instance.state {
        // Whoever made it: nothing can come back into a namespace that is gone.
        InstanceState::Active(active) if !active.netns_alive => detach("its network namespace is gone"),
        // Those of others are none of our business.
        _ if !ours => None,
        InstanceState::Active(active) if !active.cgroup_alive => detach("its cgroup is gone"),
        InstanceState::Active(active) => match want {
            // A pod that runs stays captured, whatever the API server says or does not say.
            None => {
                if is_file {
                    detach("its file is gone")
                } else {
                    None
                }
            }
            Some(want) if is_elsewhere(active, want) => detach("its target is another one now"),
            Some(want) => of_active(name, active, want),
        },
        InstanceState::Inert => want.is_some_and(is_ready).then_some(Step::Attach(name)),
        InstanceState::Damaged(_) if want.is_some_and(is_ready) => detach("it is damaged"),
        InstanceState::Damaged(_) if want.is_none() && is_file => detach("its file is gone"),
        // The version that made it may never come back.
        InstanceState::Foreign { ended: true, .. } => detach("what it captured is gone"),
        InstanceState::Damaged(_) | InstanceState::Draining | InstanceState::Foreign { .. } => None,
    }
}

fn is_elsewhere(active: &ActiveInstance, want: &Want) -> bool {
    match want.at {
        At::Here { netns, cgroup } => {
            want.policy.is_some() && (netns, cgroup) != (active.netns_cookie, active.cgroup_id)
        }
        At::Unknown => false,
    }
}

fn of_active(name: String, active: &ActiveInstance, want: &Want) -> Option<Step> {
    let (At::Here { .. }, Some(policy)) = (want.at, &want.policy) else {
        return (!active.current).then_some(Step::Upgrade(name));
    };
    // Upgrading first: what is attached anew afterwards is of this version then.
    if !active.current && active.complete {
        return Some(Step::Upgrade(name));
    }
    let differs = active.policy.as_ref() != Some(policy);
    (differs || !active.complete).then_some(Step::Attach(name))
}

#[cfg(test)]
mod tests;
