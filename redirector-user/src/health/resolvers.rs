//! Whom the pod's processes ask for names, beside whose queries are captured: resolv.conf is read at the attach, as
//! istio-iptables reads it, and what it says may have changed since.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use super::finding::{Finding, Level, some_of};
use super::processes::Process;
use crate::base::error::{Context, Result};
use crate::policy::{Dns, Policy, nameservers_of};

/// Pods have a file system for each container, and seldom more than a few containers.
const MOST_FILE_SYSTEMS: usize = 32;

/// A process, and the servers that its resolv.conf names.
pub(super) type Asked = (String, Vec<IpAddr>);

/// Reads whom the processes ask, one of each mount namespace.
///
/// # Errors
///
/// If a resolv.conf that is there cannot be read.
pub(super) fn read(policy: &Policy, processes: &[Process]) -> Result<Vec<Asked>> {
    if !matches!(policy.dns, Dns::Servers(_)) {
        return Ok(Vec::new());
    }
    let mut first = BTreeMap::new();
    for process in processes.iter().filter(|process| !policy.proxy_uids.contains(&process.uid)) {
        // None: it has ended.
        if let Ok(mounts) = std::fs::read_link(format!("/proc/{}/ns/mnt", process.pid)) {
            first.entry(mounts).or_insert(process);
        }
    }
    let mut asked = Vec::new();
    for process in first.into_values().take(MOST_FILE_SYSTEMS) {
        let root = format!("/proc/{}/root", process.pid);
        match nameservers_of(Path::new(&root)) {
            Ok(servers) => asked.push((process.told(), servers)),
            // No such file, or the process has ended.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound) => {}
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
            Err(e) => return Err(e).context(|| format!("read {root}/etc/resolv.conf")),
        }
    }
    Ok(asked)
}

/// Names the servers whose queries go past the proxy.
pub(super) fn judge(instance: &str, policy: &Policy, asked: &[Asked]) -> Option<Finding> {
    let Dns::Servers(captured) = &policy.dns else { return None };
    let mut level = Level::Notice;
    let mut all = Vec::new();
    for (process, servers) in asked {
        // A server in the pod is the pod's own affair; what it asks others is captured, or not, as what anyone does.
        let abroad = servers.iter().filter(|server| !server.is_loopback());
        let (taken, passed): (Vec<_>, Vec<_>) = abroad.partition(|server| captured.contains(server));
        if passed.is_empty() {
            continue;
        }
        if taken.is_empty() {
            level = Level::Fault;
        }
        let passed: Vec<String> = passed.into_iter().map(ToString::to_string).collect();
        all.push(format!("{process} asks {}", passed.join(", ")));
    }
    (!all.is_empty()).then(|| {
        Finding::new(
            level,
            "dns_server_not_captured",
            format!("resolv.conf names servers whose queries are not captured: {}", some_of(&all, 8)),
            "names are asked past the proxy's DNS server",
            format!(
                "attach again, as {instance} was, for the present resolv.conf, or with --capture-all-dns"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_beside_those_of_the_policy() {
        let policy = |servers: &[&str]| Policy {
            dns: Dns::Servers(servers.iter().map(|it| it.parse().unwrap()).collect()),
            ..Policy::default()
        };
        let asked = |servers: &[&str]| {
            vec![("pid 7 app".to_owned(), servers.iter().map(|it| it.parse().unwrap()).collect())]
        };
        let judge = |policy: &Policy, servers: &[&str]| {
            judge("pod", policy, &asked(servers)).map(|finding| (finding.level, finding.what))
        };
        let one = policy(&["10.96.0.10"]);
        assert_eq!(judge(&one, &["10.96.0.10"]), None);
        assert_eq!(judge(&one, &[]), None);
        assert_eq!(judge(&one, &["127.0.0.53"]), None);
        let (level, what) = judge(&one, &["127.0.0.53", "169.254.20.10"]).unwrap();
        assert_eq!(level, Level::Fault);
        assert!(what.ends_with("pid 7 app asks 169.254.20.10"), "{what}");
        let (level, what) = judge(&one, &["10.96.0.10", "8.8.8.8"]).unwrap();
        assert_eq!(level, Level::Notice);
        assert!(what.ends_with("asks 8.8.8.8"), "{what}");
        assert_eq!(judge(&Policy { dns: Dns::All, ..Policy::default() }, &["8.8.8.8"]), None);
        assert_eq!(judge(&Policy { dns: Dns::Off, ..Policy::default() }, &["8.8.8.8"]), None);
    }
}
