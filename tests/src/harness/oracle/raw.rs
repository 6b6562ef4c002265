//! The raw table of `istio-iptables` (reference c.5): two conntrack zones keep what the proxy asks name servers apart from
//! what applications ask it.
//!
//! An ICMP error is in no zone, so NAT does not translate it: while nobody listens at the proxy's DNS port, a query is
//! met with silence.

use super::IpVersion;
use super::options::Options;
use super::table::Table;

/// Adds the rules of one family: none without DNS capture.
pub(super) fn fill(table: &mut Table, options: &Options, version: IpVersion) {
    if !options.redirect_dns {
        return;
    }
    table.declare(&["ISTIO_INBOUND", "ISTIO_OUTPUT_DNS"]);
    let chain = "ISTIO_OUTPUT_DNS";
    table.add("OUTPUT", format_args!("-j {chain}"));
    for owner in options.owners() {
        table.add(chain, format_args!("-p udp --dport 53 -m owner {owner} -j CT --zone 1"));
        table.add(chain, format_args!("-p udp --sport 15053 -m owner {owner} -j CT --zone 2"));
    }
    let servers = version.name_servers(options);
    if !servers.is_empty() {
        table.add("PREROUTING", "-j ISTIO_INBOUND");
    }
    for server in servers {
        let [to, from] =
            ["-d", "-s"].map(|end| server.as_ref().map_or_else(String::new, |ip| format!("{end} {ip} ")));
        table.add(chain, format_args!("-p udp --dport 53 {to}-j CT --zone 2"));
        table.add("ISTIO_INBOUND", format_args!("-p udp --sport 53 {from}-j CT --zone 1"));
    }
}
