//! The hooks of an instance: whether the kernel runs our programs, and whose programs run beside them.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::finding::{Finding, Level, some_of};
use crate::base::error::{Context, Result};
use crate::instance::maps::Instance;
use crate::instance::own_maps;
use crate::instance::status::HookStatus;
use crate::pod::cgroup::Cgroup;
use crate::programs::hooks::{self, Hook};
use crate::sys::program_query;

/// When somebody else's program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    Before,
    After,
}

/// A program of somebody else at one of our hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub hook: &'static str,
    pub id: u32,
    pub name: String,
    pub order: Order,
    /// The cgroup below ours that it is attached to; None: ours, one above it, or the namespace.
    pub below: Option<PathBuf>,
}

impl Foreign {
    fn is_of_redirector(&self) -> bool {
        hooks::ALL.iter().any(|hook| hook.program == self.name)
    }
}

/// Programs of others at the hooks that this instance uses.
pub(super) fn foreign(
    ours: &[HookStatus],
    cgroup: &Cgroup,
    netns: BorrowedFd<'_>,
    below: &[PathBuf],
) -> Result<Vec<Foreign>> {
    let mut found = Vec::new();
    let used = |hook: &&Hook| ours.iter().any(|status| status.hook == hook.short());
    for hook in hooks::ALL.iter().filter(used) {
        let own = ours.iter().find(|status| status.hook == hook.short()).and_then(|status| status.program);
        let what = || format!("ask for the programs at {}", hook.short());
        let running = if hook.netns {
            program_query::attached(netns, hook.at).context(what)?.ids
        } else {
            program_query::effective(cgroup.as_fd(), hook.at).context(what)?
        };
        let at = running.iter().position(|id| Some(*id) == own).unwrap_or(running.len());
        for (position, id) in running.iter().enumerate().filter(|(position, _)| *position != at) {
            let order = if position < at { Order::Before } else { Order::After };
            found.extend(named(hook, *id, order, None));
        }
    }
    for path in below {
        found.extend(attached_below(ours, path));
    }
    Ok(found)
}

/// Without the programs of instances that capture other namespaces by the same cgroup, or one above it: each leaves alone
/// what is not of its own.
pub(super) fn without(foreign: Vec<Foreign>, elsewhere: impl FnOnce() -> HashSet<u32>) -> Vec<Foreign> {
    if !foreign.iter().any(Foreign::is_of_redirector) {
        return foreign;
    }
    let elsewhere = elsewhere();
    foreign.into_iter().filter(|program| !elsewhere.contains(&program.id)).collect()
}

/// Those of a cgroup below ours run first (`compute_effective_progs` goes from the cgroup to the root).
fn attached_below(ours: &[HookStatus], path: &Path) -> Vec<Foreign> {
    // It may have gone meanwhile, with what was attached to it.
    let Ok(dir) = std::fs::File::open(path) else { return Vec::new() };
    let used = |hook: &&Hook| !hook.netns && ours.iter().any(|status| status.hook == hook.short());
    let mut found = Vec::new();
    for hook in hooks::ALL.iter().filter(used) {
        for id in
            program_query::attached(dir.as_fd(), hook.at).map(|attached| attached.ids).unwrap_or_default()
        {
            found.extend(named(hook, id, Order::Before, Some(path.to_owned())));
        }
    }
    found
}

/// None if it has been unloaded meanwhile.
fn named(hook: &Hook, id: u32, order: Order, below: Option<PathBuf>) -> Option<Foreign> {
    let name = program_query::name(id).ok()?;
    Some(Foreign { hook: hook.short(), id, name, order, below })
}

/// What is to be said of our hooks.
pub(super) fn judge_own(instance: &str, hooks: &[HookStatus]) -> Vec<Finding> {
    let mut by_effect: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for hook in hooks.iter().filter(|hook| !hook.effective) {
        by_effect.entry(consequence(hook.hook)).or_default().push(hook.hook.to_owned());
    }
    let finding = |(effect, names): (&str, Vec<String>)| {
        Finding::fault(
            "hook_detached",
            format!("the kernel does not run our program at {}", some_of(&names, 13)),
            effect,
            format!("redirector refresh {instance}"),
        )
    };
    by_effect.into_iter().map(finding).collect()
}

/// Whether the programs find the instance among those that share them.
pub(super) fn judge_found(instance: &Instance) -> Result<Vec<Finding>> {
    let name = &instance.name;
    let mut findings = Vec::new();
    if !own_maps::are_found(instance)? {
        findings.push(Finding::fault(
            "not_found",
            "somebody has removed the instance from what the node's instances share".into(),
            "the programs do not find it, and all traffic goes past the proxy",
            format!("redirector refresh {name}"),
        ));
    }
    if own_maps::lost_sk_lookup(instance)? {
        findings.push(Finding::fault(
            "not_found",
            "the program behind sk_lookup is gone".into(),
            "every connection to the pod and to the proxy is refused",
            format!("redirector detach --name {name}, then attach again"),
        ));
    }
    Ok(findings)
}

