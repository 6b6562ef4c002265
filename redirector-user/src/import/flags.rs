//! Writes a policy as flags and environment variables.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::policy::{Dns, Mode, Policy, Selection};

/// Arguments for `redirector attach`; istio-iptables takes most of them, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Flags {
    /// Words of the command line, without quotes.
    pub flags: Vec<String>,
    /// Environment variables of options that have no flag.
    pub variables: BTreeMap<&'static str, String>,
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn selection<T: ToString>(selection: &Selection<T>) -> String {
    if matches!(selection, Selection::All) { "*".into() } else { join(selection.items()) }
}

/// An empty list, which differs from an absent one.
fn owners(ids: &[u32]) -> String {
    if ids.is_empty() { ",".into() } else { join(ids) }
}

impl Flags {
    /// The flags that give exactly this policy, except for the DNS servers, which come from the target.
    pub fn of(policy: &Policy) -> Self {
        let default = Policy::istio_default();
        let tproxy = policy.mode == Mode::Tproxy;
        let all_ports = policy.inbound_ports == Selection::All;
        let values = [
            (true, "-p", policy.outbound_port.to_string()),
            (true, "-z", policy.inbound_port.to_string()),
            (policy.tunnel_port != default.tunnel_port, "-e", policy.tunnel_port.to_string()),
            (true, "-u", owners(&policy.proxy_uids)),
            (policy.proxy_gids != policy.proxy_uids, "-g", owners(&policy.proxy_gids)),
            (true, "-m", if tproxy { "TPROXY" } else { "REDIRECT" }.into()),
            (tproxy, "-t", policy.tproxy_mark.to_string()),
            (tproxy, "-r", policy.tproxy_table.to_string()),
            (true, "-i", selection(&policy.outbound_cidrs)),
            (true, "-x", join(&policy.outbound_exclude_cidrs)),
            (true, "-b", selection(&policy.inbound_ports)),
            (all_ports, "-d", join(&policy.inbound_exclude_ports)),
            (!policy.outbound_ports.is_empty(), "-q", join(&policy.outbound_ports)),
            (!policy.outbound_exclude_ports.is_empty(), "-o", join(&policy.outbound_exclude_ports)),
            (!policy.exclude_interfaces.is_empty(), "-c", policy.exclude_interfaces.join(",")),
            (!policy.virtual_interfaces.is_empty(), "-k", policy.virtual_interfaces.join(",")),
            (true, "--ipv6", if policy.ipv6 { "on" } else { "off" }.into()),
        ];
        let given = values.into_iter().filter(|(given, ..)| *given);
        let mut flags: Vec<String> = given.flat_map(|(_, flag, value)| [flag.to_owned(), value]).collect();
        for (given, flag) in [
            (policy.dns != Dns::Off, "--redirect-dns"),
            (policy.dns == Dns::All, "--capture-all-dns"),
            (policy.drop_invalid, "--drop-invalid"),
        ] {
            if given {
                flags.push(flag.into());
            }
        }
        let mut variables = BTreeMap::new();
        if policy.owner_groups != Selection::All {
            variables.insert("ISTIO_OUTBOUND_OWNER_GROUPS", selection(&policy.owner_groups));
        }
        if !policy.owner_groups_exclude.is_empty() {
            variables.insert("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", join(&policy.owner_groups_exclude));
        }
        if policy.loopback_cidr != default.loopback_cidr {
            variables.insert("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", policy.loopback_cidr.to_string());
        }
        Self { flags, variables }
    }
}

impl fmt::Display for Flags {
    /// A command for a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            write!(f, "{name}={} ", quoted(value))?;
        }
        f.write_str("redirector attach --pid PID")?;
        self.flags.iter().try_for_each(|word| write!(f, " {}", quoted(word)))
    }
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:,=@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
