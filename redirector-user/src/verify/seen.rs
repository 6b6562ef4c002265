//! A probe and what was seen of it, judged by what the policy says.

use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::Serialize;

use super::plan::Attempt;
use super::sockets::{Accepted, Connected};
use crate::base::error::Error;
use crate::instance::connections::Flow;
use crate::sys::test_run::Lookup;

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// What was seen is what the policy says.
    Ok,
    /// It is not.
    Failed,
    /// It was not tried.
    Skipped,
}

/// What the policy says.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Expected {
    /// `outbound`, `inbound`, `dns`, `pass`, `refused`.
    pub verdict: &'static str,
    /// Port of the proxy.
    pub port: Option<u16>,
    /// The rule's counter.
    pub rule: Option<&'static str>,
}

/// What was seen; null: could not be seen in this way.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Seen {
    /// Why the connection was not made.
    pub error: Option<String>,
    /// The client's own address.
    pub client: Option<SocketAddr>,
    /// getpeername of the client.
    pub peer: Option<SocketAddr>,
    /// Where it arrived, by the kernel's table of sockets.
    pub arrived_at: Option<SocketAddr>,
    /// Original destination: SO_ORIGINAL_DST of our listener, or the exposed map if the proxy has the connection.
    pub original_dst: Option<SocketAddr>,
    /// The rule that the exposed map has with it.
    pub rule: Option<&'static str>,
    /// Our listener that accepted it.
    pub accepted_at: Option<SocketAddr>,
    /// getpeername of the accepted socket.
    pub accepted_peer: Option<SocketAddr>,
    /// What the attached program decided, if it was asked: `given`, `dropped`, `passed`.
    pub program: Option<&'static str>,
}

/// A probe.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Probe {
    /// `proxy_to_own_pod` (what istio-validation does), `outbound`, `dns` (TCP), `dns_udp`, `inbound`.
    pub probe: &'static str,
    /// `ipv4`, `ipv6`.
    pub family: &'static str,
    /// `connection`: a real one; `datagram`: a real question; `program`: the attached program was asked.
    pub how: &'static str,
    /// Who listened: `proxy`, or `own`: we did, because the proxy does not; null: it does not go to the proxy.
    pub listener: Option<&'static str>,
    /// The user of the connection.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The address it was bound to; of a SYN that the program was asked about: its sender.
    pub bind: Option<IpAddr>,
    /// Destination.
    pub to: Option<SocketAddr>,
    /// What the policy says; null if it was not tried.
    pub expected: Option<Expected>,
    /// What was seen.
    pub seen: Seen,
    /// The verdict.
    pub status: Status,
    /// What is wrong, or why it was not tried.
    pub why: Vec<String>,
}

fn family(v6: bool) -> &'static str {
    if v6 { "ipv6" } else { "ipv4" }
}

impl Probe {
    pub(super) fn new(attempt: &Attempt) -> Self {
        let expected = &attempt.expected;
        Self {
            probe: attempt.kind,
            family: family(attempt.to.is_ipv6()),
            how: "none",
            listener: None,
            uid: attempt.user.map(|user| user.uid),
            gid: attempt.user.map(|user| user.gid),
            bind: attempt.bind,
            to: Some(attempt.to),
            expected: Some(Expected {
                verdict: expected.verdict.name(),
                port: expected.port,
                rule: expected.rule,
            }),
            seen: Seen::default(),
            status: Status::Ok,
            why: Vec::new(),
        }
    }

    pub(super) fn skipped(kind: &'static str, v6: bool, why: String) -> Self {
        Self {
            probe: kind,
            family: family(v6),
            how: "none",
            listener: None,
            uid: None,
            gid: None,
            bind: None,
            to: None,
            expected: None,
            seen: Seen::default(),
            status: Status::Skipped,
            why: vec![why],
        }
    }

    /// The others go on. Where lo has no `::1`, and none is needed, nothing can be bound to an address of its kind.
    pub(super) fn untried(attempt: &Attempt, error: &Error) -> Self {
        let mut probe = Self::new(attempt);
        let why = format!("it could not be made: {error}");
        let is_of_lo = attempt.bind.is_some_and(|bind| bind.is_ipv6()) || attempt.to.is_ipv6();
        if is_of_lo && why.contains("Cannot assign requested address") {
            probe.skip(why)
        } else {
            probe.fail(why)
        }
        probe
    }

    pub(super) fn fail(&mut self, why: String) {
        // What was not tried has not failed.
        if self.status != Status::Skipped {
            self.status = Status::Failed;
            self.why.push(why);
        }
    }

    /// The rule's counter did not rise. Of a question without an answer it is all that is known.
    pub(super) fn fail_undecided(&mut self) {
        if self.how == "datagram" && self.status == Status::Skipped {
            (self.status, self.why) = (Status::Ok, Vec::new());
        }
        self.fail("the counter of the rule did not rise: another rule decided, or no program ran".into());
    }

    pub(super) fn skip(&mut self, why: String) {
        self.status = Status::Skipped;
        self.why = vec![why];
    }

