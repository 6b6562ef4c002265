//! `redirector show`: what an instance was asked to do (its record) and what the kernel does.

use std::os::fd::AsFd;

use redirector_common::abi::{ABI_VERSION, ListenerRole, Meta, Slot};
use redirector_common::rule::Counter;
use schemars::JsonSchema;
use serde::Serialize;

use super::directory::Directory;
use super::find;
use super::listeners;
use super::maps::Instance;
use super::phase;
use super::phase::Phase;
use super::record::{self, Record};
use super::{connections, virtual_ranges};
use crate::base::error::{Context, Result};
use crate::compile::mapped_policy;
use crate::pod::cgroup::Cgroup;
use crate::programs::hooks::{self, Hook};
use crate::sys::bpf::Link;
use crate::sys::program_query;

/// What is wrong with an instance that is not damaged.
pub(super) fn problem(instance: &Instance, meta: &Meta, record: &Record) -> Result<Option<String>> {
    let detach = format!("redirector detach --name {}", instance.name);
    let gone = |what: &str| Ok(Some(format!("its {what} is gone; detach it (`{detach}`)")));
    let phase = Phase::of(meta);
    if phase != Phase::Inert && find::netns_is_gone(&instance.dir, meta) {
        return gone("network namespace");
    }
    if phase != Phase::Inert && find::cgroup_is_gone(&instance.dir, meta) {
        return gone("cgroup");
    }
    match phase {
        Phase::Inert => Ok(None),
        // Nobody knows whether the command that drains is still there.
        Phase::Draining => Ok(Some(format!(
            "captures nothing new until its connections have ended, for at most {} s more; `{detach}` ends it at once",
            phase::time_left(meta)
        ))),
        Phase::Active(slot) => {
            let in_force = instance.policy(slot)?;
            Ok(mapped_policy::problem_of_proxy_cgroup(&record.policy, in_force.proxy_cgroup))
        }
    }
}

pub(super) fn any_record(instance: &Instance, phase: Phase) -> Result<Record> {
    match phase {
        Phase::Active(slot) => record::read(&instance.dir, slot),
        _ => record::read(&instance.dir, Slot::FIRST)
            .or_else(|_| record::read(&instance.dir, Slot::FIRST.other())),
    }
}

/// One hook of an instance as the kernel has it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct HookStatus {
    /// Which hook.
    pub hook: &'static str,
    /// Id of our program.
    pub program: Option<u32>,
    /// Whether the kernel runs our program there: the link holds it, its target exists, and (on
    /// a cgroup) it is among the effective programs.
    pub effective: bool,
    /// Ids of programs of others that run at this hook of the cgroup before ours.
    pub before: Vec<u32>,
    /// Why it is not effective.
    pub problem: Option<String>,
}

/// Listeners of the proxy that are registered.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ListenerStatus {
    /// `outbound`, `inbound` or `dns`.
    pub traffic: &'static str,
    /// Port of the policy.
    pub port: u16,
    /// How many of family AF_INET.
    pub ipv4: u32,
    /// How many of family AF_INET6.
    pub ipv6: u32,
    /// What is wrong with them.
    pub problem: Option<String>,
}

/// A counter.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CounterStatus {
    /// Stable name.
    pub rule: &'static str,
    /// Connections.
    pub connections: u64,
}

/// Everything `redirector show` knows.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Status {
    /// Name of the instance.
    pub name: String,
    /// `active`, `draining` or `inert`.
    pub state: &'static str,
    /// Version of the map layout.
    pub abi: u32,
    /// What was asked for.
    pub record: Record,
    /// Inode number of the network namespace.
    pub netns_inode: u64,
    /// Its cookie.
    pub netns_cookie: u64,
    /// Id of the cgroup.
    pub cgroup_id: u64,
    /// Whether attach has put `::6` on lo.
    pub added_lo6: bool,
    /// Redirected connections that are alive.
    pub connections: u64,
    /// Of these, those whose destination has no address of its own; `--max-connections` bounds them.
    pub stored_connections: u64,
    /// The addresses for original destinations.
    #[schemars(with = "Option<String>")]
    pub virtual_destinations: Option<ipnet::Ipv4Net>,
    /// How many of them are given.
    pub destinations: u64,
    /// True if every hook is effective.
    pub effective: bool,
    /// What is wrong although it is.
    pub problem: Option<String>,
    /// Each hook.
    pub hooks: Vec<HookStatus>,
    /// The proxy's listeners.
    pub listeners: Vec<ListenerStatus>,
    /// Connections by rule, and other outcomes.
    pub counters: Vec<CounterStatus>,
}

