//! What to do, from what is desired and what there is: a pure function, so that every case can be tested.
//!
//! In doubt an instance stays: it is detached only if what it captured is gone, or if its file is.

use std::collections::BTreeMap;

use crate::instance::inventory::{ActiveInstance, InstanceState, InventoryItem};
use crate::pod::Target;
use crate::policy::Policy;

/// Names of instances that come from files of the configuration.
pub const FILE_PREFIX: &str = "file-";
/// Names of instances that are pods.
pub const POD_PREFIX: &str = "pod-";

/// Everything that shall be captured, by the name of its instance.
#[derive(Default)]
pub struct DesiredState {
    pub desired: BTreeMap<String, Desired>,
    /// Those that can be attached now.
    pub present: BTreeMap<String, Present>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub location: Location,
    /// None if it cannot be told at the moment (the file cannot be read).
    pub policy: Option<Policy>,
}

impl Desired {
    pub fn unknown(policy: Option<Policy>) -> Self {
        Self { location: Location::Unknown, policy }
    }

    fn is_ready(&self) -> bool {
        self.policy.is_some() && self.location != Location::Unknown
    }
}

/// What an attach needs.
pub struct Present {
    pub target: Target,
    pub policy: Policy,
    pub allow_partial: bool,
}

impl Present {
    pub fn desired(&self) -> Desired {
        let location =
            Location::Present { netns: self.target.netns.id.number(), cgroup: self.target.cgroup.id };
        Desired { location, policy: Some(self.policy.clone()) }
    }
}

/// Where a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    Present {
        /// Cookie of its network namespace.
        netns: u64,
        /// Id of its cgroup.
        cgroup: u64,
    },
    /// It is not there (yet), or could not be found.
    Unknown,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Attach the target, change its policy, or repair it.
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
pub fn plan(desired: &BTreeMap<String, Desired>, inventory: &[InventoryItem]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut attach = Vec::new();
    for instance in inventory {
        match of_instance(instance, desired.get(&instance.name)) {
            Some(Step::Detach { name, identity, why }) => {
                if desired.get(&name).is_some_and(Desired::is_ready) {
                    attach.push(Step::Attach(name.clone()));
                }
                steps.push(Step::Detach { name, identity, why });
            }
            step => attach.extend(step),
        }
    }
    let missing = |name: &&String| !inventory.iter().any(|instance| instance.name == **name);
    let new = desired.iter().filter(|(_, it)| it.is_ready()).map(|(name, _)| name).filter(missing);
    attach.extend(new.cloned().map(Step::Attach));
    steps.extend(attach);
    steps
}

fn of_instance(instance: &InventoryItem, desired: Option<&Desired>) -> Option<Step> {
    let name = instance.name.clone();
    let identity = instance.identity;
    let detach = |why| Some(Step::Detach { name: name.clone(), identity, why });
    let is_file = name.starts_with(FILE_PREFIX);
    let ours = is_file || name.starts_with(POD_PREFIX);
    match &instance.state {
        // Nothing can come back into a namespace that is gone, whoever attached the instance.
        InstanceState::Active(active) if !active.netns_alive => detach("its network namespace is gone"),
        // Instances that were made by hand stay.
        _ if !ours => None,
        InstanceState::Active(active) if !active.cgroup_alive => detach("its cgroup is gone"),
        InstanceState::Active(active) => match desired {
            // A pod that runs stays captured, whatever the API server says or does not say.
            None => {
                if is_file {
                    detach("its file is gone")
                } else {
                    None
                }
            }
            Some(desired) if is_elsewhere(active, desired) => detach("its target is another one now"),
            Some(desired) => of_active(name, active, desired),
        },
        InstanceState::Inert => desired.is_some_and(Desired::is_ready).then_some(Step::Attach(name)),
        InstanceState::Damaged(_) if desired.is_some_and(Desired::is_ready) => detach("it is damaged"),
        InstanceState::Damaged(_) if desired.is_none() && is_file => detach("its file is gone"),
        // The version that made it may never come back.
        InstanceState::Foreign { ended: true, .. } => detach("what it captured is gone"),
        InstanceState::Damaged(_)
        | InstanceState::Unreadable(_)
        | InstanceState::Draining
        | InstanceState::Foreign { .. } => None,
    }
}

fn is_elsewhere(active: &ActiveInstance, desired: &Desired) -> bool {
    match desired.location {
        Location::Present { netns, cgroup } => {
            desired.policy.is_some() && (netns, cgroup) != (active.netns_cookie, active.cgroup_id)
        }
        Location::Unknown => false,
    }
}

fn of_active(name: String, active: &ActiveInstance, desired: &Desired) -> Option<Step> {
    let (Location::Present { .. }, Some(policy)) = (desired.location, &desired.policy) else {
        return (!active.current).then_some(Step::Upgrade(name));
    };
    // Upgrade first: links that are attached again afterwards get this version's programs.
    if !active.current && active.complete {
        return Some(Step::Upgrade(name));
    }
    let differs = active.policy.as_ref() != Some(policy);
    (differs || !active.complete).then_some(Step::Attach(name))
}

#[cfg(test)]
mod tests;
