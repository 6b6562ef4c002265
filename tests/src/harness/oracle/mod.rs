//! The oracle: the rules of `istio-iptables` in its order, loaded into real netfilter.
//!
//! These rules are the definition of right and wrong for everything else here, hence `tests/oracle.rs` tests them first.
//!
//! * [`options`] has the options of `istio-iptables`.
//! * `nat`, `mangle` and `raw` make the rules of a table for iptables, `nft` makes Istio's native nftables rules.
//! * [`documented`] lists the differences from them that are meant.

pub mod documented;
pub mod mangle;
mod nat;
pub mod nft;
pub mod options;
mod raw;
mod table;

use anyhow::Context;

use self::options::Options;
use self::table::Table;
use crate::harness::command::run;
use crate::harness::world::netns::Netns;

/// Address family of a rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    fn has(self, cidr: &str) -> bool {
        (self == Self::V6) == cidr.contains(':')
    }

    /// The loopback network, and the address from which Envoy connects to the application.
    fn loopback_and_passthrough(self, options: &Options) -> (&str, &'static str) {
        match self {
            Self::V4 => (&options.loopback_cidr, "127.0.0.6/32"),
            Self::V6 => ("::1/128", "::6/128"),
        }
    }

    /// The name servers whose queries are captured, as networks; `None` for any.
    fn name_servers(self, options: &Options) -> Vec<Option<String>> {
        if options.capture_all_dns {
            return vec![None];
        }
        let length = if self == Self::V4 { 32 } else { 128 };
        let servers = options.dns_servers.iter().filter(|server| self.has(server));
        servers.map(|server| Some(format!("{server}/{length}"))).collect()
    }
}

/// Installs the rules in a namespace; they go with it.
pub fn install(netns: &Netns, options: &Options) -> anyhow::Result<()> {
    load(netns, &rule_texts(options))?;
    mangle::route(netns, "add", options)?;
    add_passthrough_address(netns, options)
}

/// istio-iptables adds the address from which Envoy connects to the application.
fn add_passthrough_address(netns: &Netns, options: &Options) -> anyhow::Result<()> {
    if options.ipv6 { netns.ip("address add ::6/128 dev lo nodad\n") } else { Ok(()) }
}

/// The rules of both families, IPv4 first. Without IPv6 its tables are empty, without TPROXY mangle is, and without DNS
/// capture raw.
pub fn rule_texts(options: &Options) -> [String; 2] {
    [IpVersion::V4, IpVersion::V6].map(|family| {
        let mut tables = ["nat", "mangle", "raw"].map(Table::new);
        if options.ipv6 || family == IpVersion::V4 {
            nat::fill(&mut tables[0], options, family);
            mangle::fill(&mut tables[1], options, family);
            raw::fill(&mut tables[2], options, family);
        }
        tables.map(|table| table.to_string()).concat()
    })
}

/// The same without any rule.
pub fn empty_tables() -> [String; 2] {
    [IpVersion::V4, IpVersion::V6]
        .map(|_| ["nat", "mangle", "raw"].map(|name| Table::new(name).to_string()).concat())
}

/// Loads rules of both families instead of those that were there.
pub fn load(netns: &Netns, rules: &[String; 2]) -> anyhow::Result<()> {
    restore("restore", netns, rules)
}

/// The same by one of the kernel's two engines: `nft` or `legacy`.
pub fn load_by(engine: &str, netns: &Netns, rules: &[String; 2]) -> anyhow::Result<()> {
    restore(&format!("{engine}-restore"), netns, rules)
}

fn restore(command: &str, netns: &Netns, [v4, v6]: &[String; 2]) -> anyhow::Result<()> {
    run(&mut netns.command(format!("iptables-{command}")), v4).context("the IPv4 rules")?;
    run(&mut netns.command(format!("ip6tables-{command}")), v6).context("the IPv6 rules")?;
    Ok(())
}

/// Plants one more rule at the head of a chain: for tests that must see a difference.
pub fn insert(netns: &Netns, rule: &str) -> anyhow::Result<()> {
    run(netns.command("iptables").args(["-t", "nat", "-I"]).args(rule.split(' ')), "")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_leaves_tables_empty() {
        let empty = "*nat\nCOMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n";
        let [v4, v6] = rule_texts(&Options { ipv6: false, ..Options::sidecar() });
        assert_eq!(v6, empty);
        assert!(
            v4.starts_with("*nat\n:ISTIO_") && v4.ends_with("COMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n"),
            "{v4}"
        );
    }
}