fn consequence(hook: &str) -> &'static str {
    match hook {
        "connect4" => "IPv4 connections of the pod go past the proxy",
        "connect6" => "IPv6 connections of the pod go past the proxy",
        "sk_lookup" => "connections from the network reach the application without the proxy",
        "getsockopt" => "the proxy is not told original destinations",
        "setsockopt" => {
            "source routing is not refused: connections to the pod's own address may leave for another host"
        }
        "sockops" => "the proxy is not told original destinations, and its new listeners are not registered",
        "sendmsg4" | "sendmsg6" => "DNS queries over UDP go past the proxy",
        "recvmsg4" | "recvmsg6" => "answers to DNS queries show the proxy's address, and resolvers drop them",
        _ => "applications see the proxy's address in getpeername and getsockname",
    }
}

/// Whether programs at this hook change where traffic goes.
fn directs(hook: &str) -> bool {
    matches!(hook, "connect4" | "connect6" | "sendmsg4" | "sendmsg6" | "sk_lookup")
}

/// What is to be said of other people's programs.
pub(super) fn judge_foreign(instance: &str, foreign: &[Foreign]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (ours, others): (Vec<&Foreign>, Vec<&Foreign>) =
        foreign.iter().partition(|program| program.is_of_redirector());
    if !ours.is_empty() {
        let shown: Vec<String> = ours.iter().map(|program| one(program)).collect();
        findings.push(Finding::fault(
            "second_instance",
            format!("another instance of redirector captures the same pod: {}", some_of(&shown, 4)),
            "each connection is redirected twice, and its original destination is lost",
            format!(
                "detach one of them: redirector --bpffs DIR detach --netns FILE with the bpffs that holds the other, or \
                 redirector detach --name {instance}"
            ),
        ));
    }
    for program in others {
        let (level, effect) = match (directs(program.hook), program.order) {
            (true, Order::Before) => {
                (Level::Fault, "it may change the destination, or refuse it, before our program decides")
            }
            (true, Order::After) => (Level::Notice, "it sees the destination that our program has written"),
            (false, _) if program.hook == "setsockopt" => {
                (Level::Notice, "it may refuse options of sockets, and the proxy's cannot listen then")
            }
            (false, _) => (Level::Notice, "it may change what sockets of the pod are told"),
        };
        let remedy = match &program.below {
            Some(path) => {
                format!(
                    "if it does not belong there: bpftool cgroup detach {} {} id {}",
                    path.display(),
                    program.hook,
                    program.id
                )
            }
            None => format!("see whose it is: bpftool prog show id {}", program.id),
        };
        findings.push(Finding::new(level, "foreign_program", one(program), effect, remedy));
    }
    findings
}

fn one(program: &Foreign) -> String {
    let place = program.below.as_ref().map(|path| format!(" in {}", path.display())).unwrap_or_default();
    let name = if program.name.is_empty() { "without a name" } else { &program.name };
    let order = match program.order {
        Order::Before => "before",
        Order::After => "after",
    };
    format!("{}{place}: program {} {name} runs {order} ours", program.hook, program.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(hook: &'static str, effective: bool) -> HookStatus {
        HookStatus { hook, program: Some(1), effective, before: Vec::new(), problem: None }
    }

    #[test]
    fn a_detached_hook_names_what_goes_astray() {
        for (name, word) in [
            ("connect4", "IPv4 connections of the pod go past"),
            ("sk_lookup", "reach the application without the proxy"),
            ("sendmsg4", "DNS queries"),
            ("sockname4", "getpeername"),
            ("getsockopt", "original destinations"),
        ] {
            let found = judge_own("n1", &[hook(name, false), hook("connect6", true)]);
            assert_eq!(found.len(), 1);
            assert!(found[0].consequence.contains(word), "{:?}", found[0]);
            assert!(found[0].what.contains(name) && !found[0].what.contains("connect6"));
            assert_eq!((found[0].level, found[0].remedy.as_str()), (Level::Fault, "redirector refresh n1"));
        }
        assert!(judge_own("n1", &[hook("connect4", true)]).is_empty());
    }

    #[test]
    fn other_peoples_programs() {
        let program = |hook, name: &str, order, below: Option<&str>| Foreign {
            hook,
            id: 77,
            name: name.into(),
            order,
            below: below.map(PathBuf::from),
        };
        let cases = [
            (
                program("connect4", "foreign_lb4", Order::Before, Some("/c/app")),
                Level::Fault,
                "connect4 in /c/app: program 77 foreign_lb4 runs before ours",
            ),
            (
                program("connect4", "cil_sock4", Order::After, None),
                Level::Notice,
                "cil_sock4 runs after ours",
            ),
            (program("getsockopt", "x", Order::Before, None), Level::Notice, "getsockopt"),
            (
                program("connect6", "rd_connect6", Order::After, None),
                Level::Fault,
                "another instance of redirector",
            ),
            (program("sk_lookup", "", Order::Before, None), Level::Fault, "without a name"),
        ];
        for (foreign, level, words) in cases {
            let found = judge_foreign("n1", &[foreign]);
            assert_eq!((found.len(), found[0].level), (1, level), "{found:?}");
            assert!(found[0].what.contains(words), "{found:?}");
        }
    }
}
