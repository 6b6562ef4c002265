//! What clap has to say, in this program's words.

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use redirector_common::abi::ABI_VERSION;

use super::env::fail;
use super::output::{Format, json};
use crate::base::error::Error;
use crate::programs::object;

/// Version of the program, its eBPF object and the layout of its maps.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    format!("{} (eBPF object {}, ABI {ABI_VERSION})", env!("CARGO_PKG_VERSION"), object::ID)
});

/// What `--version --output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Version {
    version: &'static str,
    /// Id of the eBPF object.
    object: &'static str,
    /// Layout of the maps.
    abi: u32,
}

/// Ends a command line that clap answers itself: by help, by the version, or because it did not understand.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    let as_json = asks_for_json(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()));
    match error.kind() {
        ErrorKind::DisplayVersion if as_json => {
            let version =
                Version { version: env!("CARGO_PKG_VERSION"), object: object::ID, abi: ABI_VERSION };
            json(&version).map_or_else(|e| fail(&e, Format::Json), |()| ExitCode::SUCCESS)
        }
        // Help that stands for an error goes to standard error.
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has closed the pipe is no error.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 2 } else { 0 })
        }
        _ => fail(&in_own_words(error), if as_json { Format::Json } else { Format::Table }),
    }
}

/// Whether a command line that was not understood has `--output json` in it.
fn asks_for_json(args: impl Iterator<Item = String>) -> bool {
    let args: Vec<String> = args.collect();
    args.iter().any(|arg| arg == "--output=json") || args.windows(2).any(|pair| pair == ["--output", "json"])
}

fn in_own_words(error: &clap::Error) -> Error {
    let get = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        ContextValue::StyledStr(text) => Some(text.to_string()),
        _ => None,
    };
    let rendered = error.to_string();
    let first = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let Some(arg) = get(ContextKind::InvalidArg).or_else(|| get(ContextKind::InvalidSubcommand)) else {
        // It comes from a parser of ours.
        return match first.split_once("; ") {
            Some((what, remedy)) => Error::input(what).usage(remedy),
            None => Error::input(first),
        };
    };
    let flag = |arg: &str| arg.split([' ', ',']).next().unwrap_or_default().to_owned();
    let value = get(ContextKind::InvalidValue).unwrap_or_default();
    let what = match error.kind() {
        ErrorKind::UnknownArgument => format!("there is no flag {arg} here"),
        ErrorKind::InvalidSubcommand => format!("there is no verb {arg}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("{} takes a value", flag(&arg)),
        ErrorKind::InvalidValue => {
            let valid = get(ContextKind::ValidValue).unwrap_or_default();
            format!("{}: {value:?} is none of {valid}", flag(&arg))
        }
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{}: {value:?} {}", flag(&arg), why_refused(&why))
        }
        ErrorKind::ArgumentConflict => match get(ContextKind::PriorArg).map(|prior| flag(&prior)) {
            Some(prior) if prior == flag(&arg) => format!("{prior} is given more than once"),
            prior => format!("{} and {} exclude each other", flag(&arg), prior.unwrap_or_default()),
        },
        ErrorKind::MissingRequiredArgument => format!("{arg} is missing"),
        _ => first,
    };
    let similar = get(ContextKind::SuggestedArg).or_else(|| get(ContextKind::SuggestedSubcommand));
    let named = || std::env::args().nth(1).map(|first| format!("redirector {first}"));
    let verb = get(ContextKind::Usage).or_else(named).map(|usage| verb(&usage)).unwrap_or_default();
    let help = format!("see `redirector{verb} --help`");
    Error::input(what)
        .usage(similar.map_or(help.clone(), |similar| format!("did you mean {similar}? Else {help}")))
}

/// The words of the libraries that parse numbers and addresses, said so that they need no programmer.
fn why_refused(why: &str) -> String {
    match why {
        "invalid socket address syntax" => {
            "is no address with a port, such as 10.1.2.3:80 or [fd00::1]:80".to_owned()
        }
        "invalid IP address syntax" => "is no IP address".into(),
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "is not a number".into()
        }
        "number too large to fit in target type" => "is too large".into(),
        _ => match why.split_once(" is not in ").and_then(|(_, range)| range.split_once("..")) {
            Some((least, most)) => {
                format!("is not a number from {least} to {}", most.trim_start_matches('='))
            }
            None => format!("is refused: {why}"),
        },
    }
}

/// ` attach` of `Usage: redirector attach [OPTIONS] …`.
fn verb(usage: &str) -> String {
    let words = usage.split_whitespace().skip_while(|word| *word != "redirector").skip(1);
    let verbs = words.take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
    verbs.filter(|word| !word.starts_with('-')).map(|verb| format!(" {verb}")).collect()
}
