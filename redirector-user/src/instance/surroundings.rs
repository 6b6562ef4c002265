//! What an instance changes in its namespace beside its hooks: `::6` on lo, and what TPROXY mode
//! needs. Each change is noted in META before it is made, so that whoever cleans up after a
//! command that was killed knows of it.

use super::find;
use super::state::Instance;
use crate::config::{Mode, Policy};
use crate::error::{Error, Result, chain};
use crate::mirror::{self, Mirror};
use crate::target::Target;
use crate::tproxy;
use redirector_common::abi::{Meta, meta_flag};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

/// `::6`, which Envoy binds for what it hands to the app over IPv6.
const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Whether a policy needs `::6` on lo: not if it is there, nor if IPv6 is off on lo. If so, adds
/// it to the facts, as it will be when the policy is in force.
pub(super) fn foresee_lo6(policy: &Policy, facts: &mut Mirror) -> bool {
    let lo = facts.interfaces.iter().find(|i| i.loopback);
    let has = |ip: IpAddr| lo.is_some_and(|lo| lo.addresses.iter().any(|net| net.addr() == ip));
    let needed = policy.ipv6 && has(Ipv6Addr::LOCALHOST.into()) && !has(PASSTHROUGH_V6.into());
    if needed {
        let itself = mirror::Outcome::Local { source: None };
        facts.routes.push(mirror::Route { prefix: IpAddr::from(PASSTHROUGH_V6).into(), outcome: itself });
    }
    needed
}

/// Makes the changes a policy needs that are not made yet.
pub(super) fn apply(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    policy: &Policy,
    add_lo6: bool,
) -> Result<()> {
    if add_lo6 {
        meta.flags |= meta_flag::ADDED_LO6;
        instance.set_meta(meta)?;
        mirror::add_loopback_address(target.netns.as_fd(), PASSTHROUGH_V6)
            .map_err(|e| Error::Failed(chain(&e)))?;
    }
    if policy.mode == Mode::Tproxy && meta.flags & tproxy::ALL_FLAGS == 0 {
        instance.set_meta(&Meta { flags: meta.flags | tproxy::ALL_FLAGS, ..*meta })?;
        meta.flags |= tproxy::apply(&target.netns, policy)?;
        instance.set_meta(meta)?;
    }
    Ok(())
}

/// Takes back what only the old policy needed.
pub(super) fn leave(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    old: &Policy,
    new: &Policy,
) -> Result<()> {
    if new.mode != Mode::Tproxy && meta.flags & tproxy::ALL_FLAGS != 0 {
        tproxy::undo(&target.netns, old, meta.flags)?;
        meta.flags &= !tproxy::ALL_FLAGS;
        instance.set_meta(meta)?;
    }
    Ok(())
}

/// TPROXY's mark and table cannot be exchanged while connections depend on them.
pub(super) fn check_change(old: &Policy, new: &Policy) -> Result<()> {
    let both = old.mode == Mode::Tproxy && new.mode == Mode::Tproxy;
    if both && (old.tproxy_mark, old.tproxy_table) != (new.tproxy_mark, new.tproxy_table) {
        return Err(Error::Input(
            "the mark (-t) and the table (-r) of TPROXY mode cannot be changed while attached; detach first"
                .into(),
        ));
    }
    Ok(())
}

/// Takes back everything that META says was changed; returns what could not be. No error: the
/// namespace may be gone, and with it all of it.
pub(super) fn restore(dir: &Path, meta: &Meta) -> Vec<String> {
    if meta.flags & (meta_flag::ADDED_LO6 | tproxy::ALL_FLAGS) == 0 {
        return Vec::new();
    }
    let Some(record) = find::any_record(dir) else { return Vec::new() };
    let Some(netns) = find::netns_of(&record, meta) else { return Vec::new() };
    let mut left = Vec::new();
    if meta.flags & meta_flag::ADDED_LO6 != 0
        && let Err(e) = mirror::remove_loopback_address(netns.as_fd(), PASSTHROUGH_V6)
    {
        left.push(format!("::6 could not be removed from lo: {}", chain(&e)));
    }
    if let Err(e) = tproxy::undo(&netns, &record.policy, meta.flags) {
        left.push(format!("the rules and routes of TPROXY mode could not be removed: {e}"));
    }
    left
}

/// The same for an instance whose META is lost: nobody knows whether there is anything to take back.
pub(super) fn unknown(dir: &Path) -> Option<String> {
    let record = find::any_record(dir)?;
    record.policy.ipv6.then(|| {
        format!(
            "whether attach has put ::6 on lo is not known; look with `ip -6 address show dev lo` in {}",
            record.netns.display()
        )
    })
}
