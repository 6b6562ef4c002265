//! The nat table of `istio-iptables`, in the order of Istio's `run.go` (reference c.2 outbound, c.3 inbound).

use super::IpVersion;
use super::options::{Cidrs, Options, Ports};
use super::table::Table;

/// Adds the rules of one family.
pub(super) fn fill(table: &mut Table, options: &Options, family: IpVersion) {
    table.declare(&["ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT"]);
    let pass = "RETURN";
    for interface in &options.exclude_interfaces {
        table.add("PREROUTING", format_args!("-i {interface} -j {pass}"));
        table.add("OUTPUT", format_args!("-o {interface} -j {pass}"));
    }
    table.add("ISTIO_INBOUND", format_args!("-p tcp --dport {} -j {pass}", options.inbound_tunnel_port));
    table.add("ISTIO_REDIRECT", format_args!("-p tcp -j REDIRECT --to-ports {}", options.envoy_port));
    table.add(
        "ISTIO_IN_REDIRECT",
        format_args!("-p tcp -j REDIRECT --to-ports {}", options.inbound_capture_port),
    );
    inbound(table, options);
    outbound(table, options, family);
}

fn inbound(table: &mut Table, options: &Options) {
    // With TPROXY it is mangle's business.
    if options.inbound_ports == Ports::List(Vec::new()) || options.tproxy.is_some() {
        return;
    }
    table.add("PREROUTING", format_args!("-p tcp -j ISTIO_INBOUND"));
    match &options.inbound_ports {
        Ports::All => {
            for port in &options.inbound_ports_exclude {
                table.add("ISTIO_INBOUND", format_args!("-p tcp --dport {port} -j RETURN"));
            }
            table.add("ISTIO_INBOUND", format_args!("-p tcp -j ISTIO_IN_REDIRECT"));
        }
        Ports::List(list) => {
            for port in list {
                table.add("ISTIO_INBOUND", format_args!("-p tcp --dport {port} -j ISTIO_IN_REDIRECT"));
            }
        }
    }
}

fn outbound(table: &mut Table, options: &Options, family: IpVersion) {
    let chain = "ISTIO_OUTPUT";
    let (loopback, passthrough) = family.loopback_and_passthrough(options);
    table.add("OUTPUT", format_args!("-j {chain}"));
    for port in &options.outbound_ports_exclude {
        table.add(chain, format_args!("-p tcp --dport {port} -j RETURN"));
        table.add(chain, format_args!("-p udp --dport {port} -j RETURN"));
    }
    table.add(chain, format_args!("-o lo -s {passthrough} -j RETURN"));
    for uid in &options.proxy_uids {
        let exception = if options.redirect_dns {
            format!("-m multiport ! --dports 53,{}", options.inbound_tunnel_port)
        } else {
            format!("! --dport {}", options.inbound_tunnel_port)
        };
        owner(table, options, &format!("--uid-owner {uid}"), loopback, &exception);
    }
    for gid in &options.proxy_gids {
        let exception = format!("! --dport {}", options.inbound_tunnel_port);
        owner(table, options, &format!("--gid-owner {gid}"), loopback, &exception);
    }
    owner_groups(table, options);
    dns(table, options, family);
    table.add(chain, format_args!("-d {loopback} -j RETURN"));
    for cidr in options.outbound_cidrs_exclude.iter().filter(|cidr| family.has(cidr)) {
        table.add(chain, format_args!("-d {cidr} -j RETURN"));
    }
    for port in &options.outbound_ports {
        table.add(chain, format_args!("-p tcp --dport {port} -j ISTIO_REDIRECT"));
    }
    let destinations: Vec<String> = match &options.outbound_cidrs {
        Cidrs::All => vec![String::new()],
        Cidrs::List(list) => {
            list.iter().filter(|cidr| family.has(cidr)).map(|cidr| format!("-d {cidr} ")).collect()
        }
    };
    for destination in &destinations {
        for interface in &options.virtual_interfaces {
            table.insert_into_prerouting(0, format_args!("-i {interface} {destination}-j ISTIO_REDIRECT"));
        }
        table.add(chain, format_args!("{destination}-j ISTIO_REDIRECT"));
    }
    // Of a virtual interface nothing else is captured.
    let position = options.virtual_interfaces.len() * destinations.len();
    for interface in &options.virtual_interfaces {
        table.insert_into_prerouting(position, format_args!("-i {interface} -j RETURN"));
    }
}

