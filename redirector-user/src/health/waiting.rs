//! Connections that the kernel has accepted and the proxy has not: it is blocked, or has no descriptor left.

use std::collections::HashSet;
use std::time::Duration;

use super::finding::Finding;
use super::listeners::Listener;
use crate::base::error::Result;
use crate::base::input;
use crate::netlink::sock_diag::Socket;

/// So often, and so long apart, those that wait are looked at: a proxy that is only busy has accepted them by then.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// What is to be said of listeners whose queue does not move. Where no queue has anything nothing is waited for.
pub(super) fn judge(
    listeners: &[Listener],
    connections: impl Fn() -> Result<Vec<Socket>>,
) -> Result<Option<Finding>> {
    let has_some = |listener: &&Listener| listener.socket.queue.is_some_and(|(waiting, _)| waiting > 0);
    let ports: HashSet<u16> =
        listeners.iter().filter(has_some).map(|listener| listener.socket.local.port()).collect();
    if ports.is_empty() {
        return Ok(None);
    }
    // No process has a descriptor of what it has not accepted.
    let waits = |socket: &Socket| socket.inode == 0 && ports.contains(&socket.local.port());
    let look = || -> Result<HashSet<(u16, u64)>> {
        let all = connections()?.into_iter().filter(waits);
        Ok(all.filter_map(|socket| Some((socket.local.port(), socket.cookie?))).collect())
    };
    let mut left = look()?;
    for _ in 0..LOOKS {
        if left.is_empty() {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
        let now = look()?;
        left.retain(|one| now.contains(one));
    }
    let Some((port, _)) = left.iter().min() else { return Ok(None) };
    let of_port = listeners.iter().filter(|listener| listener.socket.local.port() == *port);
    let owner = of_port.filter_map(|listener| listener.owner.clone()).next();
    let owner = owner.unwrap_or_else(|| "process not told".into());
    let used_up = owner.split(' ').nth(1).and_then(descriptors_used_up);
    let (why, remedy) = match used_up {
        Some(most) => (
            format!("; its {most} descriptors are used up"),
            "raise the limit of open files (LimitNOFILE, ulimit -n) and start the proxy again",
        ),
        None => (
            String::new(),
            "see what keeps the process from accepting, or which socket of its port nobody reads",
        ),
    };
    let many = if left.len() == 1 { "connection has" } else { "connections have" };
    Ok(Some(Finding::fault(
        "listener_not_accepting",
        format!("{} {many} waited a second on port {port} ({owner}) to be accepted{why}", left.len()),
        "captured connections get no answer",
        remedy.into(),
    )))
}

/// How many descriptors a process may have, if it has as many.
fn descriptors_used_up(pid: &str) -> Option<usize> {
    let limits = input::of_the_kernel(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let most = line.split_ascii_whitespace().next()?.parse().ok()?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    (open >= most).then_some(most)
}
