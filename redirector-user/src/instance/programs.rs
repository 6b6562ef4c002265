//! The programs of an instance: those that all instances of the node share, or its own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use redirector_common::abi::{Meta, ProgramConstants, meta_flag};

use crate::base::error::{Context, Result};
use crate::kernel::{self, Kernel};
use crate::pod::Target;
use crate::programs::hooks::{self, Hook};
use crate::programs::node::{Node, SHARED_SK_LOOKUP, Set};
use crate::programs::object::Loaded;
use crate::sys::bpf::{self, AttachType};
use crate::sys::program_query;

/// Programs for an instance.
pub(super) struct Programs {
    instance: u32,
    flags: u32,
    of: Of,
    guest: Option<Loaded>,
}

enum Of {
    Node(Set),
    Instance(Loaded),
}

impl Programs {
    /// Those that an instance needs for policies that set no other flags than these.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel lacks something that the flags need, or refuses a program.
    pub(super) fn of(node: &Node, kernel: &Kernel, meta: &Meta, flags: u32) -> Result<Self> {
        kernel.require(flags)?;
        let own = kernel.constants(meta.index, flags);
        let trace = meta.flags & meta_flag::TRACE != 0;
        let of = if trace || meta.flags & meta_flag::OWN_PROGRAMS != 0 {
            let names = hooks::possible_for(flags).map(|hook| hook.program);
            Of::Instance(node.load(&own, trace, names)?)
        } else {
            Of::Node(node.set(&kernel.constants(ProgramConstants::SHARED, flags))?)
        };
        // It is asked for packets, which tell nothing of their network namespace.
        let guest = hooks::has_guests(flags).then(|| node.load(&own, trace, [hooks::GUEST])).transpose()?;
        Ok(Self { instance: meta.index, flags, of, guest })
    }

    /// Pins them in the directory of the instance. Its links `swap` to each first: it is given the hook, and the program.
    ///
    /// # Errors
    ///
    /// If one cannot be pinned, or `swap`'s.
    pub(super) fn pin(&self, dir: &Path, swap: impl Fn(&Hook, BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        // Before the program that goes on there. What others need stays until they do not run any more.
        let mut needed = None;
        if let Of::Node(set) = &self.of {
            let array = MapData::from_fd(set.sk_lookup()?).context(|| format!("open {SHARED_SK_LOOKUP}"))?;
            let id = array.info().context(|| format!("inspect the map {SHARED_SK_LOOKUP}"))?.id();
            let name = format!("{SHARED_SK_LOOKUP}_{id}");
            let pin = dir.join(&name);
            if !pin.exists() {
                bpf::obj_pin(array.fd().as_fd(), &pin).context(|| format!("pin {}", pin.display()))?;
            }
            needed = Some(name);
        }
        for hook in hooks::possible_for(self.flags) {
            replace(&dir.join(hook.program_pin()), self.program(&hook)?.as_fd(), |program| {
                swap(&hook, program)
            })?;
        }
        if let Some(guest) = &self.guest {
            // Attached with the next policy.
            replace(&dir.join(hooks::GUEST_PIN), guest.program(hooks::GUEST)?, |_| Ok(()))?;
        }
        for entry in std::fs::read_dir(dir).context(|| format!("read {}", dir.display()))?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(SHARED_SK_LOOKUP) && Some(&*name) != needed.as_deref() {
                bpf::wait_for_programs();
                // It costs nothing but memory if it stays.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn program(&self, hook: &Hook) -> Result<OwnedFd> {
        match &self.of {
            Of::Node(set) => set.program(hook, self.instance),
            Of::Instance(loaded) => owned(loaded.program(hook.program)?),
        }
    }
}

/// Pins another program or map in place of one that is there, if one is, once `swap` lets it work.
pub(super) fn replace(
    pin: &Path,
    object: BorrowedFd<'_>,
    swap: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
) -> Result<()> {
    if !pin.exists() {
        bpf::obj_pin(object, pin).context(|| format!("pin {}", pin.display()))?;
        return swap(object);
    }
    let next = PathBuf::from(format!("{}_new", pin.display()));
    let _ = std::fs::remove_file(&next);
    bpf::obj_pin(object, &next).context(|| format!("pin {}", next.display()))?;
    swap(object)?;
    std::fs::rename(&next, pin).context(|| format!("rename {} to {}", next.display(), pin.display()))
}

fn owned(program: BorrowedFd<'_>) -> Result<OwnedFd> {
    program.try_clone_to_owned().context(|| "duplicate a descriptor".into())
}

/// Whether an instance must have programs of its own. The shared ones tell instances by the network namespace alone: where
/// they are attached to a cgroup and to one below it, both would act on a socket of the lower one.
///
/// # Errors
///
/// If the kernel does not say what is attached.
pub(super) fn must_be_own(target: &Target) -> Result<bool> {
    if kernel::is_realtime() || works_in(target.cgroup.as_fd(), &target.cgroup.path, true)? {
        return Ok(true);
    }
    for below in target.cgroup.ids().into_values().filter(|path| *path != target.cgroup.path) {
        // It may have gone meanwhile.
        if File::open(&below).is_ok_and(|dir| works_in(dir.as_fd(), &below, false).unwrap_or(true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn works_in(cgroup: BorrowedFd<'_>, path: &Path, effective: bool) -> Result<bool> {
    let at = AttachType::Connect4;
    let ids = if effective {
        program_query::effective(cgroup, at)
    } else {
        program_query::attached(cgroup, at).map(|attached| attached.ids)
    };
    let ids = match ids {
        // It is being removed.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        other => other.context(|| format!("ask what is attached to {}", path.display()))?,
    };
    // ENOENT: it has been unloaded meanwhile.
    Ok(ids.into_iter().any(|id| program_query::name(id).is_ok_and(|name| name == "rd_connect4")))
}
