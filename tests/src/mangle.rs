//! The oracle of TPROXY mode: the mangle table of `istio-iptables` (reference c.4), and its rules and routes.

use std::process::Command;

use crate::command::run;
use crate::istio::{Options, Ports, Tproxy};
use crate::netns::Netns;

/// What the proxy sends to its own pod, so that PREROUTING takes it for inbound traffic.
const OWN_POD: u32 = 1338;

/// The mangle table for `iptables-restore`; empty without TPROXY.
#[must_use]
pub fn table(options: &Options, ipv6: bool) -> String {
    let mut text = String::from("*mangle\n");
    if let Some(tproxy) = options.tproxy.filter(|_| options.ipv6 || !ipv6) {
        for chain in ["ISTIO_INBOUND", "ISTIO_DIVERT", "ISTIO_TPROXY"] {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for rule in rules(options, tproxy, ipv6) {
            text.push_str(&format!("-A {rule}\n"));
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn rules(options: &Options, Tproxy { mark, .. }: Tproxy, ipv6: bool) -> Vec<String> {
    let (loopback, passthrough) =
        if ipv6 { ("::1/128", "::6/128") } else { (options.loopback_cidr.as_str(), "127.0.0.6/32") };
    let captures = options.inbound_ports != Ports::List(Vec::new());
    let mut rules = Vec::new();
    for interface in &options.exclude_interfaces {
        rules.push(format!("PREROUTING -i {interface} -j RETURN"));
        rules.push(format!("OUTPUT -o {interface} -j RETURN"));
    }
    if captures {
        rules.push("PREROUTING -p tcp -j ISTIO_INBOUND".to_owned());
    }
    rules.push(format!("PREROUTING -p tcp -m mark --mark {mark} -j CONNMARK --save-mark"));

    rules.push(format!("OUTPUT -p tcp -o lo -m mark --mark {mark} -j RETURN"));
    let owners = options.proxy_uids.iter().map(|uid| format!("--uid-owner {uid}"));
    for owner in owners.chain(options.proxy_gids.iter().map(|gid| format!("--gid-owner {gid}"))) {
        rules.push(format!(
            "OUTPUT ! -d {loopback} -p tcp -o lo -m owner {owner} -j MARK --set-mark {OWN_POD}"
        ));
    }
    rules.push(format!("OUTPUT -p tcp -m connmark --mark {mark} -j CONNMARK --restore-mark"));

    rules.push(format!("ISTIO_INBOUND -p tcp -m mark --mark {mark} -j RETURN"));
    rules.push(format!("ISTIO_INBOUND -p tcp -s {passthrough} -i lo -j RETURN"));
    rules.push(format!("ISTIO_INBOUND -p tcp -i lo -m mark ! --mark {OWN_POD} -j RETURN"));
    rules.push(format!("ISTIO_DIVERT -j MARK --set-mark {mark}"));
    rules.push("ISTIO_DIVERT -j ACCEPT".to_owned());
    rules.push(format!(
        "ISTIO_TPROXY ! -d {loopback} -p tcp -j TPROXY --tproxy-mark {mark}/0xffffffff --on-port {}",
        options.inbound_capture_port
    ));
    let captured = match &options.inbound_ports {
        Ports::All => {
            let excluded = options.inbound_ports_exclude.iter();
            rules.extend(excluded.map(|port| format!("ISTIO_INBOUND -p tcp --dport {port} -j RETURN")));
            vec![String::new()]
        }
        Ports::List(list) => list.iter().map(|port| format!("--dport {port} ")).collect(),
    };
    for port in captured {
        let states = "-m conntrack --ctstate RELATED,ESTABLISHED";
        rules.push(format!("ISTIO_INBOUND -p tcp {port}{states} -j ISTIO_DIVERT"));
        rules.push(format!("ISTIO_INBOUND -p tcp {port}-j ISTIO_TPROXY"));
    }
    rules
}

/// Marked packets are delivered here. `change`: `add` or `del`.
///
/// # Errors
/// When it cannot be changed.
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
