//! What the agent has to know of each instance before it decides anything: cheap to read for
//! hundreds of them, and never an error.

use std::collections::BTreeSet;

use redirector_common::abi::{ABI_VERSION, Meta, Slot};

use super::directory::Directory;
use super::find;
use super::links;
use super::maps::Instance;
use super::phase::Phase;
use super::record;
use crate::base::error::Result;
use crate::compile::mapped_policy;
use crate::policy::Policy;
use crate::programs::hooks;
use crate::programs::object;

/// An instance as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryItem {
    /// Its name.
    pub name: String,
    /// See [`Directory::identity`]; 0 if it has gone meanwhile.
    pub identity: u64,
    /// What it is attached to and does.
    pub state: InstanceState,
}

/// What an instance does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It captures.
    Active(Box<ActiveInstance>),
    /// It is draining: whoever drains it ends it.
    Draining,
    /// A command that made it or took it down was killed; the next one sweeps it.
    Inert,
    /// Made by a version with another map layout; it works, but only that version can change it.
    Foreign {
        /// Version of the layout.
        abi: u32,
        /// Inode number of the namespace that its programs are attached to, 0 if that is gone; None if nobody can say.
        netns: Option<u64>,
        /// Nothing that they were attached to is there any more.
        ended: bool,
    },
    /// Something of it is missing, or not what it should be.
    Damaged(String),
    /// It could not be read, which says nothing of it.
    Unreadable(String),
}

impl InstanceState {
    /// Whether it captures what is gone, and nothing can come back into.
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Active(active) => !active.netns_alive,
            Self::Foreign { ended, .. } => *ended,
            Self::Draining | Self::Inert | Self::Damaged(_) | Self::Unreadable(_) => false,
        }
    }
}

/// An instance that captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveInstance {
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Id of its cgroup.
    pub cgroup_id: u64,
    /// The namespace exists.
    pub netns_alive: bool,
    /// The cgroup exists.
    pub cgroup_alive: bool,
    /// The policy in force; None if its record cannot be read.
    pub policy: Option<Policy>,
    /// It runs the programs of this version.
    pub current: bool,
    /// Every hook that the policy needs has its link, and the proxy's cgroup is still the one it was told.
    pub complete: bool,
}

/// All instances of the node.
///
/// # Errors
///
/// Only if the directory of all instances cannot be read.
pub fn take_inventory(root: &Directory) -> Result<Vec<InventoryItem>> {
    Ok(root.names()?.into_iter().map(|name| item(root, name)).collect())
}

/// One instance, however many there are.
///
/// # Errors
///
/// Only if the directory of all instances cannot be read.
pub fn look_at(root: &Directory, name: &str) -> Result<Option<InventoryItem>> {
    let is_there = root.open()?.is_some() && root.instance(name).is_dir();
    Ok(is_there.then(|| item(root, name.to_owned())))
}

fn item(root: &Directory, name: String) -> InventoryItem {
    // Before the state: at worst it is that of an instance which is gone by now, and matches nothing.
    let identity = root.identity(&name).unwrap_or(0);
    InventoryItem { identity, state: state(root, &name), name }
}

/// The links that work, by the names of their instances.
///
/// # Errors
///
/// If one cannot be read now: nobody has detached it.
pub fn working_links(root: &Directory) -> Result<BTreeSet<(String, &'static str)>> {
    let mut working = BTreeSet::new();
    for name in root.names()? {
        for hook in &hooks::ALL {
            if !links::is_missing(&root.instance(&name), hook)? {
                working.insert((name.clone(), hook.short()));
            }
        }
    }
    Ok(working)
}

fn state(root: &Directory, name: &str) -> InstanceState {
    let dir = root.instance(name);
    let (instance, meta) =
        match Instance::open_unchecked(&dir, name).and_then(|i| i.meta().map(|meta| (i, meta))) {
            Ok((_, meta)) if meta.abi != ABI_VERSION => {
                let netns = find::linked_to(&dir);
                let ended = netns == Some(0) && links::are_dead(&dir);
                return InstanceState::Foreign { abi: meta.abi, netns, ended };
            }
            Ok(found) => found,
            Err(e) if e.is_no_verdict() => return InstanceState::Unreadable(e.on_command_line()),
            Err(e) => return InstanceState::Damaged(e.on_command_line()),
        };
    match Phase::of(&meta) {
        Phase::Active(slot) => match active(&instance, &meta, slot) {
            Ok(active) => InstanceState::Active(Box::new(active)),
            Err(e) => InstanceState::Unreadable(e.on_command_line()),
        },
        Phase::Draining => InstanceState::Draining,
        Phase::Inert => InstanceState::Inert,
    }
}

fn active(instance: &Instance, meta: &Meta, slot: Slot) -> Result<ActiveInstance> {
    let record = record::find(&instance.dir, slot)?;
    let policy = record.as_ref().map(|record| record.policy.clone());
    let complete = match &policy {
        Some(policy) => is_complete(instance, policy, slot)?,
        None => false,
    };
    Ok(ActiveInstance {
        netns_cookie: meta.netns_cookie,
        cgroup_id: meta.cgroup_id,
        // Without the link nobody can say; the plan repairs it first.
        netns_alive: !find::netns_is_gone(&instance.dir, meta),
        cgroup_alive: !find::cgroup_is_gone(&instance.dir, meta),
        current: record.is_some_and(|record| record.programs == object::ID),
        policy,
        complete,
    })
}

/// Whether each hook has its link, and the proxy's cgroup is the one that the programs know: it gets another one when
/// its container or unit is started again.
fn is_complete(instance: &Instance, policy: &Policy, slot: Slot) -> Result<bool> {
    for hook in hooks::needed_by(policy) {
        if links::is_missing(&instance.dir, &hook)? {
            return Ok(false);
        }
    }
    let in_force = instance.policy(slot)?;
    Ok(mapped_policy::problem_of_proxy_cgroup(policy, in_force.proxy_cgroup).is_none())
}
