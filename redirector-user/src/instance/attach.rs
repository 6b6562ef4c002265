//! attach: build the instance in a staging directory, name it, activate it.
//!
//! Links work from the moment they are created, but the programs do nothing until META says
//! so. Whatever happens before that one write, nothing is captured; what a killed command
//! leaves is swept by the next one.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use redirector_common::abi::{ABI_VERSION, ActiveWord, Meta, ProgramConstants, Sequence, Slot, meta_flag};

use super::directory::{self, Directory, check_name};
use super::lock::WriteLock;
use super::maps::Instance;
use super::phase::Phase;
use super::programs::{self, Programs};
use super::record::Record;
pub use super::request::{Attached, Outcome, Request};
use super::virtual_ranges::{self, VirtualRanges};
use super::{change, detach, find, journal, links, listeners, others, own_maps, phase, sweep};
use crate::base::error::{Context, Error, Kind, Result};
use crate::kernel::Kernel;
use crate::netdev;
use crate::pod::{Target, sandbox};
use crate::programs::node::Node;
use crate::routes;
use crate::sys::bpf::AttachType;
use crate::sys::program_query;

/// Default name: by the namespace's cookie, which is never reused.
pub fn default_name(target: &Target) -> String {
    format!("n{}", target.netns.id.number())
}

/// Attaches a policy to a target, or changes the policy of the instance that is there.
///
/// # Errors
///
/// [`Error::input`] if the target has an instance of another name or another cgroup;
/// [`Error::unsupported`] if the kernel lacks something. Nothing is left behind on any error.
pub fn attach(root: &Directory, request: &Request<'_>) -> Result<Attached> {
    check_name(request.name)?;
    let mounted = root.create()?;
    let lock = WriteLock::take(root)?;
    let result = attach_locked(root, request, &lock);
    if result.is_err() {
        root.remove_if_empty();
    }
    drop(lock);
    result.map(|mut attached| {
        attached.notes.extend(rules_without_effect(request.target));
        attached.notes.extend(kernel_of_its_own(request.target));
        attached.notes.splice(0..0, mounted);
        attached
    })
}

/// A sentence about rules of routing that the programs do not follow.
fn rules_without_effect(target: &Target) -> Option<String> {
    let rules = match routes::rules::unknown_to_snapshot(&target.netns) {
        Ok(rules) if rules.is_empty() => return None,
        Ok(rules) => rules.into_iter().map(|rule| rule.text).collect::<Vec<_>>().join(", "),
        Err(e) => return Some(format!("whether rules of routing select by user or port is not known: {e}")),
    };
    Some(format!(
        "rules of routing by user, port or type of service are not followed: what they forbid is captured ({rules})"
    ))
}

/// A sentence about a pod whose sockets are not this kernel's.
fn kernel_of_its_own(target: &Target) -> Option<String> {
    let process = sandbox::of(&target.cgroup).ok()??;
    Some(format!(
        "the pod has a kernel of its own ({process}): nothing that its processes open is captured; {}",
        sandbox::REMEDY
    ))
}

fn attach_locked(root: &Directory, request: &Request<'_>, lock: &WriteLock) -> Result<Attached> {
    let mut notes = sweep::sweep_staged(root)?;
    let attached = match existing(root, request, &mut notes)? {
        Some(there) => {
            if request.trace && there.meta()?.flags & meta_flag::TRACE == 0 {
                notes.push(format!(
                    "--trace: {} was attached without it and does not tell its decisions; detach it and attach it again",
                    request.name
                ));
            }
            change::change(there, request, lock)?
        }
        None => create(root, request)?,
    };
    notes.extend(attached.notes);
    Ok(Attached { notes, ..attached })
}

/// Names of the instances that may have the name or the namespace of a request. The kernel tells whether any is attached
/// to the namespace, so that most attaches open no instance of others, however many there are.
fn candidates(root: &Directory, Request { name, target, .. }: &Request<'_>) -> Result<Vec<String>> {
    let what = || format!("ask what is attached to {}", target.netns_path.display());
    let inbound = program_query::attached(target.netns.as_fd(), AttachType::SkLookup).context(what)?;
    let outbound = program_query::attached(target.cgroup.as_fd(), AttachType::Connect4).context(what)?;
    if inbound.ids.is_empty() && outbound.ids.is_empty() {
        let there = root.instance(name).is_dir().then(|| (*name).to_owned());
        return Ok(there.into_iter().collect());
    }
    root.names()
}

/// The instance of this name, or of this namespace: they must be the same one.
fn existing(root: &Directory, request: &Request<'_>, notes: &mut Vec<String>) -> Result<Option<Instance>> {
    let Request { name, target, .. } = request;
    let mut same = None;
    for other in candidates(root, request)? {
        let dir = root.instance(&other);
        let opened = Instance::open(root, &other).and_then(|i| i.meta().map(|meta| (i, meta)));
        let (instance, meta) = match opened {
            Ok(found) => found,
            // Somebody else's misfortune is no reason to refuse a pod its sidecar.
            Err(e) if other != *name && !may_be_of(&dir, target, &e) => continue,
            Err(e) if e.kind() == Kind::Unsupported || e.is_no_verdict() => return Err(e),
            Err(e) => {
                return Err(Error::failed(format!(
                    "the instance {other} is damaged; run `redirector detach --name {other}` and attach again: {e}"
                )));
            }
        };
        // Of the same number, too: before 5.14 it is the inode's, and used again.
        let ours = find::netns_id(&meta) == target.netns.id;
        if (other == *name || ours) && find::netns_is_gone(&dir, &meta) {
            detach::remove_dir(&dir)?;
            notes.push(format!("removed the older {other}, whose network namespace is gone"));
            continue;
        }
        if (other == *name || ours) && sweep::is_dead(root, &other) {
            notes.extend(sweep::sweep_one(&dir));
        } else if other == *name || ours {
            check_same(request, &other, &meta)?;
            same = Some(instance);
        }
    }
    Ok(same)
}

