//! Live istio-iptables chains in a namespace: attaching beside them would redirect twice.

use crate::error::{Context, Error, Result};
use crate::sys::netns::NetNs;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::process::Command;

/// Refuses a namespace whose netfilter has `ISTIO_*` chains.
///
/// # Errors
///
/// [`Error::Input`] with the chains' names and how to remove them.
pub fn refuse_istio(netns: &NetNs) -> Result<()> {
    let chains = netns.run(istio_chains).context(|| "enter the network namespace".into())??;
    if chains.is_empty() {
        return Ok(());
    }
    Err(Error::Input(format!(
        "the network namespace has live iptables chains of istio-init ({}), and would be redirected twice; remove \
         them first (istio-iptables --cleanup-only in the namespace, or iptables -t nat -F and -X), or restart the \
         pod without istio-init",
        chains.join(", ")
    )))
}

/// Names of the `ISTIO_*` chains of the calling thread's namespace, by both iptables flavours.
fn istio_chains() -> Result<Vec<String>> {
    let mut chains = nft_chains()?;
    for (names, save) in [
        ("/proc/thread-self/net/ip_tables_names", "iptables-legacy-save"),
        ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        // Only with legacy tables in use is it worth a process.
        if !std::fs::read_to_string(names).is_ok_and(|text| text.contains("nat") || text.contains("mangle")) {
            continue;
        }
        let output = Command::new(save).output().map_err(|e| {
            Error::Failed(format!("the namespace has legacy iptables rules, and {save} cannot be run to see them: {e}"))
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
        chains.extend(names.filter(|name| name.starts_with("ISTIO_")).map(str::to_owned));
    }
    chains.sort();
    chains.dedup();
    Ok(chains)
}

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETCHAIN: u16 = 4;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFTA_CHAIN_NAME: u16 = 3;
const HEADERS: usize = 20; // nlmsghdr and nfgenmsg

/// Dumps the chains of nf_tables, which iptables-nft uses. A kernel without nf_tables has none.
fn nft_chains() -> Result<Vec<String>> {
    let what = || "ask nf_tables for its chains".to_owned();
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        other => other.context(what)?,
    };
    socket.bind_auto().context(what)?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend((HEADERS as u32).to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN).to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 4]); // any family, version 0, resource 0
    socket.send_to(&request, &SocketAddr::new(0, 0), 0).context(what)?;

    let mut names = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().context(what)?;
        let mut rest = datagram.as_slice();
        while let Some((kind, message, next)) = split(rest) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(names),
                _ => names.extend(chain_name(message).filter(|name| name.starts_with("ISTIO_"))),
            }
            rest = next;
        }
    }
}

/// Type and bytes of the first netlink message, and what follows it.
fn split(data: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(data.get(4..6)?.try_into().ok()?);
    let message = data.get(..len)?;
    Some((kind, message, data.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// The NFTA_CHAIN_NAME attribute.
fn chain_name(message: &[u8]) -> Option<String> {
    let mut attributes = message.get(HEADERS..)?;
    loop {
        let len = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..len)?;
        if kind == NFTA_CHAIN_NAME {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_end_without_a_panic() {
        assert_eq!(chain_name(&[0; 21]), None);
        assert_eq!(chain_name(&[0; 40]), None);
        assert!(split(&[1, 0, 0]).is_none());
        assert!(split(&[255, 255, 255, 255, 0, 0, 0, 0]).is_none());
    }
}
