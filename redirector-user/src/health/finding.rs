//! What is wrong, in the same form for every command that says so.

use schemars::JsonSchema;
use serde::Serialize;

use crate::base::error::{Error, Kind};
use crate::pod::name::PodName;

/// How bad it is. Commands end with 1 if anything is a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Traffic is refused, loops, or goes another way than the policy says.
    Fault,
    /// It could not be looked at.
    Unknown,
    /// It will be a fault if it stays: the proxy of a new pod does not listen yet.
    Starting,
    /// Worth knowing; traffic is as the policy says.
    Notice,
}

impl Level {
    /// As people read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fault => "FAULT",
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Notice => "notice",
        }
    }
}

impl Level {
    /// As metrics have it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Unknown => "unknown",
            Self::Starting => "starting",
            Self::Notice => "notice",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// Which kind, for programs; stable.
    pub kind: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found, on which object.
    pub what: String,
    /// What it means for traffic.
    pub consequence: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    /// Of any level.
    pub fn new(level: Level, kind: &'static str, what: String, consequence: &str, remedy: String) -> Self {
        Self { kind, level, what, consequence: consequence.to_owned(), remedy }
    }

    /// A fault.
    pub fn fault(kind: &'static str, what: String, consequence: &str, remedy: String) -> Self {
        Self::new(Level::Fault, kind, what, consequence, remedy)
    }

    /// A notice.
    pub fn notice(kind: &'static str, what: String, consequence: &str, remedy: String) -> Self {
        Self::new(Level::Notice, kind, what, consequence, remedy)
    }

    /// What could not be looked at, and why.
    pub fn unknown(subject: &str, why: &Error) -> Self {
        let remedy = match why.kind() {
            Kind::Unsupported => "run as root, with the host's /proc",
            _ => "look again in a moment: it may just be coming or going",
        };
        let remedy = why.remedy_on_command_line().unwrap_or(remedy).to_owned();
        Self::new(Level::Unknown, "unknown", format!("{subject}: not known: {why}"), "", remedy)
    }

    /// Whether it is about the proxy's sockets and user, which nobody can expect before the proxy has started.
    pub fn is_about_the_proxy(&self) -> bool {
        self.kind.starts_with("no_listener")
            || self.kind.starts_with("listener_")
            || matches!(self.kind, "no_dns_server" | "proxy_user")
    }

    /// One line, without the remedy.
    pub fn line(&self) -> String {
        if self.consequence.is_empty() {
            self.what.clone()
        } else {
            format!("{}: {}", self.what, self.consequence)
        }
    }
}

/// At most so many of a list, and how many there are beside.
pub fn some_of(list: &[String], most: usize) -> String {
    let shown = list.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match list.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What there is to say of an instance.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Health {
    /// Name of the instance.
    pub name: String,
    /// `active`, `draining`, `inert` or `damaged`.
    pub state: &'static str,
    /// The pod of Kubernetes that it captures.
    pub pod: Option<PodName>,
    /// What it captures, in one line.
    pub captures: Option<String>,
    /// What was found; faults first.
    pub findings: Vec<Finding>,
}

impl Health {
    /// Whether anything is a fault.
    pub fn has_fault(&self) -> bool {
        has_fault(&self.findings)
    }

    /// The worst that was found.
    pub fn worst(&self) -> Option<&Finding> {
        self.findings.first()
    }
}

/// Whether anything is a fault.
pub fn has_fault(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Fault)
}