/// Whether an instance that cannot be opened may be attached to the target.
fn may_be_of(dir: &Path, target: &Target, error: &Error) -> bool {
    find::linked_to(dir).map_or(error.is_no_verdict(), |inode| inode == target.netns.inode)
}

/// Refuses an instance that has the name of the request but not its target, or the other way round.
fn check_same(Request { name, target, .. }: &Request<'_>, other: &str, meta: &Meta) -> Result<()> {
    if find::netns_id(meta) != target.netns.id {
        return Err(Error::input(format!(
            "the name {name} belongs to another network namespace (inode {})",
            meta.netns_inode
        ))
        .usage("choose another --name, or detach it"));
    }
    if other != *name {
        return Err(Error::input(format!(
            "this network namespace is captured by the instance {other} already"
        ))
        .usage(format!("use --name {other}, or detach it")));
    }
    if meta.cgroup_id != target.cgroup.id {
        return Err(Error::input(format!(
            "the instance {name} is attached to another cgroup (id {}, not {} with id {})",
            meta.cgroup_id,
            target.cgroup.path.display(),
            target.cgroup.id
        ))
        .remedy("detach it first"));
    }
    if Phase::of(meta) == Phase::Draining {
        return Err(phase::is_draining(name, meta));
    }
    Ok(())
}

/// Takes a half-made instance away again, unless it was finished.
struct Staging {
    dir: PathBuf,
    done: bool,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Ok(meta) = Instance::open_unchecked(&self.dir, "").and_then(|i| i.meta()) {
            journal::restore(&self.dir, &meta);
        }
        let _ = detach::remove_dir(&self.dir);
    }
}

fn create(root: &Directory, request: &Request<'_>) -> Result<Attached> {
    let Request { name, target, policy: mapped, trace } = *request;
    others::refuse_second(target)?;
    let policy = &mapped.policy;
    let mut snapshot = routes::read(&target.netns)?;
    let needs = netdev::foresee(policy, &mut snapshot);
    let compiled = mapped.compile(&snapshot);
    let flags = compiled.policy.flags;
    let kernel = Kernel::probe()?;
    kernel.require(flags)?;
    let ranges = virtual_ranges::choose(target, policy, &snapshot)?;
    let node = Node::of(root.dir());
    node.make_maps(&kernel.constants(ProgramConstants::SHARED, flags))?;
    let mut meta_flags = if trace { meta_flag::TRACE } else { 0 };
    if programs::must_be_own(target)? {
        meta_flags |= meta_flag::OWN_PROGRAMS;
    }
    let meta = Meta {
        abi: ABI_VERSION,
        active: ActiveWord::INERT,
        netns_cookie: target.netns.id.number(),
        netns_inode: target.netns.inode,
        cgroup_id: target.cgroup.id,
        flags: meta_flags,
        program_flags: flags,
        drain_until: 0,
        destinations: ranges.destinations,
        connections: ranges.connections,
        index: node.free_index(target.netns.id.number())?,
        generation: node.next_generation()?,
    };
    let programs = Programs::of(&node, &kernel, &meta, flags)?;

    let mut staging = Staging { dir: root.staging(name), done: false };
    let dir = staging.dir.clone();
    directory::make_dir(&dir).context(|| format!("create {}", dir.display()))?;
    own_maps::create(&dir, &node, policy, flags)?;
    let mut instance = open_staged(&dir, name, &meta, &ranges)?;
    compiled.write(&mut instance.tables()?, Slot::FIRST)?;
    instance.write_policy(Slot::FIRST, compiled.policy)?;
    let bound = journal::write_record(&dir, Slot::FIRST, target, &mut Record::of(target, policy))?;
    own_maps::publish(&instance, &node, &kernel)?;
    programs.pin(&dir, |_, _| Ok(()))?;
    links::attach_missing(&dir, target, policy)?;
    journal::apply(&mut instance, target, policy, needs)?;
    // After the links: from then on sockops registers what listens.
    let mut notes = netdev::without_effect(policy, &snapshot);
    notes.extend(ranges.remark(policy).into_iter().chain(bound));
    let listening = listeners::listening(target, policy)?;
    notes.extend(listeners::register(&instance, target, policy, Slot::FIRST, listening, true)?);

    let home = root.instance(name);
    std::fs::rename(&dir, &home).context(|| format!("rename {} to {}", dir.display(), home.display()))?;
    staging.dir.clone_from(&home);
    instance = Instance::open(root, name)?;
    instance.activate(Slot::FIRST)?;
    staging.done = true;
    Ok(Attached { outcome: Outcome::Attached, repaired: false, notes, routes: Some(snapshot) })
}

/// Opens the new maps and writes META, inert.
fn open_staged(dir: &Path, name: &str, meta: &Meta, ranges: &VirtualRanges) -> Result<Instance> {
    let mut instance = Instance::open_unchecked(dir, name)?;
    instance.set_meta(meta)?;
    let start = Sequence { destination: ranges.first, given: 0, connection: 0, untaken: 0 };
    instance.sequence()?.set(0, start, 0).context(|| "write SEQUENCE".into())?;
    Ok(instance)
}
