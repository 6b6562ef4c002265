//! istio-iptables' options, one entry each: names, help, documentation, parsing, annotation and example.
//!
//! Names, letters and variables: `tools/istio-iptables/pkg/cmd/root.go` and `pkg/constants/constants.go`.
//! `--help`, docs/options.md and the tests of every option come from these tables.

mod dns;
pub mod docs;
mod inbound;
mod operation;
mod outbound;
mod owners;
mod proxy;
pub(super) mod whole;

pub use dns::{CAPTURE_ALL_DNS, REDIRECT_DNS};
pub use operation::{
    CLEANUP_ONLY, DRY_RUN, FORCE_IPTABLES_BINARY, NETWORK_NAMESPACE, PROBE_PORT, PROBE_TIMEOUT,
    RUN_VALIDATION, SKIP_RULE_APPLY,
};
pub use proxy::{ENVOY_PORT, INBOUND_CAPTURE_PORT};

use super::annotations::Reader;
use super::draft::Draft;
use super::error::ConfigError;
use super::flag_input::{FlagInput, SwitchParser, TextParser};
use super::model::Policy;
use clap::Arg;

/// An option: a flag with its variables, or a variable alone.
pub struct CaptureOption {
    /// The flag without its dashes; None: the option is a variable alone.
    pub long: Option<&'static str>,
    /// Letter of the flag.
    pub short: Option<char>,
    /// Its variable.
    pub variable: Option<&'static str>,
    /// A variable that wins over `variable`, on redirector's process and on the proxy's container.
    pub second_variable: Option<&'static str>,
    /// What the flag takes.
    pub value: Value,
    /// Its line of `--help`; for a variable alone the lines of the list of variables.
    pub help: &'static str,
    /// What `--help` says more than `-h`.
    pub long_help: &'static str,
    /// Cells of its row in docs/options.md: the default of istio-iptables, what it means here, tests.
    pub row: &'static str,
    /// What it does to a policy.
    pub set: Set,
    /// Annotations of a pod that mean the same.
    pub annotations: &'static [Annotation],
    /// A value that matters.
    pub example: Option<Example>,
}

