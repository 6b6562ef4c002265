//! attach: build the instance in a staging directory, name it, activate it.
//!
//! Links work from the moment they are created, but the programs do nothing until META says
//! so. Whatever happens before that one write, nothing is captured; what a killed command
//! leaves is swept by the next one.

use super::change;
use super::directory::{self, Directory, check_name};
use super::lock::WriteLock;
use super::maps::{Instance, Phase};
use super::record::Record;
use super::{detach, drain, find, links, listeners, record, surroundings, sweep};
use crate::base::error::{Context, Error, Kind, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::kernel::Kernel;
use crate::pod::Target;
use crate::policy::Policy;
use crate::programs::hooks;
use crate::programs::object::{Loaded, Maps};
use crate::routes::RouteSnapshot;
use crate::sys::bpf;
use redirector_common::abi::{ABI_VERSION, ActiveWord, Meta, Slot, meta_flag, name};
use std::path::{Path, PathBuf};

/// What attach came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A new instance captures the target.
    Attached,
    /// The instance was there with an equal policy.
    Unchanged,
    /// The instance was there and has another policy now.
    Changed,
}

/// Result of attach, with what the user should know.
#[derive(Debug)]
pub struct Attached {
    /// Name of the instance.
    pub name: String,
    /// What happened.
    pub outcome: Outcome,
    /// Remarks.
    pub notes: Vec<String>,
    /// Addresses, routes and interfaces of the namespace as they are in force now; None if they were not read.
    pub routes: Option<RouteSnapshot>,
}

/// Default name: by the namespace's cookie, which is never reused.
pub fn default_name(target: &Target) -> String {
    format!("n{}", target.netns.cookie)
}

/// Attaches a policy to a target, or changes the policy of the instance that is there. With `trace`
/// a new instance tells its decisions to `redirector trace`.
///
/// # Errors
///
/// [`Error::input`] if the target has an instance of another name or another cgroup;
/// [`Error::unsupported`] if the kernel lacks something. Nothing is left behind on any error.
pub fn attach(
    root: &Directory,
    name: &str,
    target: &Target,
    policy: &Policy,
    trace: bool,
) -> Result<Attached> {
    check_name(name)?;
    let mut notes: Vec<String> = root.create()?.into_iter().collect();
    let lock = WriteLock::take(root)?;
    let result = locked(root, name, target, policy, trace, &lock);
    if result.is_err() {
        root.remove_if_empty();
    }
    let (outcome, more, routes) = result?;
    notes.extend(more);
    Ok(Attached { name: name.to_owned(), outcome, notes, routes })
}

fn locked(
    root: &Directory,
    name: &str,
    target: &Target,
    policy: &Policy,
    trace: bool,
    lock: &WriteLock,
) -> Result<(Outcome, Vec<String>, Option<RouteSnapshot>)> {
    let mut notes = sweep::sweep(root, lock)?;
    let (outcome, more, facts) = match existing(root, name, target, &mut notes)? {
        Some(there) => {
            if trace && there.meta()?.flags & meta_flag::TRACE == 0 {
                notes.push(format!(
                    "--trace: {name} was attached without it and does not tell its decisions; detach it \
                     and attach it again"
                ));
            }
            change::change(there, target, policy, lock)?
        }
        None => {
            let (notes, facts) = create(root, name, target, policy, trace)?;
            (Outcome::Attached, notes, Some(facts))
        }
    };
    notes.extend(more);
    Ok((outcome, notes, facts))
}

/// The instance of this name, or of this namespace: they must be the same one.
fn existing(
    root: &Directory,
    name: &str,
    target: &Target,
    notes: &mut Vec<String>,
) -> Result<Option<Instance>> {
    let mut same = None;
    for other in root.names()? {
        let dir = root.instance(&other);
        let (instance, meta) = match Instance::open(root, &other).and_then(|i| i.meta().map(|meta| (i, meta)))
        {
            Ok(found) => found,
            // Somebody else's misfortune is no reason to refuse a pod its sidecar.
            Err(_) if other != name && find::linked_to(&dir) != Some(target.netns.inode) => continue,
            Err(e) if e.kind() == Kind::Unsupported => return Err(e),
            Err(e) => {
                return Err(Error::failed(format!(
                    "the instance {other} is damaged; run `redirector detach --name {other}` and attach again: {e}"
                )));
            }
        };
        // Of the same number, too: before 5.14 it is the inode's, and used again.
        let ours = meta.netns_cookie == target.netns.cookie;
        if (other == name || ours) && find::netns_is_gone(&dir, &meta) {
            detach::remove_dir(&dir)?;
            notes.push(format!("removed the older {other}, whose network namespace is gone"));
            continue;
        }
        if other == name && !ours {
            return Err(Error::input(format!(
                "the name {name} belongs to another network namespace (inode {})",
                meta.netns_inode
            ))
            .usage("choose another --name, or detach it"));
        }
        if !ours {
            continue;
        }
        if other != name {
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
        if Phase::of(&meta) == Phase::Draining {
            return Err(drain::is_draining(name, &meta));
        }
        same = Some(instance);
    }
    Ok(same)
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
            surroundings::restore(&self.dir, &meta);
        }
        let _ = detach::remove_dir(&self.dir);
    }
}

