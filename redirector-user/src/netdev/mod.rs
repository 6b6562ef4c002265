//! Changes to the pod's namespace beside the hooks: `::6` on lo, what TPROXY mode and virtual interfaces need, and a bound on
//! TIME_WAIT sockets.
//!
//! A change is noted before it is made, in the [`Journal`] or in the record, so that the command that cleans up after a killed one
//! knows of it.

mod classifier;
mod needs;
pub mod passthrough;
mod rules;
mod sysctl;
pub mod time_wait;
mod tproxy;
mod virtual_interfaces;

use std::os::fd::OwnedFd;

pub use needs::{Needs, foresee, without_effect};
use redirector_common::abi::meta_flag;
pub use virtual_interfaces::check as check_virtual_interfaces;

use crate::base::error::Result;
use crate::policy::{Mode, Policy};
use crate::sys::netns::NetNs;

/// Everything that may be noted.
pub const ALL_CHANGES: u32 = meta_flag::ADDED_LO6 | meta_flag::VIRTUAL | TPROXY;
/// What TPROXY mode changes.
pub const TPROXY: u32 = tproxy::ALL_CHANGES;

/// Where it is noted what was changed in a namespace: flags of [`ALL_CHANGES`], which outlive the command.
pub trait Journal {
    /// What is noted.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    fn noted(&self) -> Result<u32>;

    /// Notes this and nothing else.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    fn note(&mut self, changes: u32) -> Result<()>;
}

/// Makes the changes a policy needs that are not made yet; all of them or none. `classifier` opens the program for the
/// virtual interfaces.
///
/// # Errors
///
/// The kernel's, and if somebody else's routes are in a table that is needed.
pub fn apply(
    netns: &NetNs,
    journal: &mut impl Journal,
    policy: &Policy,
    needs: Needs,
    classifier: impl FnOnce() -> Result<OwnedFd>,
) -> Result<()> {
    let before = journal.noted()?;
    let result = make(netns, journal, policy, needs, classifier);
    if result.is_err() {
        take_back(netns, journal, policy, before);
    }
    result
}

fn make(
    netns: &NetNs,
    journal: &mut impl Journal,
    policy: &Policy,
    needs: Needs,
    classifier: impl FnOnce() -> Result<OwnedFd>,
) -> Result<()> {
    if needs.lo6 {
        journal.note(journal.noted()? | meta_flag::ADDED_LO6)?;
        passthrough::add(netns)?;
    }
    let policy = &Policy { ipv6: needs.ipv6, ..policy.clone() };
    let noted = journal.noted()?;
    let needed = tproxy::changes_of(policy);
    let gone = tproxy::gone(netns, policy, needed & noted)?;
    let missing = gone.iter().fold(needed & !noted, |missing, (flag, _)| missing | flag);
    if missing != 0 {
        journal.note(noted | missing)?;
        let made = tproxy::apply(netns, policy, missing);
        // What was so already is not to be taken back.
        journal.note(noted | made.as_ref().copied().unwrap_or(0))?;
        made?;
    }
    if !policy.virtual_interfaces.is_empty() {
        journal.note(journal.noted()? | meta_flag::VIRTUAL)?;
        // Before the rules: what they take finds no socket, and a reset would be the answer.
        classifier::add(netns, &policy.virtual_interfaces, &classifier()?)?;
        virtual_interfaces::add(netns, policy)?;
    }
    Ok(())
}

/// What was changed for a policy and somebody has taken back, in words.
///
/// # Errors
///
/// If the namespace cannot be looked at.
pub fn gone(netns: &NetNs, policy: &Policy, noted: u32) -> Result<Vec<String>> {
    let changes = tproxy::gone(netns, policy, noted & tproxy::changes_of(policy))?;
    let mut gone: Vec<String> = changes.into_iter().map(|(_, what)| what).collect();
    if noted & meta_flag::VIRTUAL != 0 {
        let missing = classifier::missing(netns, &policy.virtual_interfaces)?;
        gone.extend(missing.into_iter().map(|name| format!("the tc classifier of {name}")));
    }
    Ok(gone)
}

/// Takes back, as far as possible, what was changed since `before` for a policy that does not come into force. Virtual
/// interfaces are left to [`keep_virtual_interfaces`].
pub fn take_back(netns: &NetNs, journal: &mut impl Journal, policy: &Policy, before: u32) {
    let Ok(mut noted) = journal.noted() else { return };
    let new = noted & !before;
    if new & meta_flag::ADDED_LO6 != 0 && passthrough::remove(netns).is_ok() {
        noted &= !meta_flag::ADDED_LO6;
    }
    if tproxy::undo(netns, policy, new).is_ok() {
        noted &= !TPROXY | before;
    }
    // If this fails more is noted than there is, and detach looks for it in vain.
    let _ = journal.note(noted);
}

/// Takes back what TPROXY mode has changed under a policy.
///
/// # Errors
///
/// The kernel's.
pub fn leave_tproxy(netns: &NetNs, journal: &mut impl Journal, policy: &Policy) -> Result<()> {
    let noted = journal.noted()?;
    tproxy::undo(netns, policy, noted)?;
    journal.note(noted & !TPROXY)
}

/// Takes back what virtual interfaces have needed, but not under the policy in force.
///
/// # Errors
///
/// The kernel's.
pub fn keep_virtual_interfaces(netns: &NetNs, in_force: Option<&Policy>) -> Result<()> {
    virtual_interfaces::keep(netns, in_force)?;
    classifier::keep(netns, in_force.map_or(&[][..], |policy| &policy.virtual_interfaces))
}

/// Takes back everything that is noted, under any of these policies; says what could not be.
pub fn restore(netns: &NetNs, noted: u32, policies: &[&Policy]) -> Vec<String> {
    let mut left = Vec::new();
    let mut check = |result: Result<()>, what: &str| {
        left.extend(result.err().map(|e| format!("{what} could not be removed: {e}")));
    };
    if noted & meta_flag::ADDED_LO6 != 0 {
        check(passthrough::remove(netns).map(drop), "::6 on lo");
    }
    for policy in policies.iter().filter(|policy| policy.mode == Mode::Tproxy) {
        check(tproxy::undo(netns, policy, noted), "the rules and routes of TPROXY mode");
    }
    if noted & meta_flag::VIRTUAL != 0 {
        check(virtual_interfaces::keep(netns, None), "the rules and routes of the virtual interfaces");
        check(classifier::keep(netns, &[]), "the classifiers of the virtual interfaces");
    }
    left
}

/// What a policy may have changed, for a user who has to look himself because the journal is lost.
pub fn possible_changes(policy: &Policy) -> Vec<&'static str> {
    let lo6 = policy.ipv6.then_some("::6 on lo (`ip -6 address show dev lo`)");
    let tproxy = (policy.mode == Mode::Tproxy)
        .then_some("rules and routes for TPROXY (`ip rule`, `ip -6 rule`), and tcp_fwmark_accept and fwmark_reflect in net.ipv4 and net.ipv6");
    let guests = (!policy.virtual_interfaces.is_empty())
        .then_some("rules and routes of table 15001 (`ip rule`, `ip -6 rule`) and tc filters (`tc filter show dev IF ingress`)");
    let time_wait = time_wait::is_wanted(policy).then_some("net.ipv4.tcp_max_tw_buckets");
    lo6.into_iter().chain(tproxy).chain(guests).chain(time_wait).collect()
}