/// What a flag takes.
#[derive(Clone, Copy)]
pub enum Value {
    /// A text, called so in `--help`.
    Text(&'static str),
    /// A text that may begin with a dash.
    Dashes(&'static str),
    /// A boolean, true if the flag stands alone.
    Switch,
}

/// What an option does to a policy. Set even if the text is empty; not called for an absent option.
pub enum Set {
    /// Takes the text.
    Text(fn(&mut Draft<'_>, &FlagInput) -> Result<(), ConfigError>),
    /// Takes the boolean that is in force, with the name it was given under.
    Switch(fn(&mut Draft<'_>, &str, bool)),
    /// Has no bearing on the policy; asked for (true, not empty), it is worth this note.
    Note(&'static str),
    /// The last step of its group looks at it, or the verb.
    Later,
}

/// An annotation, and what Istio's CNI plugin makes of it.
pub struct Annotation {
    /// Its key.
    pub key: &'static str,
    /// Cells of its row in docs/options.md: what the plugin takes without it, what it may hold, tests.
    pub row: &'static str,
    /// Sets the policy, also if the annotation is absent.
    pub read: Read,
}

/// A value that matters, for the tests and the documentation.
pub struct Example {
    /// The value.
    pub value: &'static str,
    /// How it changes the base, before normalisation.
    pub means: fn(&mut Policy),
    /// What an empty value does.
    pub empty: Empty,
}

/// What an empty value does.
pub enum Empty {
    /// It changes the base in this way.
    Means(fn(&mut Policy)),
    /// It is refused.
    Refused,
}

/// Options that belong together, in the order in which they are applied.
pub struct Group {
    /// Heading in `--help`; None: variables alone.
    pub heading: Option<&'static str>,
    /// The options.
    pub options: &'static [&'static CaptureOption],
    /// What remains to be said when all options of the group are known.
    pub finish: fn(&mut Draft<'_>) -> Result<(), ConfigError>,
}

/// All groups. [`super::CaptureFlags`] has redirector's own flags under [`WHOLE`], too.
pub static GROUPS: [&Group; 7] = [
    &proxy::GROUP,
    &inbound::GROUP,
    &outbound::GROUP,
    &dns::GROUP,
    &owners::GROUP,
    &whole::GROUP,
    &operation::GROUP,
];

/// Heading of what is captured at all; redirector's own flags are there.
pub const WHOLE: &str = "Capture as a whole";

/// Heading of the proxy's ports and users.
pub const PROXY: &str = "The proxy";

/// A flag with its variable, or [`NO_VARIABLE`].
const fn flag(long: &'static str, variable: &'static str, value: Value) -> CaptureOption {
    CaptureOption { long: Some(long), value, ..self::variable(variable) }
}

/// A flag that no variable stands for.
const NO_VARIABLE: &str = "";

/// A variable alone.
const fn variable(variable: &'static str) -> CaptureOption {
    CaptureOption {
        long: None,
        short: None,
        variable: if variable.is_empty() { None } else { Some(variable) },
        second_variable: None,
        value: Value::Text(""),
        help: "",
        long_help: "",
        row: "",
        set: Set::Later,
        annotations: &[],
        example: None,
    }
}

type Read = fn(&mut Draft<'_>, &Reader<'_>, &'static str) -> Result<(), ConfigError>;

const fn annotation(key: &'static str, row: &'static str, read: Read) -> Annotation {
    Annotation { key, row, read }
}

/// All options.
pub fn all() -> impl Iterator<Item = &'static CaptureOption> {
    GROUPS.iter().flat_map(|group| group.options.iter().copied())
}

fn nothing(_: &mut Draft<'_>) -> Result<(), ConfigError> {
    Ok(())
}

impl CaptureOption {
    const fn letter(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn second_variable(self, name: &'static str) -> Self {
        Self { second_variable: Some(name), ..self }
    }

    const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    const fn long_help(self, long_help: &'static str) -> Self {
        Self { long_help, ..self }
    }

    const fn row(self, row: &'static str) -> Self {
        Self { row, ..self }
    }

    const fn text(self, set: fn(&mut Draft<'_>, &FlagInput) -> Result<(), ConfigError>) -> Self {
        Self { set: Set::Text(set), ..self }
    }

    const fn switch(self, set: fn(&mut Draft<'_>, &str, bool)) -> Self {
        Self { set: Set::Switch(set), ..self }
    }

    const fn note(self, text: &'static str) -> Self {
        Self { set: Set::Note(text), ..self }
    }

    const fn annotations(self, annotations: &'static [Annotation]) -> Self {
        Self { annotations, ..self }
    }

    const fn example(self, value: &'static str, means: fn(&mut Policy), empty: Empty) -> Self {
        Self { example: Some(Example { value, means, empty }), ..self }
    }

    /// The flag's name, or the variable's.
    pub fn name(&self) -> &'static str {
        self.long.or(self.variable).unwrap_or_default()
    }

    /// Whether it takes a boolean.
    pub fn is_switch(&self) -> bool {
        matches!(self.value, Value::Switch)
    }

    /// The argument of clap; None: a variable alone.
    pub(super) fn arg(&self, heading: Option<&'static str>) -> Option<Arg> {
        let long = self.long?;
        let mut arg = Arg::new(long)
            .long(long)
            .help(self.help)
            .help_heading(heading)
            .hide_short_help(heading == operation::GROUP.heading);
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        if let Some(variable) = self.variable {
            arg = arg.env(variable);
        }
        if !self.long_help.is_empty() {
            arg = arg.long_help(format!("{}\n\n{}", self.help, self.long_help));
        }
        Some(match self.value {
            Value::Text(name) => arg.value_name(name).value_parser(TextParser),
            Value::Dashes(name) => arg.value_name(name).value_parser(TextParser).allow_hyphen_values(true),
            Value::Switch => arg
                .value_name("BOOL")
                .value_parser(SwitchParser)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        })
    }
}
