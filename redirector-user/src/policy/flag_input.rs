//! A value the user gave, with the name it was given under.
//!
//! istio-iptables tells "absent" from "given, but empty" (`-x ""`), and a variable from a flag: a boolean
//! variable that does not parse is ignored (`pkg/flag/flag.go` drops the error of `Set`), a boolean flag that
//! does not parse is refused. So nothing is parsed further here than needed for that; `resolve` does the
//! rest.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;

use super::error::ConfigError;

/// Where a [`FlagInput`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The command line, or code that fills the flags from elsewhere (annotations).
    Explicit,
    /// An environment variable.
    Variable,
}

/// A value as it was given, even if it is empty, and the flag, variable or annotation that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagInput {
    name: String,
    text: String,
    origin: Origin,
}

impl FlagInput {
    /// A value given explicitly under `name` (a flag with its dashes, or an annotation).
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), origin: Origin::Explicit }
    }

    /// A value given by the environment variable `name`.
    pub fn variable(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), origin: Origin::Variable }
    }

    /// The flag, variable or annotation, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Flag or variable.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Replaces a field by what `parse` makes of the value.
    pub(super) fn store<T>(
        &self,
        field: &mut T,
        parse: impl FnOnce(&str, &str) -> Result<T, ConfigError>,
    ) -> Result<(), ConfigError> {
        *field = parse(&self.name, &self.text)?;
        Ok(())
    }

    /// The value as a boolean, `None` if it is none.
    pub fn switch(&self) -> Option<bool> {
        parse_bool(&self.text)
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Takes the value of a flag as a [`FlagInput`].
#[derive(Debug, Clone, Copy)]
pub enum FlagParser {
    /// Any text.
    Text,
    /// A boolean: refused on the command line if it is none, kept as it is from a variable.
    Switch,
}

impl TypedValueParser for FlagParser {
    type Value = FlagInput;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<FlagInput, clap::Error> {
        self.parse_ref_(cmd, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<FlagInput, clap::Error> {
        let from_variable = source == ValueSource::EnvVariable;
        let name = if from_variable { variable_name(arg) } else { flag_name(arg) };
        let Some(text) = value.to_str() else {
            let message = format!("{name}: the value is not UTF-8; write it in ASCII\n");
            return Err(clap::Error::raw(ErrorKind::InvalidUtf8, message).with_cmd(cmd));
        };
        let input = if from_variable { FlagInput::variable(name, text) } else { FlagInput::new(name, text) };
        if matches!(self, Self::Switch) && input.origin == Origin::Explicit && input.switch().is_none() {
            let message = format!(
                "{}: {:?} is not a boolean; write {}=true or =false\n",
                input.name, input.text, input.name
            );
            return Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(cmd));
        }
        Ok(input)
    }
}

fn flag_name(arg: Option<&clap::Arg>) -> String {
    match arg {
        Some(arg) => match arg.get_long() {
            Some(long) => format!("--{long}"),
            None => arg.get_id().to_string(),
        },
        None => "argument".into(),
    }
}

fn variable_name(arg: Option<&clap::Arg>) -> String {
    match arg.and_then(clap::Arg::get_env) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => flag_name(arg),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_those_of_go() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse_bool(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parse_bool(text), Some(false), "{text}");
        }
        for text in ["", "yes", "no", "on", "off", "tRUE", " true", "true ", "2"] {
            assert_eq!(parse_bool(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_value_keeps_its_name_and_origin() {
        let flag = FlagInput::new("--proxy-uid", "");
        assert_eq!((flag.name(), flag.text(), flag.origin()), ("--proxy-uid", "", Origin::Explicit));
        assert_eq!(FlagInput::variable("DUAL_STACK", "t").switch(), Some(true));
    }
}
