//! The exposed map of an instance: the original destination of each connection that is alive.

use super::directory::Directory;
use super::maps::Instance;
use crate::base::error::{Context, Result};
use redirector_common::abi::{FlowKey, OriginalDst};
use redirector_common::rule::{Counter, Verdict};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// An entry of the exposed map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// The exposed map, live: original destinations of the connections that are alive.
pub fn original_dst(root: &Directory, name: &str) -> Result<Vec<Flow>> {
    let map = Instance::open(root, name)?.original_dst()?;
    let mut flows = Vec::new();
    for entry in map.iter() {
        match entry {
            // The proxy's own connections in TPROXY mode were not redirected.
            Ok((_, value)) if value.verdict == Verdict::Pass as u16 => {}
            Ok((key, value)) => flows.push(flow(&key, &value)),
            // An entry that went away during the walk.
            Err(aya::maps::MapError::KeyNotFound) => {}
            Err(e) => return Err(e).context(|| format!("read ORIGINAL_DST of {name}")),
        }
    }
    flows.sort_by_key(|f| (f.client, f.proxy));
    Ok(flows)
}

fn flow(key: &FlowKey, value: &OriginalDst) -> Flow {
    let at = |addr, port| SocketAddr::new(IpAddr::from(addr), port);
    Flow {
        client: at(key.client, key.client_port),
        proxy: at(key.proxy, key.proxy_port),
        original: at(value.addr, value.port),
        traffic: Verdict::ALL.get(value.verdict as usize).map_or("unknown", |verdict| verdict.name()),
        rule: Counter::ALL.get(value.rule as usize).map_or("unknown", |c| c.name()),
    }
}
