//! What an instance changes in its namespace beside its hooks: `::6` on lo, and what TPROXY mode
//! and virtual interfaces need. Each change is noted in META before it is made, so that whoever cleans up after a
//! command that was killed knows of it.

use super::maps::{Instance, Phase};
use super::record::{self, Record};
use super::{find, listeners};
use crate::base::error::{Context, Error, Result, chain};
use crate::netdev::classifier;
use crate::netdev::tproxy;
use crate::netdev::virtual_interfaces;
use crate::pod::Target;
use crate::pod::cgroup::Cgroup;
use crate::policy::{Mode, Policy};
use crate::programs::hooks::GUEST_PIN;
use crate::routes::{self, RouteSnapshot};
use crate::sys::bpf;
use redirector_common::abi::{Meta, Slot, meta_flag};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

/// `::6`, which Envoy binds for what it hands to the app over IPv6.
const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// Routes, addresses and interfaces of the target's namespace as they are now.
pub(super) fn facts(target: &Target) -> Result<RouteSnapshot> {
    routes::read(target.netns.as_fd()).map_err(|e| Error::failed(chain(&e)))
}

/// What a policy needs of a namespace as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// `::6` on lo.
    lo6: bool,
    /// Rules and routes for IPv6. Where all of it is off, as container runtimes have it in clusters without
    /// IPv6, the kernel refuses routes over lo, and nothing could follow them.
    ipv6: bool,
}

/// Finds what a policy needs, and adds `::6` to the facts, as it will be when the policy is in force.
pub(super) fn foresee(policy: &Policy, facts: &mut RouteSnapshot) -> Needs {
    Needs { lo6: foresee_lo6(policy, facts), ipv6: policy.ipv6 && has_ipv6(facts) }
}

fn has_ipv6(facts: &RouteSnapshot) -> bool {
    facts.interfaces.iter().flat_map(|it| &it.addresses).any(|net| net.addr().is_ipv6())
}

/// What of a policy has no effect in a namespace as it is.
pub(super) fn remarks(policy: &Policy, facts: &RouteSnapshot) -> Vec<String> {
    let absent = |name: &&String| !facts.interfaces.iter().any(|it| it.name == **name);
    let excluded = policy.exclude_interfaces.iter().filter(absent).map(|name| {
        format!(
            "-c: there is no interface {name}; should it come, its traffic is captured until `redirector refresh`"
        )
    });
    let guests = policy.virtual_interfaces.iter().filter(absent);
    let guests = guests.map(|name| format!("-k: there is no interface {name} yet"));
    let routed = policy.mode == Mode::Tproxy || !policy.virtual_interfaces.is_empty();
    let ipv6 = (routed && policy.ipv6 && !has_ipv6(facts)).then(|| {
        "IPv6 is off in this network namespace, so no rules and routes were made for it; run `redirector refresh` when \
         it is on"
            .to_owned()
    });
    excluded.chain(guests).chain(ipv6).collect()
}

/// Whether a policy needs `::6` on lo: not if it is there, nor if IPv6 is off on lo.
fn foresee_lo6(policy: &Policy, facts: &mut RouteSnapshot) -> bool {
    let lo = facts.interfaces.iter().find(|i| i.loopback);
    let has = |ip: IpAddr| lo.is_some_and(|lo| lo.addresses.iter().any(|net| net.addr() == ip));
    let needed = policy.ipv6 && has(Ipv6Addr::LOCALHOST.into()) && !has(PASSTHROUGH_V6.into());
    if needed {
        let itself = routes::Outcome::Local { source: None };
        facts.routes.push(routes::Route { prefix: IpAddr::from(PASSTHROUGH_V6).into(), outcome: itself });
    }
    needed
}

/// Makes the changes a policy needs that are not made yet; all of them or none. The policy's
/// record must have been written, for whoever cleans up.
pub(super) fn apply(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    policy: &Policy,
    needs: Needs,
) -> Result<()> {
    let before = meta.flags;
    let result = apply_noted(instance, meta, target, policy, needs);
    if result.is_err() {
        take_back(instance, meta, target, policy, before);
    }
    result
}