fn create(
    root: &Directory,
    name: &str,
    target: &Target,
    policy: &Policy,
    trace: bool,
) -> Result<(Vec<String>, RouteSnapshot)> {
    let kernel = Kernel::probe()?;
    let counted = IdMappedPolicy::new(policy, target)?;
    let mut facts = surroundings::facts(target)?;
    let needs = surroundings::foresee(policy, &mut facts);
    let compiled = counted.compile(&facts);
    let flags = compiled.policy.flags;
    kernel.require(flags)?;
    let maps = Maps::New { capacity: policy.max_connections };
    let constants = kernel.target(target, flags);
    let loaded = Loaded::new(&constants, maps, trace, hooks::wanted(policy))?;

    let mut staging = Staging { dir: root.staging(name), done: false };
    let dir = staging.dir.clone();
    directory::make_dir(&dir).context(|| format!("create {}", dir.display()))?;
    pin_maps(&loaded, &dir)?;
    let mut instance = open_staged(&dir, name, target, flags)?;
    compiled.write(&mut instance.tables()?, Slot::FIRST)?;
    instance.policies()?.set(Slot::FIRST.index(), compiled.policy, 0).context(|| "write POLICIES".into())?;
    record::write(&dir, Slot::FIRST, &Record::of(target, policy))?;
    pin_programs(&loaded, policy, flags, &dir)?;
    links::attach_wanted(&dir, target, policy)?;

    let mut meta = instance.meta()?;
    if trace {
        meta.flags |= meta_flag::TRACE;
        instance.set_meta(&meta)?;
    }
    surroundings::apply(&mut instance, &mut meta, target, policy, needs)?;
    // After the links: from then on sockops registers what listens anew.
    let mut notes = surroundings::remarks(policy, &facts);
    notes.extend(listeners::register(&instance, target, policy, Slot::FIRST)?);

    let home = root.instance(name);
    std::fs::rename(&dir, &home).context(|| format!("rename {} to {}", dir.display(), home.display()))?;
    staging.dir.clone_from(&home);
    instance = Instance::open(root, name)?;
    meta.active = ActiveWord::of(Slot::FIRST);
    instance.set_meta(&meta)?;
    staging.done = true;
    Ok((notes, facts))
}

fn pin_maps(loaded: &Loaded, dir: &Path) -> Result<()> {
    for name in name::MAPS {
        let path = dir.join(name);
        loaded.map(name)?.pin(&path).map_err(|e| {
            Error::failed(format!("pin the map {}: {}", path.display(), crate::base::error::chain(&e)))
        })?;
    }
    Ok(())
}

/// Opens the new maps and writes the head, inert.
fn open_staged(dir: &Path, name: &str, target: &Target, program_flags: u32) -> Result<Instance> {
    let mut instance = Instance::open_unchecked(dir, name)?;
    instance.set_meta(&Meta {
        abi: ABI_VERSION,
        active: ActiveWord::INERT,
        netns_cookie: target.netns.cookie,
        netns_inode: target.netns.inode,
        cgroup_id: target.cgroup.id,
        flags: 0,
        program_flags,
        drain_until: 0,
    })?;
    Ok(instance)
}

fn pin_programs(loaded: &Loaded, policy: &Policy, flags: u32, dir: &Path) -> Result<()> {
    let guest = hooks::has_guests(flags).then(|| (hooks::GUEST, hooks::GUEST_PIN.to_owned()));
    let wanted = hooks::wanted(policy).map(|hook| (hook.program, hook.program_pin()));
    for (program, pin) in wanted.chain(guest) {
        let path = dir.join(pin);
        bpf::obj_pin(loaded.program(program)?, &path)
            .context(|| format!("pin the program {}", path.display()))?;
    }
    Ok(())
}
