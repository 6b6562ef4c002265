//! Lists, ports, networks and numbers as istio-iptables writes them.
//!
//! Source: `tools/common/config/types.go` (`Split`), `config.go` (`SeparateV4V6`), `validation.go`. Lists are
//! split on `,`, empty items are dropped, nothing is trimmed. Stricter than the original where iptables would
//! refuse the result or read it in a surprising way (`010` is port 8 to iptables).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::error::ConfigError;
use super::model::Selection;
use super::range::{self, Refusal};

const NO_BLANKS: &str = "write the list without blanks, as in `80,443`";

/// The items of a comma list; empty ones are dropped, nothing is trimmed.
pub fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').filter(|item| !item.is_empty())
}

/// One port, 1 to 65535.
pub fn port(name: &str, item: &str) -> Result<u16, ConfigError> {
    if item.is_empty() {
        return Err(ConfigError::invalid(name, item, "is not a port", range::PORTS));
    }
    if item.contains([':', '-']) && item.bytes().all(|b| b.is_ascii_digit() || matches!(b, b':' | b'-')) {
        let remedy = "ranges are not known here: write every port on its own";
        return Err(ConfigError::invalid(name, item, "is not a single port", remedy));
    }
    number(name, item, ("is not a port", range::PORTS), range::port)
}

/// A duration as Go's `time.ParseDuration` reads it, without signs: `5s`, `1m30s`, `1.5s`, `500ms`.
pub fn duration(name: &str, text: &str) -> Result<Duration, ConfigError> {
    let refused =
        || ConfigError::invalid(name, text, "is not a duration", "write it as in `5s`, `500ms` or `1m30s`");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refused)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refused()),
        };
        seconds += number.parse::<f64>().map_err(|_| refused())? * unit;
        rest = tail;
    }
    if text.is_empty() {
        return Err(refused());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| refused())
}

/// A comma list of ports, in the order given.
pub fn ports(name: &str, text: &str) -> Result<Vec<u16>, ConfigError> {
    items(text).map(|item| port(name, starless(name, item)?)).collect()
}

/// `*`, or a comma list of ports.
pub fn port_selection(name: &str, text: &str) -> Result<Selection<u16>, ConfigError> {
    if text == "*" {
        return Ok(Selection::All);
    }
    ports(name, text).map(Selection::of)
}

/// A network in CIDR form. The host part is kept; matching goes by the masked prefix.
pub fn cidr(name: &str, item: &str) -> Result<IpNet, ConfigError> {
    let refuse = |why: &str, remedy: String| Err(ConfigError::invalid(name, item, why, remedy));
    if item.contains(char::is_whitespace) {
        return refuse(
            "has a blank in it",
            "write the list without blanks, as in `10.0.0.0/8,fd00::/8`".into(),
        );
    }
    let Some((addr, bits)) = item.split_once('/') else {
        return match item.parse::<IpAddr>() {
            Ok(addr) => {
                refuse("has no prefix length", format!("for this one address write {}", IpNet::from(addr)))
            }
            Err(_) => refuse("is not a network", "write it as in `10.0.0.0/8`".into()),
        };
    };
    let Ok(addr) = addr.parse::<IpAddr>() else {
        return refuse(
            "does not begin with an IP address",
            "write it as in `10.0.0.0/8` or `fd00::/8`".into(),
        );
    };
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let length = format!("write a prefix length from 0 to {most}");
    let Ok(bits) = decimal(name, bits, range::NO_USER_OR_GROUP) else {
        return refuse("has no decimal prefix length", length);
    };
    let bits = u8::try_from(bits).ok();
    match bits.and_then(|bits| IpNet::new(addr, bits).ok()) {
        Some(net) => Ok(net),
        None => refuse("has a prefix length that is too long", length),
    }
}

/// A comma list of networks; `*` is refused.
pub fn cidrs(name: &str, text: &str) -> Result<Vec<IpNet>, ConfigError> {
    items(text).map(|item| cidr(name, starless(name, item)?)).collect()
}

/// `*`, or a comma list of networks.
pub fn cidr_selection(name: &str, text: &str) -> Result<Selection<IpNet>, ConfigError> {
    if text == "*" {
        return Ok(Selection::All);
    }
    cidrs(name, text).map(Selection::of)
}

