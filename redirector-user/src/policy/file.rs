//! The policy file: [`Policy`] in TOML or JSON, told apart by content.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ConfigError;
use super::model::Policy;
use crate::base::input;

/// What a file says of exclusions: a policy does not keep those that cannot apply.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Exclusions {
    /// As in [`Policy`].
    pub inbound_exclude_ports: Vec<u16>,
    /// As in [`Policy`].
    pub owner_groups_exclude: Vec<u32>,
}

/// Reads a policy file. Fields it leaves out have the sidecar default.
pub fn load(path: &Path) -> Result<(Policy, Exclusions), ConfigError> {
    let refuse =
        |why: String, remedy: &str| ConfigError::PolicyFile { path: path.into(), why, remedy: remedy.into() };
    let text =
        input::text(path).map_err(|error| refuse(error.to_string(), "name a readable TOML or JSON file"))?;
    let read = parse(&text).and_then(|policy| Ok((policy, deserialise(&text)?)));
    read.map_err(|why| {
        refuse(why, "`redirector explain --to 192.0.2.1:80 --output json` has one in full, as `policy`")
    })
}

/// Reads a policy: JSON if the first thing in it is a brace, TOML otherwise. The error says where and why.
pub fn parse(text: &str) -> Result<Policy, String> {
    deserialise(text)
}

fn deserialise<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    if text.trim_start().starts_with('{') {
        return input::json(text);
    }
    input::toml(text)
}
