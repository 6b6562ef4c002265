//! What the state of an instance says by itself.

use super::finding::{Finding, Health};
use crate::base::error::Error;

/// A command that was killed has left it.
pub(super) fn inert() -> Finding {
    Finding::fault(
        "inert",
        "a command that made it or took it down was killed".into(),
        "nothing is captured",
        "redirector list sweeps it".into(),
    )
}

/// An instance whose objects cannot be read.
pub(super) fn unopened(name: &str, error: &Error) -> Health {
    let (state, finding) = if error.is_no_verdict() {
        ("unreadable", Finding::unknown("the instance", error))
    } else {
        let effect = "what is captured is not certain";
        let remedy = format!("redirector detach --name {name}, then attach again");
        ("damaged", Finding::fault("damaged", error.to_string(), effect, remedy))
    };
    Health { name: name.to_owned(), state, pod: None, captures: None, findings: vec![finding] }
}

/// `problem; remedy`.
pub(super) fn told_by_status(name: &str, problem: &str) -> Finding {
    let (what, remedy) = problem.split_once("; ").unwrap_or((problem, ""));
    let (kind, effect) = if what.contains("captures nothing new") {
        ("draining", "new connections go past the proxy")
    } else if what.contains("is gone") && !what.contains("proxy's cgroup") {
        ("target_gone", "there is nothing left to capture")
    } else {
        ("proxy_cgroup_gone", "the proxy's own connections loop")
    };
    let remedy = if kind == "proxy_cgroup_gone" {
        remedy.to_owned()
    } else {
        format!("redirector detach --name {name}")
    };
    Finding::fault(kind, what.to_owned(), effect, remedy)
}