fn apply_noted(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    policy: &Policy,
    needs: Needs,
) -> Result<()> {
    if needs.lo6 {
        instance.set_meta(&Meta { flags: meta.flags | meta_flag::ADDED_LO6, ..*meta })?;
        routes::add_loopback_address(target.netns.as_fd(), PASSTHROUGH_V6)
            .map_err(|e| Error::failed(chain(&e)))?;
        meta.flags |= meta_flag::ADDED_LO6;
    }
    let policy = &Policy { ipv6: needs.ipv6, ..policy.clone() };
    let missing = tproxy::flags_of(policy) & !meta.flags;
    if missing != 0 {
        instance.set_meta(&Meta { flags: meta.flags | missing, ..*meta })?;
        meta.flags |= tproxy::apply(&target.netns, policy, missing)?;
        instance.set_meta(meta)?;
    }
    if !policy.virtual_interfaces.is_empty() {
        meta.flags |= meta_flag::VIRTUAL;
        instance.set_meta(meta)?;
        let pin = instance.dir.join(GUEST_PIN);
        let program = bpf::obj_get(&pin).context(|| format!("open the program {}", pin.display()))?;
        // Before the rules: what they take finds no socket, and a reset would be the answer.
        classifier::add(&target.netns, &policy.virtual_interfaces, program.as_fd())?;
        virtual_interfaces::add(&target.netns, policy)?;
    }
    Ok(())
}

/// Takes back what was changed for a policy that does not come into force, as far as possible.
pub(super) fn take_back(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    policy: &Policy,
    before: u32,
) {
    let new = meta.flags & !before;
    if new & meta_flag::ADDED_LO6 == 0
        || routes::remove_loopback_address(target.netns.as_fd(), PASSTHROUGH_V6).is_ok()
    {
        meta.flags &= !meta_flag::ADDED_LO6 | before;
    }
    if tproxy::undo(&target.netns, policy, new).is_ok() {
        meta.flags &= !tproxy::ALL_FLAGS | before;
    }
    // If this fails META notes more than there is, and detach looks for it in vain.
    let _ = instance.set_meta(meta);
    let _ = trim(instance, meta, target);
}

/// Takes back what virtual interfaces have needed, but not under the policy in force.
fn trim(instance: &mut Instance, meta: &mut Meta, target: &Target) -> Result<()> {
    if meta.flags & meta_flag::VIRTUAL == 0 {
        return Ok(());
    }
    let in_force = match Phase::of(meta) {
        Phase::Active(slot) => match record::read(&instance.dir, slot) {
            Ok(record) => Some(record.policy),
            Err(_) => return Ok(()), // Nobody knows; whoever writes it anew comes by here again.
        },
        Phase::Inert | Phase::Draining => None,
    };
    virtual_interfaces::keep(&target.netns, in_force.as_ref())?;
    let interfaces = in_force.as_ref().map_or(&[][..], |policy| &policy.virtual_interfaces);
    classifier::keep(&target.netns, interfaces)?;
    if in_force.is_none_or(|policy| policy.virtual_interfaces.is_empty()) {
        listeners::make_opaque(instance, &target.netns, &target.cgroup, &outbound_ports(&instance.dir))?;
        meta.flags &= !meta_flag::VIRTUAL;
        instance.set_meta(meta)?;
    }
    Ok(())
}

/// Of the policy in force, and of one that is coming or going.
fn outbound_ports(dir: &Path) -> Vec<u16> {
    let records = Slot::BOTH.into_iter().filter_map(|slot| record::read(dir, slot).ok());
    records.map(|record| record.policy.outbound_port).collect()
}

/// Takes back what a change of policy that was killed has left of TPROXY mode, while the policy
/// in force is not of that mode, and of virtual interfaces.
pub(super) fn settle(instance: &mut Instance, target: &Target, slot: Slot) -> Result<()> {
    let mut meta = instance.meta()?;
    trim(instance, &mut meta, target)?;
    let of_tproxy =
        |slot| record::read(&instance.dir, slot).map(|r| (r.policy.mode == Mode::Tproxy, r.policy));
    if let (true, Ok((false, _)), Ok((true, left))) =
        (meta.flags & tproxy::ALL_FLAGS != 0, of_tproxy(slot), of_tproxy(slot.other()))
    {
        tproxy::undo(&target.netns, &left, meta.flags)?;
        meta.flags &= !tproxy::ALL_FLAGS;
        instance.set_meta(&meta)?;
    }
    Ok(())
}

/// Whether [`leave`] cannot do without the old policy.
pub(super) fn needs_old(meta: &Meta, new: &Policy) -> bool {
    new.mode != Mode::Tproxy && meta.flags & tproxy::ALL_FLAGS != 0
}

