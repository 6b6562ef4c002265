//! The annotations and what Istio's CNI plugin allows in each.

use std::collections::BTreeMap;

use crate::policy::error::{ConfigError, SHOWN};
use crate::policy::given::Given;
use crate::policy::note::Note;
use crate::policy::parse;

/// Names of annotations.
pub(super) struct Key;

impl Key {
    pub const INJECT: &str = "sidecar.istio.io/inject";
    pub const STATUS: &str = "sidecar.istio.io/status";
    pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
    pub const STATUS_PORT: &str = "status.sidecar.istio.io/port";
    pub const INCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    pub const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
    pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
    pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
    pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
    pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

    /// All annotations of the group that says what is captured; another name in it is a mistake.
    const TRAFFIC: [&str; 8] = [
        Self::INCLUDE_OUTBOUND_IP_RANGES,
        Self::EXCLUDE_OUTBOUND_IP_RANGES,
        Self::INCLUDE_INBOUND_PORTS,
        Self::EXCLUDE_INBOUND_PORTS,
        Self::INCLUDE_OUTBOUND_PORTS,
        Self::EXCLUDE_OUTBOUND_PORTS,
        Self::EXCLUDE_INTERFACES,
        Self::KUBEVIRT_INTERFACES,
    ];
}

/// Reads annotations with the plugin's defaults and validation; the values come out as flags take them.
pub(super) struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    pub notes: Vec<Note>,
}

impl<'a> Reader<'a> {
    pub fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self { annotations, notes: Vec::new() }
    }

    pub fn given(&self, key: &str) -> bool {
        self.annotations.contains_key(key)
    }

    fn get(&self, key: &str, default: &'static str) -> &'a str {
        self.annotations.get(key).map_or(default, String::as_str)
    }

    /// `validateInterceptionMode`: unlike the injector's, NONE is an error.
    pub fn mode(&self, key: &str) -> Result<Given, ConfigError> {
        let remedy = "write REDIRECT or TPROXY";
        match self.get(key, "REDIRECT") {
            mode @ ("REDIRECT" | "TPROXY") => Ok(Given::new(key, mode)),
            "NONE" => {
                let why = "is nothing that can be attached";
                let remedy =
                    "write REDIRECT or TPROXY, or keep the pod out (label sidecar.istio.io/inject=false)";
                Err(ConfigError::invalid(key, "NONE", why, remedy))
            }
            mode => Err(ConfigError::invalid(key, mode, "is no interception mode", remedy)),
        }
    }

    /// `validatePortList`: blanks around items are trimmed, empty items are refused, 0 is allowed. The plugin
    /// lets `*` through where iptables then refuses the rule, which fails the pod all the same.
    pub fn ports(&mut self, key: &str, default: &'static str, star: bool) -> Result<Given, ConfigError> {
        let value = self.get(key, default);
        if value == "*" && star {
            return Ok(Given::new(key, value));
        }
        let mut ports = Vec::new();
        for item in list(value.trim()) {
            let item = item.trim();
            if item.is_empty() {
                let remedy = "write ports separated by single commas, as in `80,443`";
                return Err(ConfigError::invalid(key, value, "has an empty item", remedy));
            }
            if item == "0" {
                self.notes.push(Note::remark(key, "port 0 is left out: no connection has it"));
                continue;
            }
            parse::starless(key, item)
                .and_then(|item| parse::port(key, item))
                .map_err(|error| of_value(error, value))?;
            if !ports.contains(&item) {
                ports.push(item);
            }
        }
        Ok(Given::new(key, ports.join(",")))
    }

    /// `validateCIDRList`: nothing is trimmed, empty items are refused.
    pub fn cidrs(&self, key: &str, default: &'static str, star: bool) -> Result<Given, ConfigError> {
        let value = self.get(key, default);
        if value == "*" && star {
            return Ok(Given::new(key, value));
        }
        if value == "*" {
            parse::excluded_cidrs(key, value)?;
        }
        for item in list(value) {
            if item.is_empty() {
                let remedy = "write networks separated by single commas, as in `10.0.0.0/8,fd00::/8`";
                return Err(ConfigError::invalid(key, value, "has an empty item", remedy));
            }
            parse::starless(key, item)
                .and_then(|item| parse::cidr(key, item))
                .map_err(|error| of_value(error, value))?;
        }
        Ok(Given::new(key, value))
    }

    /// `ValidateInterfaceNames` (`pkg/util/net/ip.go`): blanks around names are trimmed, empty ones refused.
    pub fn interfaces(&self, key: &str) -> Result<Given, ConfigError> {
        let value = self.get(key, "");
        let mut names = Vec::new();
        for item in list(value) {
            let name = item.trim();
            if !interface(name) {
                let why = "is no interface name";
                let remedy = "write names of at most 15 letters, digits, `_`, `.` and `-` that begin with a letter, \
                              separated by single commas";
                return Err(of_value(ConfigError::invalid(key, name, why, remedy), value));
            }
            names.push(name);
        }
        Ok(Given::new(key, names.join(",")))
    }

    /// Remarks on annotations that look like settings and are none.
    pub fn unknown(&mut self) {
        for key in self.annotations.keys() {
            if key.starts_with("traffic.sidecar.istio.io/") && !Key::TRAFFIC.contains(&key.as_str()) {
                self.notes.push(Note::warning(key, "is not read: Istio has no annotation of this name"));
            }
        }
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
