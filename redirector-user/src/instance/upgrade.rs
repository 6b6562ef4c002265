//! upgrade: swaps other programs into the links of an instance, of this version or for more features.

use redirector_common::abi::{ProgramConstants, name};

use super::maps::Instance;
use super::own_maps;
use super::programs::Programs;
use crate::base::error::{Context, Error, Result};
use crate::kernel::Kernel;
use crate::programs::node::Node;
use crate::sys::bpf::Link;

/// Swaps in programs that were loaded for more flags, link by link: each does what the one it
/// replaces does, so it does not matter where this is interrupted.
pub(super) fn replace_programs(instance: &mut Instance, flags: u32) -> Result<()> {
    if let Some(map) = name::MAPS.iter().find(|map| !instance.dir.join(map).exists()) {
        return Err(Error::failed(format!(
            "the instance {} is damaged: {} is missing",
            instance.name,
            instance.dir.join(map).display()
        ))
        .remedy("detach it and attach again"));
    }
    let (kernel, node) = (Kernel::probe()?, Node::beside(&instance.dir));
    node.make_maps(&kernel.constants(ProgramConstants::SHARED, flags))?;
    own_maps::find_place(instance, &node, &kernel)?;
    let programs = Programs::of(&node, &kernel, &instance.meta()?, flags)?;
    own_maps::make_room_for_guests(instance, &node, flags)?;
    // Those that are not attached too: a later policy may need them, under the same flags.
    programs.pin(&instance.dir, |hook, program| {
        let link = instance.dir.join(hook.link_pin());
        if !link.exists() {
            return Ok(());
        }
        Link::open(&link)
            .and_then(|link| link.update(program))
            .context(|| format!("replace the program of {}", link.display()))
    })
}
