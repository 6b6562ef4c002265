//! What numbers of a policy may be, whoever wrote them.

use ipnet::Ipv4Net;

use super::error::ConfigError;

/// Why a number is refused, and what to write instead.
pub type Refusal = (&'static str, &'static str);

/// The number that is no user and no group to the kernel.
pub const NO_ID: u32 = u32::MAX;

/// Owner groups that may be included; the original makes one iptables rule of them (`maxOwnerGroupsInclude`).
pub const MAX_OWNER_GROUPS: usize = 64;

pub const PORTS: &str = "write a number from 1 to 65535";

pub const IDS: &str = "give a number from 0 to 4294967294";

/// Refuses what is no number of a user or group at all.
pub const NO_USER_OR_GROUP: Refusal = ("is not a user or group number", IDS);

pub const MARKS: &str = "write a decimal number from 1 to 4294967295";

pub const TABLES: &str = "write a decimal number from 1 to 4294967295 without 253, 254 and 255";

/// A port, 1 to 65535.
pub fn port(number: u64) -> Result<u16, Refusal> {
    match u16::try_from(number) {
        Ok(0) => Err(("is not a port that can be captured", PORTS)),
        Ok(port) => Ok(port),
        Err(_) => Err(("is above the highest port", PORTS)),
    }
}

/// A user or group.
pub fn id(number: u64) -> Result<u32, Refusal> {
    u32::try_from(number).ok().filter(|id| *id != NO_ID).ok_or(("is above the highest id", IDS))
}

/// A packet mark. 0 would send every packet of the namespace to itself.
pub fn mark(number: u64) -> Result<u32, Refusal> {
    match u32::try_from(number) {
        Ok(0) => Err(("is the mark of every unmarked packet", MARKS)),
        Ok(mark) => Ok(mark),
        Err(_) => Err(("does not fit 32 bits", MARKS)),
    }
}

/// A routing table of the redirector's own: none of the kernel's (0, 253 to 255), which its route would ruin.
pub fn table(number: u64) -> Result<u32, Refusal> {
    match u32::try_from(number) {
        Ok(0 | 253..=255) => Err(("is a table of the kernel's own", TABLES)),
        Ok(table) => Ok(table),
        Err(_) => Err(("does not fit 32 bits", TABLES)),
    }
}

/// Refuses what is no loopback network.
pub const NO_LOOPBACK: Refusal = ("is not an IPv4 loopback network", LOOPBACK);

const LOOPBACK: &str = "write an IPv4 loopback network as in `127.0.0.1/32` or `127.0.0.0/8`";

/// The IPv4 loopback range (`ValidateIPv4LoopbackCidr`): a loopback address with a mask from 8 to 32.
pub fn loopback(net: &Ipv4Net) -> Result<(), Refusal> {
    if !net.addr().is_loopback() {
        return Err(NO_LOOPBACK);
    }
    if net.prefix_len() < 8 { Err(("has a mask shorter than 8", LOOPBACK)) } else { Ok(()) }
}

/// At most 64 included groups (`ValidateOwnerGroups`), counted as they were written.
pub fn group_limit(name: &str, count: usize) -> Result<(), ConfigError> {
    if count <= MAX_OWNER_GROUPS {
        return Ok(());
    }
    let why = format!("groups are more than the {MAX_OWNER_GROUPS} allowed");
    let remedy = "list fewer, or capture all (`*`) and exclude some (ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE)";
    Err(ConfigError::invalid(name, &count.to_string(), why, remedy))
}

/// Refuses a number in a field of a policy.
pub fn check<N: Into<u64> + Copy, T>(
    field: &str,
    number: N,
    check: fn(u64) -> Result<T, Refusal>,
) -> Result<(), ConfigError> {
    let number = number.into();
    let refuse = |(why, remedy)| ConfigError::invalid(field, &number.to_string(), why, remedy);
    check(number).map(drop).map_err(refuse)
}

/// Refuses a list of users or groups in a field of a policy.
pub fn check_ids(field: &str, ids: &[u32]) -> Result<(), ConfigError> {
    ids.iter().try_for_each(|number| check(field, *number, id))
}
