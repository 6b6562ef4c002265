//! What attach is asked for, and what it comes to.

use crate::compile::mapped_policy::IdMappedPolicy;
use crate::pod::Target;
use crate::routes::RouteSnapshot;

/// What to attach.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Name of the instance.
    pub name: &'a str,
    /// What is captured.
    pub target: &'a Target,
    /// How.
    pub policy: &'a IdMappedPolicy,
    /// A new instance tells its decisions to `redirector trace`.
    pub trace: bool,
}

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
    /// What happened.
    pub outcome: Outcome,
    /// Links that had been detached by hand were attached again.
    pub repaired: bool,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Addresses, routes and interfaces of the namespace as they are in force now; None if they were not read.
    pub routes: Option<RouteSnapshot>,
}