/// Status of one instance.
pub fn status(root: &Directory, name: &str) -> Result<Status> {
    let instance = Instance::open(root, name)?;
    let meta = instance.meta()?;
    let phase = Phase::of(&meta);
    let record = any_record(&instance, phase)?;
    let cgroup = Cgroup::open(&record.cgroup);
    let hooks: Vec<HookStatus> =
        hooks::needed_by(&record.policy).map(|hook| hook_status(&instance, &hook, &cgroup)).collect();
    let slot = if let Phase::Active(slot) = phase { slot } else { Slot::FIRST };
    let policy = &record.policy;
    let dns = policy.dns != crate::policy::Dns::Off;
    let roles = listeners::roles(policy).into_iter().filter(|(_, role)| dns || *role != ListenerRole::Dns);
    let mut registered = Vec::new();
    for (port, role) in roles {
        let [ipv4, ipv6] = listeners::count(&instance, slot, role)?;
        let problem = if ipv4 + ipv6 == 0 {
            Some("no listener of the proxy is registered".to_owned())
        } else if role == ListenerRole::Outbound && !policy.virtual_interfaces.is_empty() {
            let netns = find::netns_of(&record, &meta)?;
            let target = netns.zip(Cgroup::open(&record.cgroup).ok());
            target.and_then(|(netns, cgroup)| listeners::problem_of_transparency(&netns, &cgroup, policy))
        } else {
            None
        };
        registered.push(ListenerStatus { traffic: role.name(), port, ipv4, ipv6, problem });
    }
    let counters = Counter::ALL.iter().zip(instance.counters()?);
    Ok(Status {
        name: name.to_owned(),
        state: phase.name(),
        problem: problem(&instance, &meta, &record)?,
        abi: ABI_VERSION,
        netns_inode: meta.netns_inode,
        netns_cookie: meta.netns_cookie,
        cgroup_id: meta.cgroup_id,
        added_lo6: meta.flags & redirector_common::abi::meta_flag::ADDED_LO6 != 0,
        stored_connections: instance.live()?,
        connections: connections::alive(&instance, find::netns_of(&record, &meta)?.as_ref())?,
        virtual_destinations: virtual_ranges::shown(&meta.destinations),
        destinations: instance.sequence()?.get(&0, 0).context(|| "read SEQUENCE".into())?.given,
        effective: hooks.iter().all(|h| h.effective),
        hooks,
        listeners: registered,
        counters: counters.map(|(c, n)| CounterStatus { rule: c.name(), connections: n }).collect(),
        record,
    })
}

fn hook_status(instance: &Instance, hook: &Hook, cgroup: &Result<Cgroup>) -> HookStatus {
    let mut status =
        HookStatus { hook: hook.short(), program: None, effective: false, before: Vec::new(), problem: None };
    if let Err(e) = inspect(instance, hook, cgroup, &mut status) {
        status.problem = Some(e.on_command_line());
    }
    status
}

fn inspect(instance: &Instance, hook: &Hook, cgroup: &Result<Cgroup>, status: &mut HookStatus) -> Result<()> {
    let path = instance.dir.join(hook.link_pin());
    let link = Link::open(&path).context(|| format!("open {}", path.display()))?;
    let info = link.info().context(|| format!("inspect {}", path.display()))?;
    status.program = Some(info.program);
    if info.target == 0 {
        status.problem = Some("its link is detached, or what it was attached to is gone".into());
    } else if hook.netns {
        status.effective = true;
    } else {
        let cgroup = match cgroup {
            Ok(cgroup) => cgroup,
            Err(e) => {
                status.problem = Some(e.on_command_line());
                return Ok(());
            }
        };
        let running = program_query::effective(cgroup.as_fd(), hook.at)
            .context(|| format!("ask for the effective programs of {}", cgroup.path.display()))?;
        match running.iter().position(|id| *id == info.program) {
            Some(at) => {
                status.effective = true;
                status.before = running[..at].to_vec();
            }
            None => status.problem = Some("it is not among the cgroup's effective programs".into()),
        }
    }
    Ok(())
}
