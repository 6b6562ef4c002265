//! The oracle of TPROXY mode: the mangle table of `istio-iptables` (reference c.4), and its rules and routes.

use std::process::Command;

use super::IpVersion;
use super::options::{Options, Ports, Tproxy};
use super::table::Table;
use crate::harness::command::run;
use crate::harness::world::netns::Netns;

/// Mark of packets from the proxy to its own pod. PREROUTING takes them for inbound traffic.
pub(super) const OWN_POD: u32 = 1338;

/// Adds the rules of one family: none without TPROXY.
pub(super) fn fill(table: &mut Table, options: &Options, family: IpVersion) {
    let Some(Tproxy { mark, .. }) = options.tproxy else { return };
    table.declare(&["ISTIO_INBOUND", "ISTIO_DIVERT", "ISTIO_TPROXY"]);
    let (loopback, passthrough) = family.loopback_and_passthrough(options);
    for interface in &options.exclude_interfaces {
        table.add("PREROUTING", format_args!("-i {interface} -j RETURN"));
        table.add("OUTPUT", format_args!("-o {interface} -j RETURN"));
    }
    if options.inbound_ports != Ports::List(Vec::new()) {
        table.add("PREROUTING", "-p tcp -j ISTIO_INBOUND");
    }
    table.add("PREROUTING", format_args!("-p tcp -m mark --mark {mark} -j CONNMARK --save-mark"));

    table.add("OUTPUT", format_args!("-p tcp -o lo -m mark --mark {mark} -j RETURN"));
    for owner in options.owners() {
        let rule = format!("! -d {loopback} -p tcp -o lo -m owner {owner} -j MARK --set-mark {OWN_POD}");
        table.add("OUTPUT", rule);
    }
    table.add("OUTPUT", format_args!("-p tcp -m connmark --mark {mark} -j CONNMARK --restore-mark"));

    table.add("ISTIO_INBOUND", format_args!("-p tcp -m mark --mark {mark} -j RETURN"));
    table.add("ISTIO_INBOUND", format_args!("-p tcp -s {passthrough} -i lo -j RETURN"));
    table.add("ISTIO_INBOUND", format_args!("-p tcp -i lo -m mark ! --mark {OWN_POD} -j RETURN"));
    table.add("ISTIO_DIVERT", format_args!("-j MARK --set-mark {mark}"));
    table.add("ISTIO_DIVERT", "-j ACCEPT");
    let port = options.inbound_capture_port;
    let target = format!("TPROXY --tproxy-mark {mark}/0xffffffff --on-port {port}");
    table.add("ISTIO_TPROXY", format_args!("! -d {loopback} -p tcp -j {target}"));
    let captured = match &options.inbound_ports {
        Ports::All => {
            for port in &options.inbound_ports_exclude {
                table.add("ISTIO_INBOUND", format_args!("-p tcp --dport {port} -j RETURN"));
            }
            vec![String::new()]
        }
        Ports::List(list) => list.iter().map(|port| format!("--dport {port} ")).collect(),
    };
    for port in captured {
        let states = "-m conntrack --ctstate RELATED,ESTABLISHED";
        table.add("ISTIO_INBOUND", format_args!("-p tcp {port}{states} -j ISTIO_DIVERT"));
        table.add("ISTIO_INBOUND", format_args!("-p tcp {port}-j ISTIO_TPROXY"));
    }
}

/// Marked packets are delivered here. `change`: `add` or `del`.
pub fn route(netns: &Netns, change: &str, options: &Options) -> anyhow::Result<()> {
    let Some(Tproxy { mark, table }) = options.tproxy else { return Ok(()) };
    for family in ["-4", "-6"].into_iter().take(1 + usize::from(options.ipv6)) {
        for what in [
            format!("rule {change} fwmark {mark} lookup {table}"),
            format!("route {change} local default dev lo table {table}"),
        ] {
            run(Command::new("ip").args(["-n", netns.name(), family]).args(what.split(' ')), "")?;
        }
    }
    Ok(())
}
