//! The original destination of each captured connection that is alive: what its address stands for
//! (`ORIGINAL_DST`), or what is stored for it alone (`FLOWS`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use redirector_common::Addr;
use redirector_common::abi::{self, DIRECT, OriginalDst, may_be_virtual};
use redirector_common::rule::{Counter, Verdict};
use schemars::JsonSchema;
use serde::Serialize;

use super::directory::Directory;
use super::find;
use super::maps::Instance;
use crate::base::error::{Context, Result};
use crate::netlink::sock_diag;
use crate::sys::netns::NetNs;

/// A captured connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Flow {
    /// The client, as the proxy's accept() shows it.
    pub client: SocketAddr,
    /// Where the connection was sent.
    pub proxy: SocketAddr,
    /// Where the client wanted to go.
    pub original: SocketAddr,
    /// `outbound`, `inbound` or `dns`.
    pub traffic: &'static str,
    /// Name of the rule that decided.
    pub rule: &'static str,
}

/// Original destinations of the connections that are alive.
pub fn original_dst(root: &Directory, name: &str) -> Result<Vec<Flow>> {
    let instance = Instance::open(root, name)?;
    let mut flows = stored(&instance)?;
    if let Some(netns) = find::netns(root, name) {
        flows.extend(by_address(&instance, &netns)?);
    }
    flows.sort_by_key(|f| (f.client, f.proxy));
    Ok(flows)
}

/// How many captured connections are alive.
pub(super) fn alive(instance: &Instance, netns: Option<&NetNs>) -> Result<u64> {
    let by_address = netns.map_or(Ok(0), |netns| by_address(instance, netns).map(|flows| flows.len()))?;
    Ok(instance.live()? + by_address as u64)
}

/// Those whose destination is stored for them alone.
fn stored(instance: &Instance) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for entry in instance.flows()?.iter() {
        match entry {
            // The proxy's own connections in TPROXY mode were not redirected.
            Ok((_, value)) if value.verdict == Verdict::Pass as u16 || value.closed != 0 => {}
            Ok((key, value)) => flows.push(Flow {
                client: at(key.client, key.client_port),
                proxy: at(key.proxy, key.proxy_port),
                original: at(value.addr, value.port),
                traffic: traffic(value.verdict),
                rule: rule(value.rule),
            }),
            // An entry that went away during the walk.
            Err(aya::maps::MapError::KeyNotFound) => {}
            Err(e) => return Err(e).context(|| format!("read FLOWS of {}", instance.name)),
        }
    }
    Ok(flows)
}

/// Those that go to a virtual destination: the clients' sockets in the namespace, whose peer it is.
fn by_address(instance: &Instance, netns: &NetNs) -> Result<Vec<Flow>> {
    let sockets = netns.run(sock_diag::connections)?;
    let map = instance.original_dst()?;
    let mut known: HashMap<Addr, Option<OriginalDst>> = HashMap::new();
    let mut flows = Vec::new();
    for socket in sockets {
        let addr = Addr::from(socket.remote.ip());
        // One without an inode has no descriptor any more.
        if !may_be_virtual(&addr) || socket.inode == 0 {
            continue;
        }
        let original = *known.entry(addr).or_insert_with(|| map.get(&addr, 0).ok());
        if let Some(original) = original.filter(|original| original.proxy_port == socket.remote.port()) {
            flows.push(Flow {
                client: socket.local,
                proxy: socket.remote,
                original: at(original.addr, original.port),
                traffic: traffic(original.verdict),
                rule: rule(original.rule),
            });
        }
    }
    Ok(flows)
}

fn at(addr: abi::Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from(addr), port)
}

fn traffic(verdict: u16) -> &'static str {
    match verdict {
        2 => "inbound",
        3 => "dns",
        DIRECT => "direct",
        _ => "outbound",
    }
}

fn rule(number: u32) -> &'static str {
    Counter::ALL.get(number as usize).map_or("unknown", |counter| counter.name())
}
