//! Tests of the module as a whole. Nothing here depends on the environment it runs in; `env` starts processes
//! with an environment of their own.

mod annotations;
mod env;
mod parsers;
mod policies;
mod rules;
mod table;
mod toml;

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::builder::Resettable;
use clap::{Args, Command, FromArgMatches};

use super::*;

/// A target made up for a test.
#[derive(Default)]
struct Fake {
    users: BTreeMap<&'static str, u32>,
    groups: Option<BTreeMap<&'static str, u32>>,
    nameservers: Option<Vec<IpAddr>>,
    addresses: Option<Vec<IpAddr>>,
}

impl TargetInfo for Fake {
    fn user(&self, name: &str) -> Result<u32, LookupError> {
        self.users.get(name).copied().ok_or(LookupError::Absent)
    }

    fn group(&self, name: &str) -> Result<u32, LookupError> {
        self.groups.as_ref().ok_or(LookupError::Unknown)?.get(name).copied().ok_or(LookupError::Absent)
    }

    fn nameservers(&self) -> Result<Vec<IpAddr>, LookupError> {
        self.nameservers.clone().ok_or(LookupError::Unknown)
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, LookupError> {
        self.addresses.clone().ok_or(LookupError::Unknown)
    }
}

/// A target as tests usually want it: IPv4 only, one nameserver, group `app`, no user istio-proxy.
fn pod() -> Fake {
    Fake {
        users: BTreeMap::new(),
        groups: Some(BTreeMap::from([("app", 2000)])),
        nameservers: Some(ips(&["10.96.0.10"])),
        addresses: Some(ips(&["127.0.0.1", "10.77.0.2"])),
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

/// The arguments as a verb has them.
fn command() -> Command {
    CaptureFlags::augment_args(Command::new("attach")).no_binary_name(true)
}

fn try_flags(args: &[&str]) -> Result<CaptureFlags, clap::Error> {
    let without_env = command().mut_args(|arg| arg.env(Resettable::Reset));
    CaptureFlags::of_matches(&without_env.try_get_matches_from(args)?)
}

/// Flags of a command line in an empty environment.
fn flags(args: &[&str]) -> CaptureFlags {
    try_flags(args).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

/// Flags of a command line, and variables.
fn flags_with(args: &[&str], variables: &[(&str, &str)]) -> CaptureFlags {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    let mut flags = flags(args);
    flags.read_variables(|name| variables.get(name).map(|text| (*text).to_owned()));
    flags
}

fn resolved(flags: &CaptureFlags) -> Resolved {
    resolve(flags, &pod()).unwrap_or_else(|error| panic!("{flags:?}: {error}"))
}

/// The policy of istio-iptables' defaults in [`pod`].
fn istio() -> Policy {
    Policy { ipv6: false, ..Policy::istio_default() }
}

fn abouts(notes: &[Note]) -> Vec<&str> {
    notes.iter().map(|note| note.about.as_str()).collect()
}

/// An error as the command line shows it, with its remedy.
fn shown(error: ConfigError) -> String {
    crate::Error::from(error).on_command_line()
}
