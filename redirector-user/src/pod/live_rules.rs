//! Live rules of a mesh (Istio, Consul, linkerd, Kuma) in a namespace: attaching beside them would redirect twice.

use crate::base::error::{Error, Result};
use crate::base::text::nul_terminated;
use crate::netlink::{Payload, nf_tables};
use crate::sys::netns::NetNs;
use crate::sys::xtables;

/// How to get rid of them.
pub const REMEDY: &str = "remove them first (Istio's by istio-iptables --cleanup-only in the namespace, with \
     --native-nftables if it has made tables), or restart the pod without the mesh's init container or CNI plugin";

/// Refuses a namespace whose netfilter has `ISTIO_*` chains, or chains in nftables tables of Istio.
///
/// # Errors
///
/// [`Error::input`] with the chains' names and how to remove them.
pub fn refuse_meshes(netns: &NetNs) -> Result<()> {
    let chains = netns.run(|| Ok(Netfilter::read()?.meshes()))?;
    if chains.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!(
        "the network namespace has live netfilter rules of a service mesh ({}), and would be \
         redirected twice",
        chains.join(", ")
    ))
    .remedy(REMEDY))
}

/// What a namespace has of netfilter, but for the rules of nf_tables: read once, looked at by everybody.
pub struct Netfilter {
    /// Tables of legacy iptables.
    pub legacy: Vec<xtables::Table>,
    /// Chains of nf_tables, which iptables-nft uses, too, as the kernel tells them.
    pub chains: Vec<Vec<u8>>,
}

impl Netfilter {
    /// Of the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn read() -> Result<Self> {
        let chains = nf_tables::payloads("the chains of nf_tables", nf_tables::GETCHAIN)?;
        Ok(Self { legacy: xtables::tables()?, chains })
    }

    /// Names of the meshes' chains, by both iptables flavours, and of Istio's own nftables tables.
    pub fn meshes(&self) -> Vec<String> {
        let mut chains: Vec<String> = self.chains.iter().filter_map(|chain| of_a_mesh(chain)).collect();
        chains.extend(self.legacy.iter().flat_map(|table| legacy_chains(&table.entries)));
        chains.sort();
        chains.dedup();
        chains
    }
}

/// How the chains begin of Istio, Consul (`sdk/iptables`; by nft in the table `consul_tproxy`), linkerd (`proxy-init`) and
/// Kuma.
const PREFIXES: [&str; 5] = ["ISTIO_", "CONSUL_PROXY_", "CONSUL_DNS_", "PROXY_INIT_", "KUMA_MESH_"];

fn is_name_of_a_mesh(chain: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| chain.starts_with(prefix.as_bytes()))
}

/// How the tables begin that Istio makes by nft, and the chains in them that are not base chains: `istio-proxy-nat` by
/// `istio-iptables --native-nftables` (`tools/istio-nftables/pkg/constants`), `istio-ambient-nat` by its CNI plugin
/// (`cni/pkg/nftables`). A table with base chains alone redirects nothing.
const NATIVE: &str = "istio-";

/// Names of the `ISTIO_*` chains in a table of legacy iptables. A chain begins with a rule whose
/// target is called `ERROR` (`struct xt_error_target`): 2 bytes of size, 29 of the target's name,
/// 1 of revision, then the name of the chain.
fn legacy_chains(entries: &[u8]) -> Vec<String> {
    const TARGET: &[u8] = b"ERROR\0";
    const TO_NAME: usize = 30;
    let begins = |at: &usize| {
        let chain = entries.get(at + TO_NAME..).unwrap_or_default();
        entries[*at..].starts_with(TARGET) && is_name_of_a_mesh(chain)
    };
    let name = |at: usize| nul_terminated(&entries[at + TO_NAME..]);
    (0..entries.len()).filter(begins).map(name).collect()
}

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;

/// What to call a chain if it is one of Istio's: its name, or for a table of Istio's own that table's.
fn of_a_mesh(payload: &[u8]) -> Option<String> {
    let chain = Payload::split(payload, nf_tables::HEADER)?;
    let text = |kind| chain.get(kind).map(nul_terminated);
    let name = text(NFTA_CHAIN_NAME)?;
    if is_name_of_a_mesh(name.as_bytes()) {
        return Some(name);
    }
    let table = text(NFTA_CHAIN_TABLE)?;
    (table.starts_with(NATIVE) && name.starts_with(NATIVE)).then(|| format!("nftables table {table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_legacy_iptables() {
        let chain = |name: &str| {
            let mut entry = vec![64, 0];
            for (text, len) in [("ERROR", 30), (name, 32)] {
                entry.extend(text.bytes());
                entry.resize(entry.len() + len - text.len(), 0);
            }
            entry
        };
        let table = [chain("PREROUTING"), chain("ISTIO_OUTPUT"), vec![1; 40], chain("ISTIO_IN")].concat();
        assert_eq!(legacy_chains(&table), ["ISTIO_OUTPUT", "ISTIO_IN"]);
        for mesh in ["CONSUL_PROXY_OUTPUT", "CONSUL_DNS_REDIRECT", "PROXY_INIT_REDIRECT", "KUMA_MESH_INBOUND"]
        {
            assert_eq!(legacy_chains(&chain(mesh)), [mesh]);
        }
        assert_eq!(legacy_chains(&table[..40]), Vec::<String>::new());
        assert_eq!(legacy_chains(b"ERROR\0ISTIO_"), Vec::<String>::new());
    }

    #[test]
    fn malformed_messages_are_no_chains() {
        assert_eq!(of_a_mesh(&[0; 3]), None);
        assert_eq!(of_a_mesh(&[0; 40]), None);
    }
}
