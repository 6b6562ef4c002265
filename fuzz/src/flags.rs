//! Flags and environment variables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use clap::builder::Resettable;
use clap::{Args as _, Command};
use redirector_user::policy::{CaptureFlags, TargetDetails, resolve};

use super::{connections, round_trip};

/// Name server of the target that the flags are resolved for.
const NAMESERVER: [u8; 4] = [10, 96, 0, 10];

/// A line is an argument, or a variable if it reads `$NAME=value`.
pub fn run(text: &str) {
    let (variables, arguments): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('$'));
    let Some(mut flags) = parse(&arguments) else { return };
    let variables = variables.iter().map(|line| line[1..].split_once('=').unwrap_or((&line[1..], "")));
    let variables: BTreeMap<&str, &str> = variables.collect();
    flags.read_variables(|name| variables.get(name).map(|value| (*value).to_owned()));
    let target = TargetDetails {
        root: None,
        nameservers: Some(vec![NAMESERVER.into()]),
        addresses: Some(vec![IpAddr::from([10, 0, 0, 1])]),
    };
    let Ok(resolved) = resolve(&flags, &target) else { return };
    for note in &resolved.notes {
        assert!(!note.about.is_empty() && !note.text.is_empty(), "{note:?}");
    }
    round_trip::check(&resolved.policy);
    connections::check(&resolved.policy, text);
}

/// The flags of a command line without environment; those that name files are dropped.
pub(super) fn parse(arguments: &[&str]) -> Option<CaptureFlags> {
    // Made once: clap checks a command at length when debug assertions are on.
    static COMMAND: LazyLock<Command> = LazyLock::new(|| {
        let mut command = CaptureFlags::augment_args(Command::new("attach"))
            .no_binary_name(true)
            .mut_args(|argument| argument.env(Resettable::Reset));
        command.build();
        command
    });
    let matches = COMMAND.clone().try_get_matches_from_mut(arguments).ok()?;
    let mut flags = CaptureFlags::of_matches(&matches).ok()?;
    flags.own.policy = None;
    flags.own.annotations = None;
    Some(flags)
}
