//! What the state of an instance says by itself.

use std::path::Path;

use redirector_common::abi::name;

use super::finding::{Finding, Health, Level, some_of};
use crate::base::error::Error;
use crate::instance::directory::Directory;
use crate::instance::lock::WriteLock;
use crate::instance::status::status;

/// A command makes it or takes it down, or one that was killed has left it.
pub(super) fn inert(root: &Directory, name: &str) -> Finding {
    let lock = WriteLock::try_take(root);
    // Nobody changes it while the lock is here: it may have become active since it was read.
    let is_left = !matches!(lock, Ok(None)) && status(root, name).is_ok_and(|status| status.state == "inert");
    drop(lock);
    if !is_left {
        let what = "a command that makes it or takes it down is at work".into();
        let remedy = "look again in a moment".into();
        return Finding::new(Level::Starting, "inert", what, "nothing is captured", remedy);
    }
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

/// Maps whose pin is gone: the programs go on with them, and no command can open them again.
pub(super) fn missing_pins(dir: &Path, instance: &str) -> Option<Finding> {
    let is_gone = |map: &&&str| {
        dir.join(map).symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    };
    let all = name::MAPS.iter().chain([&name::SOCKETS]);
    let gone: Vec<String> = all.filter(is_gone).map(|map| (*map).to_owned()).collect();
    (!gone.is_empty()).then(|| {
        Finding::fault(
            "damaged",
            format!("pins are gone from {}: {}", dir.display(), some_of(&gone, 4)),
            "traffic goes on as it was, and follows no change of addresses, routes and policy",
            format!("redirector detach --name {instance}, then attach again"),
        )
    })
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
