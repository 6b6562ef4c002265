//! The flags and variables of a command line: istio-iptables', word for word, and redirector's own.

use super::flag_input::{FlagInput, Origin};
use super::model::MAX_CONNECTIONS;
use super::note::Note;
use super::options::{self, CaptureOption, GROUPS, PROXY, WHOLE};
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Whether IPv6 is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    /// As istio-iptables decides it: by the first address of the target (any, with --dual-stack).
    Auto,
    /// Always.
    On,
    /// Never: IPv6 connections pass uncaptured.
    Off,
}

/// Redirector's own flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct OwnFlags {
    /// Directory of the cgroup (v2) of the proxy's container: what is created in it is the proxy's own, and
    /// --proxy-uid and --proxy-gid are nobody unless given
    #[arg(long, help_heading = PROXY, value_name = "DIR")]
    pub proxy_cgroup: Option<PathBuf>,
    /// Take istio-iptables' own defaults for what is not given: nothing is captured
    #[arg(long, help_heading = WHOLE, conflicts_with = "policy")]
    pub istio_defaults: bool,
    /// Capture IPv6 (on; auto with --istio-defaults)
    #[arg(long, help_heading = WHOLE, value_name = "WHEN", value_enum)]
    pub ipv6: Option<Ipv6>,
    /// Policy file, TOML or JSON; flags override what it says
    #[arg(long, help_heading = WHOLE, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// A pod's annotations, read as Istio's CNI plugin reads them; flags override what they say
    ///
    /// A file of a downward-API volume (key="value" lines), a JSON map, or a Pod in JSON, of which the
    /// container istio-proxy counts, too.
    #[arg(long, help_heading = WHOLE, value_name = "FILE", conflicts_with_all = ["policy", "istio_defaults"])]
    pub annotations: Option<PathBuf>,
    /// Captured connections that may be open at once (65536)
    #[arg(
        long, help_heading = WHOLE, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONNECTIONS))
    )]
    pub max_connections: Option<u32>,
}

/// What to capture, as given: absent, given empty and given differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureFlags {
    /// By the name of the flag, or of a variable that no flag carries.
    inputs: BTreeMap<&'static str, FlagInput>,
    /// Redirector's own.
    pub own: OwnFlags,
}

/// Documented by istio-iptables (`pkg/constants/constants.go`) and read by nothing, with the variable that is
/// read.
const UNREAD: [(&str, &str); 2] = [
    ("INBOUND_INTERCEPTION_MODE", "ISTIO_INBOUND_INTERCEPTION_MODE"),
    ("INBOUND_TPROXY_MARK", "ISTIO_INBOUND_TPROXY_MARK"),
];

impl CaptureFlags {
    /// Flags and their variables as clap has them, without the variables that clap does not know.
    pub fn of_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self { inputs: BTreeMap::new(), own: OwnFlags::from_arg_matches(matches)? };
        for option in options::all() {
            if let Some(long) = option.long
                && let Some(input) = matches.get_one::<FlagInput>(long)
            {
                flags.inputs.insert(long, input.clone());
            }
        }
        Ok(flags)
    }

    /// Takes variables from `lookup` (None: not set). A flag that is given wins over its own variable.
    pub fn read_variables(&mut self, lookup: impl Fn(&str) -> Option<String>) {
        let get = |name: &str| lookup(name).map(|text| FlagInput::variable(name, text));
        for option in options::all() {
            if let Some(input) = option.variable.and_then(get) {
                self.inputs.entry(option.name()).or_insert(input);
            }
            if let Some(second) = option.second_variable
                && let Some(input) = get(second)
            {
                self.inputs.insert(second, input);
            }
        }
        self.inputs.extend(UNREAD.iter().filter_map(|(name, _)| Some((*name, get(name)?))));
    }

    /// What was given for an option.
    pub fn input(&self, option: &CaptureOption) -> Option<&FlagInput> {
        self.inputs.get(option.name())
    }

    /// Gives an option by code.
    pub fn set(&mut self, option: &CaptureOption, input: FlagInput) {
        self.inputs.insert(option.name(), input);
    }

    /// Takes an option away.
    pub fn remove(&mut self, option: &CaptureOption) {
        self.inputs.remove(option.name());
    }

    /// A boolean with its second variable: the flag wins, then the second variable, then the flag's own. A
    /// variable that is no boolean counts as not set (`AdditionalEnv` in `pkg/flag/flag.go` runs after `BindEnv`
    /// and drops errors).
    pub(super) fn switch(&self, option: &CaptureOption) -> Option<(&str, bool)> {
        let read = |input: &'_ FlagInput| input.switch();
        let named = |input: Option<&'_ FlagInput>| input.is_some_and(|input| read(input).is_some());
        let own = self.input(option);
        let second = option.second_variable.and_then(|name| self.inputs.get(name));
        let input = match own {
            Some(input) if input.origin() == Origin::Explicit => own,
            _ if named(second) => second,
            _ => own,
        }?;
        Some((input.name(), read(input)?))
    }

    /// Whether a boolean without a second variable is true.
    pub(super) fn is_on(&self, option: &CaptureOption) -> bool {
        self.switch(option).is_some_and(|(_, on)| on)
    }

    /// Variables that istio-iptables would ignore, too.
    pub(super) fn notes_on_variables(&self) -> impl Iterator<Item = Note> {
        let of_switch = |option: &'static CaptureOption| [Some(option.name()), option.second_variable];
        let switches = options::all().filter(|option| option.is_switch()).flat_map(of_switch).flatten();
        let unreadable = switches.filter_map(|name| {
            let input = self.inputs.get(name)?;
            let text = format!("{:?} is not a boolean and is ignored, as by istio-iptables", input.text());
            (!input.text().is_empty() && input.switch().is_none()).then(|| Note::warning(input.name(), text))
        });
        let unread = UNREAD.iter().filter(|(name, _)| self.inputs.contains_key(name)).map(|(name, read)| {
            Note::warning(name, format!("istio-iptables does not read this variable; set {read}"))
        });
        unreadable.chain(unread)
    }
}

impl Args for CaptureFlags {
    fn augment_args(command: Command) -> Command {
        let args = GROUPS.iter().flat_map(|group| group.options.iter().map(|option| (option, group.heading)));
        let command = command.args(args.filter_map(|(option, heading)| option.arg(heading)));
        OwnFlags::augment_args(command).after_long_help(variables_help())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CaptureFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::of_matches(matches)?;
        flags.read_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()));
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Help on the variables that no flag carries in its `[env: …]`.
pub fn variables_help() -> String {
    const COLUMN: usize = 24;
    let mut text = String::from("Variables without a flag of their own:");
    for option in options::all() {
        if let (Some(long), Some(second), Some(own)) = (option.long, option.second_variable, option.variable)
        {
            text += &format!("\n  {second:COLUMN$}as --{long}, wins over {own}");
        }
    }
    let bare = options::all().filter(|option| option.long.is_none());
    for option in bare {
        let help = option.help.replace('\n', &format!("\n  {:COLUMN$}", ""));
        let gap = if option.name().len() < COLUMN { String::new() } else { format!("\n  {:COLUMN$}", "") };
        text += &format!("\n  {:COLUMN$}{gap}{help}", option.name());
    }
    text + "\nA flag on the command line wins over a variable. An empty variable is given."
}
