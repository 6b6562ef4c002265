//! The original destination of each captured connection that is alive: what its address stands for
//! (`ORIGINAL_DST`), or what is stored for it alone (`FLOWS`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use aya::maps::MapError;
use redirector_common::Addr;
use redirector_common::abi::{self, DIRECT, FlowKey, OriginalDst, may_be_virtual};
use redirector_common::rule::{Counter, Verdict};
use schemars::JsonSchema;
use serde::Serialize;

use super::directory::Directory;
use super::find;
use super::maps::{Instance, whole};
use crate::base::error::{Context, Result};
use crate::netlink::sock_diag::{self, Socket};
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

/// Original destinations of the connections that are alive: of the clients' sockets in the namespace.
pub fn original_dst(root: &Directory, name: &str) -> Result<Vec<Flow>> {
    let instance = Instance::open(root, name)?;
    let Some(netns) = find::netns(root, name) else { return Ok(Vec::new()) };
    let sockets = netns.run(sock_diag::connections)?;
    let mut flows = by_address(&instance, &sockets)?;
    flows.extend(stored(&instance, &sockets)?);
    flows.sort_by_key(|f| (f.client, f.proxy));
    Ok(flows)
}

/// How many captured connections are alive.
pub(super) fn alive(instance: &Instance, netns: Option<&NetNs>) -> Result<u64> {
    let Some(netns) = netns else { return instance.live() };
    let sockets = netns.run(sock_diag::connections)?;
    Ok((by_address(instance, &sockets)?.len() + stored(instance, &sockets)?.len()) as u64)
}

/// Those whose destination is stored for them alone. (A walk through `FLOWS` may miss some while others go:
/// `trie_get_next_key`.)
fn stored(instance: &Instance, sockets: &[Socket]) -> Result<Vec<Flow>> {
    let map = instance.flows()?;
    let of = |socket: &Socket| {
        let key = FlowKey {
            client: socket.local.ip().into(),
            proxy: socket.remote.ip().into(),
            client_port: socket.local.port(),
            proxy_port: socket.remote.port(),
        };
        match map.get(&whole(key), 0) {
            // One that passes between addresses of the pod was not redirected.
            Ok(flow) if flow.verdict == Verdict::Pass as u16 || flow.closed != 0 => None,
            Ok(flow) => Some(Ok(Flow {
                client: socket.local,
                proxy: socket.remote,
                original: at(flow.addr, flow.port),
                traffic: traffic(flow.verdict),
                rule: rule(flow.rule),
            })),
            Err(MapError::KeyNotFound) => None,
            Err(e) => Some(Err(e).context(|| format!("read FLOWS of {}", instance.name))),
        }
    };
    sockets.iter().filter_map(of).collect()
}

/// Those that go to a virtual destination: the clients' sockets, whose peer it is.
fn by_address(instance: &Instance, sockets: &[Socket]) -> Result<Vec<Flow>> {
    let map = instance.original_dst()?;
    let mut known: HashMap<Addr, Option<OriginalDst>> = HashMap::new();
    let mut flows = Vec::new();
    for socket in sockets {
        let addr = Addr::from(socket.remote.ip());
        // One without an inode has no descriptor any more.
        if !may_be_virtual(&addr) || socket.inode == 0 {
            continue;
        }
        let original = *known.entry(addr).or_insert_with(|| map.get(&whole(addr.v4_be()), 0).ok());
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