    fn port(&self) -> Option<u16> {
        self.expected.as_ref().and_then(|expected| expected.port)
    }

    fn expect<T: PartialEq + std::fmt::Display>(&mut self, what: &str, seen: Option<&T>, wanted: &T) {
        match seen {
            Some(seen) if seen == wanted => {}
            Some(seen) => self.fail(format!("{what} is {seen}, not {wanted}")),
            None => self.fail(format!("{what} is not known; it should be {wanted}")),
        }
    }

    /// A connection that was made inside the pod.
    pub(super) fn judge_connection(&mut self, attempt: &Attempt) {
        let seen = self.seen.clone();
        let Some(port) = self.port() else {
            // It passes (or routing refuses it): then nobody redirects it, whoever answers.
            if let Some(arrived) = seen.arrived_at.filter(|arrived| *arrived != attempt.to) {
                self.fail(format!("it passes under this policy, and went to {arrived}"));
            }
            return;
        };
        if let Some(error) = seen.error {
            self.fail(format!("connect: {error}"));
            return;
        }
        let arrived = seen.arrived_at.map(|at| at.port());
        self.expect("the port it arrived at", arrived.as_ref(), &port);
        self.expect("the client's getpeername", seen.peer.as_ref(), &attempt.to);
        self.expect("the original destination", seen.original_dst.as_ref(), &attempt.to);
        if let Some(rule) = attempt.expected.rule {
            self.expect("the rule in the exposed map", seen.rule.as_ref(), &rule);
        }
        self.judge_accepted(port);
    }

    /// A connection out of another namespace.
    pub(super) fn judge_arrival(&mut self, attempt: &Attempt) {
        let seen = self.seen.clone();
        if let Some(error) = seen.error {
            self.fail(format!("connect from the namespace of --from: {error}"));
            return;
        }
        // Where the proxy listens, the counter of the rule is all there is to see.
        if let (Some("own"), Some(port)) = (self.listener, self.port()) {
            self.expect("the original destination", seen.original_dst.as_ref(), &attempt.to);
            self.judge_accepted(port);
        }
    }

    /// What a listener of ours saw, if there is one.
    fn judge_accepted(&mut self, port: u16) {
        if self.listener != Some("own") {
            return;
        }
        let seen = self.seen.clone();
        self.expect("the port of the listener", seen.accepted_at.map(|at| at.port()).as_ref(), &port);
        if let Some(client) = seen.client {
            self.expect("the client's address at the listener", seen.accepted_peer.as_ref(), &client);
        }
    }

    /// A question over UDP. `came`: whether it came to a server of ours, if there is one.
    pub(super) fn judge_question(
        &mut self,
        attempt: &Attempt,
        error: Option<String>,
        came: Option<bool>,
        answered_by: Option<SocketAddr>,
    ) {
        self.seen.peer = answered_by;
        self.seen.error.clone_from(&error);
        if let Some(error) = error {
            return self.fail(format!("sendto: {error}"));
        }
        if came == Some(false) {
            return self.fail("the question did not come to the port".into());
        }
        if self.listener == Some("proxy") && answered_by.is_none() {
            // It may ask others, which may not be there: that says nothing of the programs, and nothing for them.
            return self.skip(
                "sent to the proxy's DNS server, which has not answered within a second: see whether it runs"
                    .into(),
            );
        }
        if came == Some(true) || answered_by.is_some() {
            self.expect("the sender of the answer", answered_by.as_ref(), &attempt.to);
            if answered_by.is_some_and(|by| by != attempt.to && !by.ip().is_loopback()) {
                self.why.push(
                    "the server has to answer from the address that was asked: let it listen on 127.0.0.1 (and ::1)".into(),
                );
            }
        }
    }

    /// What the program said of a SYN from the network.
    pub(super) fn judge_lookup(&mut self, lookup: Lookup) {
        self.seen.program = Some(match lookup {
            Lookup::Given(_) | Lookup::GivenToGroup => "given",
            Lookup::Drop => "dropped",
            Lookup::Pass => "passed",
        });
        match lookup {
            Lookup::Given(_) | Lookup::GivenToGroup => {}
            Lookup::Drop => self.fail("dropped: no listener of the proxy is registered for it".into()),
            Lookup::Pass => self.fail("passed: it would reach the application without the proxy".into()),
        }
    }
}

impl Seen {
    pub(super) fn of_client(&mut self, connected: &Connected) {
        self.error.clone_from(&connected.error);
        (self.client, self.peer) = (connected.local, connected.peer);
        self.arrived_at = connected.arrived_at;
    }

    pub(super) fn of_flow(&mut self, flow: Option<&Flow>) {
        self.original_dst = flow.map(|flow| flow.original);
        self.rule = flow.map(|flow| flow.rule);
    }

    pub(super) fn of_listener(&mut self, accepted: Option<&Accepted>) {
        self.accepted_at = accepted.map(|accepted| accepted.listener);
        self.accepted_peer = accepted.and_then(|accepted| accepted.peer);
        self.original_dst = accepted.and_then(|accepted| accepted.original);
    }
}
