//! Whether an instance has room for more, and whether it captures anything.

use super::captures;
use super::finding::Finding;
use crate::instance::status::Status;

/// Whether there is room for more connections, and whether anything is captured at all.
pub(super) fn judge(status: &Status) -> Vec<Finding> {
    let (policy, live) = (&status.record.policy, status.stored_connections);
    let most = u64::from(policy.max_connections);
    let mut findings = Vec::new();
    let raise = || format!("detach {}, and attach again with a larger --max-connections", status.name);
    if live >= most {
        let what = format!("stored connections {live} of {most}: full");
        findings.push(Finding::fault("full", what, "further connections are refused (ENOBUFS)", raise()));
    } else if live * 10 >= most * 9 {
        let what = format!("stored connections {live} of {most}: nearly full");
        findings.push(Finding::notice(
            "nearly_full",
            what,
            "beyond that they are refused (ENOBUFS)",
            raise(),
        ));
    }
    if !captures::outbound(policy) && !captures::inbound(policy) && policy.dns == crate::policy::Dns::Off {
        findings.push(Finding::notice(
            "captures_nothing",
            "the policy captures nothing".into(),
            "all traffic goes past the proxy",
            "attach again without --istio-defaults, or with -i '*' -b '*'".into(),
        ));
    } else if !policy.ipv6 {
        findings.push(Finding::notice(
            "ipv4_only",
            "captures IPv4 only".into(),
            "IPv6 goes past the proxy",
            "attach again with --ipv6 on, if the pod uses IPv6".into(),
        ));
    }
    findings
}