/// The three rules for one owner of a proxy.
fn owner(table: &mut Table, options: &Options, owner: &str, loopback: &str, exception: &str) {
    let chain = "ISTIO_OUTPUT";
    let matching = format!("-m owner {owner}");
    let other = format!("-m owner ! {owner}");
    table
        .add(chain, format_args!("-o lo ! -d {loopback} -p tcp {exception} {matching} -j ISTIO_IN_REDIRECT"));
    if !options.includes_loopback() {
        let protocol = if options.redirect_dns { "-p tcp ! --dport 53 " } else { "" };
        table.add(chain, format_args!("-o lo {protocol}{other} -j RETURN"));
    }
    table.add(chain, format_args!("{matching} -j RETURN"));
}

fn owner_groups(table: &mut Table, options: &Options) {
    let chain = "ISTIO_OUTPUT";
    match &options.owner_groups {
        None => {
            for gid in &options.owner_groups_exclude {
                table.add(chain, format_args!("-m owner --gid-owner {gid} -j RETURN"));
            }
        }
        Some(groups) => {
            let none_of_them: String =
                groups.iter().map(|gid| format!("-m owner ! --gid-owner {gid} ")).collect();
            table.add(chain, format_args!("{none_of_them}-j RETURN"));
        }
    }
}

fn dns(table: &mut Table, options: &Options, version: IpVersion) {
    if !options.redirect_dns {
        return;
    }
    let servers = version.name_servers(options);
    for protocol in ["tcp", "udp"] {
        for server in &servers {
            let server = server.as_ref().map_or_else(String::new, |server| format!("-d {server} "));
            let rule = format!("-p {protocol} --dport 53 {server}-j REDIRECT --to-ports 15053");
            table.add("ISTIO_OUTPUT", rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(options: &Options, family: IpVersion) -> String {
        let mut table = Table::new("nat");
        fill(&mut table, options, family);
        table.to_string()
    }

    /// The chains as they are printed on a running pod with the sidecar's command.
    #[test]
    fn the_sidecar_rules_are_the_known_ones() {
        let expected = "\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
";
        assert_eq!(rules(&Options::sidecar(), IpVersion::V4), expected);
    }

    #[test]
    fn lists_are_split_by_family() {
        let mut options = Options::sidecar();
        options.outbound_cidrs = Cidrs::List(vec!["10.0.0.0/8".into(), "fd00::/16".into()]);
        options.outbound_cidrs_exclude = vec!["fd00:1::/32".into()];
        let (v4, v6) = (rules(&options, IpVersion::V4), rules(&options, IpVersion::V6));
        assert!(
            v4.contains("-A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT") && !v4.contains("fd00"),
            "{v4}"
        );
        assert!(
            v6.contains("-A ISTIO_OUTPUT -d fd00::/16 -j ISTIO_REDIRECT") && !v6.contains("10.0.0.0"),
            "{v6}"
        );
        assert!(v6.contains("-A ISTIO_OUTPUT -d fd00:1::/32 -j RETURN"), "{v6}");
    }

    #[test]
    fn virtual_interfaces_come_first() {
        let mut options = Options::sidecar();
        options.virtual_interfaces = vec!["vnet0".into()];
        let text = rules(&options, IpVersion::V4);
        let prerouting: Vec<&str> = text.lines().filter(|line| line.starts_with("-A PREROUTING")).collect();
        assert_eq!(
            prerouting,
            [
                "-A PREROUTING -i vnet0 -j ISTIO_REDIRECT",
                "-A PREROUTING -i vnet0 -j RETURN",
                "-A PREROUTING -p tcp -j ISTIO_INBOUND"
            ]
        );
    }
}
