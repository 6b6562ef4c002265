//! What an option is, and what was given for it.

use crate::policy::annotations::Reader;
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::flag_input::{FlagInput, Origin};
use crate::policy::flags::CaptureFlags;
use crate::policy::model::Policy;

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

/// A flag with its variable, or [`NO_VARIABLE`].
pub(super) const fn flag(long: &'static str, variable: &'static str, value: Value) -> CaptureOption {
    CaptureOption { long: Some(long), value, ..self::variable(variable) }
}

/// A flag that no variable stands for.
pub(super) const NO_VARIABLE: &str = "";

/// A variable alone.
pub(super) const fn variable(variable: &'static str) -> CaptureOption {
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

pub(super) const fn annotation(key: &'static str, row: &'static str, read: Read) -> Annotation {
    Annotation { key, row, read }
}

/// The last step of a group that has none.
pub(super) fn nothing(_: &mut Draft<'_>) -> Result<(), ConfigError> {
    Ok(())
}

impl CaptureOption {
    pub(super) const fn letter(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    pub(super) const fn second_variable(self, name: &'static str) -> Self {
        Self { second_variable: Some(name), ..self }
    }

    pub(super) const fn help(self, help: &'static str) -> Self {
        Self { help, ..self }
    }

    pub(super) const fn long_help(self, long_help: &'static str) -> Self {
        Self { long_help, ..self }
    }

    pub(super) const fn row(self, row: &'static str) -> Self {
        Self { row, ..self }
    }

    pub(super) const fn text(self, set: fn(&mut Draft<'_>, &FlagInput) -> Result<(), ConfigError>) -> Self {
        Self { set: Set::Text(set), ..self }
    }

    pub(super) const fn switch(self, set: fn(&mut Draft<'_>, &str, bool)) -> Self {
        Self { set: Set::Switch(set), ..self }
    }

    pub(super) const fn note(self, text: &'static str) -> Self {
        Self { set: Set::Note(text), ..self }
    }

    pub(super) const fn annotations(self, annotations: &'static [Annotation]) -> Self {
        Self { annotations, ..self }
    }

    pub(super) const fn example(self, value: &'static str, means: fn(&mut Policy), empty: Empty) -> Self {
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
}

impl CaptureFlags {
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
    pub(in crate::policy) fn switch(&self, option: &CaptureOption) -> Option<(&str, bool)> {
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
    pub(in crate::policy) fn is_on(&self, option: &CaptureOption) -> bool {
        self.switch(option).is_some_and(|(_, on)| on)
    }
}
