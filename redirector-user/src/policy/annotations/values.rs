//! The annotations and what Istio's CNI plugin allows in each.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::policy::error::{ConfigError, SHOWN};
use crate::policy::model::{Mode, Selection};
use crate::policy::note::Note;
use crate::policy::parse;

/// Annotations that more than one option or question looks at.
pub mod key {
    /// Whether Istio may inject a proxy.
    pub const INJECT: &str = "sidecar.istio.io/inject";
    /// Set by the injector.
    pub const STATUS: &str = "sidecar.istio.io/status";
    /// The old name of the interfaces of virtual machines.
    pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
    /// Interfaces of virtual machines.
    pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
}

/// Reads annotations with the plugin's validation.
pub struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
}

impl<'a> Reader<'a> {
    /// Reads these.
    pub fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self { annotations }
    }

    /// An annotation as it was written.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.annotations.get(key).map(String::as_str)
    }

    /// `validateInterceptionMode`: unlike the injector's, NONE is an error.
    pub fn mode(&self, key: &str) -> Result<Mode, ConfigError> {
        match self.get(key) {
            None | Some("REDIRECT") => Ok(Mode::Redirect),
            Some("TPROXY") => Ok(Mode::Tproxy),
            Some("NONE") => {
                let why = "is nothing that can be attached";
                let remedy =
                    "write REDIRECT or TPROXY, or keep the pod out (label sidecar.istio.io/inject=false)";
                Err(ConfigError::invalid(key, "NONE", why, remedy))
            }
            Some(mode) => {
                Err(ConfigError::invalid(key, mode, "is no interception mode", "write REDIRECT or TPROXY"))
            }
        }
    }

    /// `*`, or ports; absent is `*`.
    pub fn port_selection(&self, key: &str, notes: &mut Vec<Note>) -> Result<Selection<u16>, ConfigError> {
        match self.get(key) {
            None | Some("*") => Ok(Selection::All),
            Some(_) => self.ports(key, "", notes).map(Selection::of),
        }
    }

    /// `validatePortList`: blanks around items are trimmed, empty items are refused, 0 is allowed. The plugin
    /// lets `*` through where iptables then refuses the rule, which fails the pod all the same.
    pub fn ports(&self, key: &str, absent: &str, notes: &mut Vec<Note>) -> Result<Vec<u16>, ConfigError> {
        let value = self.get(key).unwrap_or(absent);
        let mut ports = Vec::new();
        for item in list(value.trim()) {
            let item = item.trim();
            if item.is_empty() {
                let remedy = "write ports separated by single commas, as in `80,443`";
                return Err(ConfigError::invalid(key, value, "has an empty item", remedy));
            }
            if item == "0" {
                notes.push(Note::remark(key, "port 0 is left out: no connection has it"));
                continue;
            }
            let port = parse::starless(key, item).and_then(|item| parse::port(key, item));
            ports.push(port.map_err(|error| of_value(error, value))?);
        }
        Ok(ports)
    }

    /// `validateCIDRList`: nothing is trimmed, empty items are refused.
    pub fn cidrs(&self, key: &str) -> Result<Vec<IpNet>, ConfigError> {
        let value = self.get(key).unwrap_or_default();
        if value == "*" {
            return parse::excluded_cidrs(key, value);
        }
        let net = |item: &str| {
            if item.is_empty() {
                let remedy = "write networks separated by single commas, as in `10.0.0.0/8,fd00::/8`";
                return Err(ConfigError::invalid(key, value, "has an empty item", remedy));
            }
            let net = parse::starless(key, item).and_then(|item| parse::cidr(key, item));
            net.map_err(|error| of_value(error, value))
        };
        list(value).map(net).collect()
    }

    /// `ValidateInterfaceNames` (`pkg/util/net/ip.go`): blanks around names are trimmed, empty ones refused.
    pub fn interfaces(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let value = self.get(key).unwrap_or_default();
        let named = |item: &str| {
            let name = item.trim();
            if interface(name) {
                return Ok(name.to_owned());
            }
            let why = "is no interface name";
            let remedy = "write names of at most 15 letters, digits, `_`, `.` and `-` that begin with a letter, \
                          separated by single commas";
            Err(of_value(ConfigError::invalid(key, name, why, remedy), value))
        };
        list(value).map(named).collect()
    }
}

/// The items of a list as Go splits it; none if it is empty.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(move |_| !value.is_empty())
}

/// `^[a-zA-Z][a-zA-Z0-9_.\-]*$`, at most 15 bytes.
fn interface(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= 15
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// An error about an item, said of the annotation's value; one that is longer than what is shown is not repeated.
fn of_value(error: ConfigError, value: &str) -> ConfigError {
    match error {
        ConfigError::Invalid { name, item, why, remedy } if item != value && value.len() <= SHOWN => {
            ConfigError::Invalid {
                name,
                item: value.into(),
                why: format!("has {item:?}, which {why}"),
                remedy,
            }
        }
        other => other,
    }
}
