//! A bound on the pod's TIME_WAIT sockets.
//!
//! A captured connection from the network keeps the port that it was made to. Where the proxy ends it first, it does so for a
//! minute after its end: a host that makes one short connection to each port of `ip_local_port_range` would leave none to
//! connect() and bind(). Beyond `tcp_max_tw_buckets`, which is the namespace's own, the kernel closes without TIME_WAIT
//! (net/ipv4/tcp_minisocks.c: tcp_time_wait). Half of the ports stay free therefore.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sysctl;
use crate::base::error::{Context, Error, Result};
use crate::policy::{Policy, Selection};
use crate::sys::netns::NetNs;

const BUCKETS: &str = "/proc/sys/net/ipv4/tcp_max_tw_buckets";
const PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// A change of `net.ipv4.tcp_max_tw_buckets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimeWaitBound {
    /// As it was.
    pub before: u32,
    /// What attach made of it.
    pub now: u32,
}

/// Whether connections from the network keep ports of the pod's choice.
pub fn is_wanted(policy: &Policy) -> bool {
    policy.inbound_ports == Selection::All
}

/// Lowers the bound to half of the ports that the namespace chooses from, unless it is lower. `note` keeps the change before it
/// is made. Returns why the bound could not be lowered.
///
/// # Errors
///
/// What `note` returns, and if the namespace cannot be entered.
pub fn lower(
    netns: &NetNs,
    mut note: impl FnMut(Option<TimeWaitBound>) -> Result<()> + Send,
) -> Result<Option<Error>> {
    netns.run(|| {
        let refused = match needed() {
            Ok(change) => {
                note(change)?;
                let Some(TimeWaitBound { now, .. }) = change else { return Ok(None) };
                let Err(e) = write(now) else { return Ok(None) };
                e
            }
            Err(e) => e,
        };
        note(None)?;
        Ok(Some(refused))
    })
}

fn needed() -> Result<Option<TimeWaitBound>> {
    let (before, now) = (read(BUCKETS)?, half_of_ports(&text(PORTS)?)?);
    Ok((now < before).then_some(TimeWaitBound { before, now }))
}

/// Gives the namespace its own bound back, unless another one has been set.
///
/// # Errors
///
/// The kernel's.
pub fn restore(netns: &NetNs, change: TimeWaitBound) -> Result<()> {
    netns.run(|| if read(BUCKETS)? == change.now { write(change.before) } else { Ok(()) })
}

fn half_of_ports(range: &str) -> Result<u32> {
    let bounds = range.split_whitespace().map(str::parse).collect::<std::result::Result<Vec<u32>, _>>();
    match bounds.as_deref() {
        Ok([first, last]) if first <= last => Ok((last - first).div_ceil(2)),
        _ => Err(Error::failed(format!("{PORTS} is {range:?}"))),
    }
}

fn read(path: &str) -> Result<u32> {
    let text = text(path)?;
    text.trim().parse().map_err(|e| Error::failed(format!("{path} is {text:?}: {e}")))
}

fn text(path: &str) -> Result<String> {
    std::fs::read_to_string(path).context(|| format!("read {path}"))
}

fn write(value: u32) -> Result<()> {
    sysctl::write(BUCKETS, &value.to_string()).context(|| format!("write {value} to {BUCKETS}"))
}