/// The networks excluded from outbound capture: `*` is an error of its own (`Run` in `pkg/capture/run.go`).
pub fn excluded_cidrs(name: &str, text: &str) -> Result<Vec<IpNet>, ConfigError> {
    if text == "*" {
        let remedy = "to capture nothing outbound, leave the included networks empty (`-i \"\"`)";
        return Err(ConfigError::invalid(name, text, "cannot be excluded", remedy));
    }
    cidrs(name, text)
}

/// The IPv4 loopback range (`ValidateIPv4LoopbackCidr`): a loopback address with a mask from 8 to 32.
pub fn loopback(name: &str, text: &str) -> Result<Ipv4Net, ConfigError> {
    let refuse = |(why, remedy): Refusal| ConfigError::invalid(name, text, why, remedy);
    match cidr(name, text)? {
        IpNet::V4(net) => range::loopback(&net).map(|()| net).map_err(refuse),
        IpNet::V6(_) => Err(refuse(range::NO_LOOPBACK)),
    }
}

/// One user or group number.
pub fn id(name: &str, item: &str) -> Result<u32, ConfigError> {
    number(name, item, range::NO_USER_OR_GROUP, range::id)
}

/// A comma list of user or group numbers, in the order given.
pub fn ids(name: &str, text: &str) -> Result<Vec<u32>, ConfigError> {
    items(text).map(|item| id(name, starless(name, item)?)).collect()
}

/// A packet mark.
pub fn mark(name: &str, item: &str) -> Result<u32, ConfigError> {
    number(name, item, ("is not a packet mark", range::MARKS), range::mark)
}

/// A routing table.
pub fn table(name: &str, item: &str) -> Result<u32, ConfigError> {
    number(name, item, ("is not a routing table", range::TABLES), range::table)
}

/// An interface name as the kernel takes it (`dev_valid_name`), without iptables' `+` for "and all that begin
/// so".
pub fn interface(name: &str, item: &str) -> Result<String, ConfigError> {
    let refuse = |why, remedy| Err(ConfigError::invalid(name, item, why, remedy));
    if item.contains(char::is_whitespace) {
        return refuse("has a blank in it", "write the list without blanks, as in `eth1,net1`");
    }
    if matches!(item, "" | "." | ".." | "*") || item.contains(['/', ':', '\0']) {
        return refuse("is not an interface name", "write names as `ip link` shows them");
    }
    if item.contains(',') {
        return refuse("has a comma in it, which no flag could say", "rename the interface");
    }
    if item.ends_with('+') {
        return refuse("is a pattern", "name every interface: patterns are not known here");
    }
    if item.len() > 15 {
        return refuse("is longer than 15 bytes", "write names as `ip link` shows them");
    }
    Ok(item.into())
}

/// A comma list of interface names.
pub fn interfaces(name: &str, text: &str) -> Result<Vec<String>, ConfigError> {
    items(text).map(|item| interface(name, starless(name, item)?)).collect()
}

/// Refuses the star in a place where it means nothing.
pub(super) fn starless<'a>(name: &str, item: &'a str) -> Result<&'a str, ConfigError> {
    if item == "*" {
        let remedy =
            "the star stands alone and only where all can be chosen (-b, -i, ISTIO_OUTBOUND_OWNER_GROUPS)";
        return Err(ConfigError::invalid(name, item, "is not an item of this list", remedy));
    }
    Ok(item)
}

/// A decimal number, and what it may be.
fn number<T>(
    name: &str,
    item: &str,
    no_number: Refusal,
    check: fn(u64) -> Result<T, Refusal>,
) -> Result<T, ConfigError> {
    check(decimal(name, item, no_number)?)
        .map_err(|(why, remedy)| ConfigError::invalid(name, item, why, remedy))
}

/// Decimal digits only: no sign, no blank, no leading zero (octal to iptables, decimal to Go).
fn decimal(name: &str, item: &str, (why, remedy): Refusal) -> Result<u64, ConfigError> {
    if item.contains(char::is_whitespace) {
        return Err(ConfigError::invalid(name, item, "has a blank in it", NO_BLANKS));
    }
    if item.is_empty() || !item.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ConfigError::invalid(name, item, why, remedy));
    }
    if item.len() > 1 && item.starts_with('0') {
        let why = "begins with a zero, which iptables reads as octal";
        return Err(ConfigError::invalid(name, item, why, "write it without leading zeros"));
    }
    // 20 digits may overflow: whatever is that large is too large for every caller.
    Ok(item.parse().unwrap_or(u64::MAX))
}
