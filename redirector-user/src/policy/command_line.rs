//! The flags and variables of a command line: istio-iptables', word for word, and redirector's own.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::flag_input::{FlagInput, FlagParser};
use super::flags::{CaptureFlags, OwnFlags};
use super::note::Note;
use super::options::{self, CaptureOption, GROUPS, OPERATION, Value};

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
        let command = command.args(args.filter_map(|(option, heading)| arg(option, heading)));
        OwnFlags::augment_args(command).after_long_help(variables_help())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The argument of clap; None: a variable alone.
fn arg(option: &CaptureOption, heading: Option<&'static str>) -> Option<Arg> {
    let long = option.long?;
    let mut arg = Arg::new(long)
        .long(long)
        .help(option.help)
        .help_heading(heading)
        .hide_short_help(heading == Some(OPERATION));
    if let Some(short) = option.short {
        arg = arg.short(short);
    }
    if let Some(variable) = option.variable {
        arg = arg.env(variable);
    }
    if !option.long_help.is_empty() {
        arg = arg.long_help(format!("{}\n\n{}", option.help, option.long_help));
    }
    Some(match option.value {
        Value::Text(name) => arg.value_name(name).value_parser(FlagParser::Text),
        Value::Dashes(name) => arg.value_name(name).value_parser(FlagParser::Text).allow_hyphen_values(true),
        Value::Switch => arg
            .value_name("BOOL")
            .value_parser(FlagParser::Switch)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    })
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