/// Takes back what only the old policy needed.
pub(super) fn leave(
    instance: &mut Instance,
    meta: &mut Meta,
    target: &Target,
    old: &Policy,
    new: &Policy,
) -> Result<()> {
    if needs_old(meta, new) {
        tproxy::undo(&target.netns, old, meta.flags)?;
        meta.flags &= !tproxy::ALL_FLAGS;
        instance.set_meta(meta)?;
    }
    trim(instance, meta, target)
}

/// TPROXY's mark and table cannot be exchanged while connections depend on them.
pub(super) fn check_change(old: &Policy, new: &Policy) -> Result<()> {
    let both = old.mode == Mode::Tproxy && new.mode == Mode::Tproxy;
    if both && (old.tproxy_mark, old.tproxy_table) != (new.tproxy_mark, new.tproxy_table) {
        return Err(Error::input(
            "the mark (-t) and the table (-r) of TPROXY mode cannot be changed while attached",
        )
        .remedy("detach first"));
    }
    Ok(())
}

/// Takes back everything that META says was changed; returns what could not be. No error: the
/// namespace may be gone, and with it all of it.
pub(super) fn restore(dir: &Path, meta: &Meta) -> Vec<String> {
    if meta.flags & (meta_flag::ADDED_LO6 | meta_flag::VIRTUAL | tproxy::ALL_FLAGS) == 0 {
        return Vec::new();
    }
    // It has taken all of it with it. Before 5.14 a later namespace may have its number, and be found in its place.
    if find::netns_is_gone(dir, meta) {
        return Vec::new();
    }
    // Two, if a change of policy was killed.
    let records: Vec<Record> =
        Slot::BOTH.into_iter().filter_map(|slot| record::read(dir, slot).ok()).collect();
    let Some(netns) = records.iter().find_map(|record| find::netns_of(record, meta)) else {
        return Vec::new();
    };
    let mut left = Vec::new();
    if meta.flags & meta_flag::ADDED_LO6 != 0
        && let Err(e) = routes::remove_loopback_address(netns.as_fd(), PASSTHROUGH_V6)
    {
        left.push(format!("::6 could not be removed from lo: {}", chain(&e)));
    }
    for policy in records.iter().map(|record| &record.policy).filter(|policy| policy.mode == Mode::Tproxy) {
        if let Err(e) = tproxy::undo(&netns, policy, meta.flags) {
            left.push(format!("the rules and routes of TPROXY mode could not be removed: {e}"));
        }
    }
    if meta.flags & meta_flag::VIRTUAL != 0 {
        if let Err(e) = virtual_interfaces::keep(&netns, None) {
            left.push(format!("the rules and routes of the virtual interfaces could not be removed: {e}"));
        }
        if let Err(e) = classifier::keep(&netns, &[]) {
            left.push(format!("the classifiers of the virtual interfaces could not be removed: {e}"));
        }
        // Without a cgroup there is no process, and no listener.
        let cgroup = records.first().and_then(|record| Cgroup::open(&record.cgroup).ok());
        let done = cgroup.map(|cgroup| {
            let instance = Instance::open_unchecked(dir, "")?;
            listeners::make_opaque(&instance, &netns, &cgroup, &outbound_ports(dir))
        });
        if let Some(Err(e)) = done {
            left.push(format!("the proxy's listeners stay transparent: {e}"));
        }
    }
    left
}

/// The same for an instance whose META is lost: nobody knows whether there is anything to take back.
pub(super) fn unknown(dir: &Path) -> Option<String> {
    let record = find::any_record(dir)?;
    let lo6 = record.policy.ipv6.then_some("::6 on lo (`ip -6 address show dev lo`)");
    let tproxy = (record.policy.mode == Mode::Tproxy).then_some(
        "rules and routes for TPROXY (`ip rule`, `ip -6 rule`), and tcp_fwmark_accept and \
         fwmark_reflect in net.ipv4 and net.ipv6",
    );
    let guests = (!record.policy.virtual_interfaces.is_empty()).then_some(
        "rules and routes of table 15001 (`ip rule`, `ip -6 rule`) and tc filters (`tc filter \
         show dev IF ingress`)",
    );
    let all: Vec<&str> = lo6.into_iter().chain(tproxy).chain(guests).collect();
    (!all.is_empty()).then(|| {
        format!(
            "nobody knows whether they were attach's doing, so these are as they were in {}: {}",
            record.netns.display(),
            all.join("; ")
        )
    })
}
