//! Printing: tables for people, JSON for programs.

use std::io::{ErrorKind, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::base::error::{Error, Result};
use crate::base::text::printable;

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: stable names, one document.
    Json,
}

/// Prints a value as one JSON document.
pub fn json(value: &impl Serialize) -> Result<()> {
    write(&json_text(value)?)
}

/// A value as one JSON document.
pub fn json_text(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::failed(format!("serialise the result: {e}")))
}

/// Prints a table.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Result<()> {
    write(&table_text(header, rows))
}

/// Rows below a header, without lines, as `ps` does.
pub fn table_text<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    let is_terminal = std::io::stdout().is_terminal();
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout())
        && is_terminal
        && size.ws_col > 0
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.ws_col);
    }
    for row in rows {
        table.add_row(row);
    }
    let text = clean(&table.to_string());
    let mut lines = text.lines().map(str::trim_end);
    let first = paint(Paint::Heading, lines.next().unwrap_or_default(), is_terminal);
    let rest = lines.map(|line| match WRONG.iter().find(|word| line.contains(**word)) {
        Some(word) => line.replace(word, &paint(Paint::Wrong, word, is_terminal)),
        None => line.to_owned(),
    });
    std::iter::once(first).chain(rest).collect::<Vec<_>>().join("\n")
}

/// Words of a table that stand for something wrong.
const WRONG: [&str; 4] = ["FAILED", "missing", "damaged", "NO "];

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// The header of a table.
    Heading,
    /// Something is wrong.
    Wrong,
}

/// The text in colour on a terminal, unless NO_COLOR is set (no-color.org).
pub fn paint(paint: Paint, text: &str, is_terminal: bool) -> String {
    if !is_terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Heading => "1",
        Paint::Wrong => "1;31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Prints text and a newline. A reader that has closed the pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    write(&clean(text))
}

/// Several lines, without what a terminal would obey: names of cgroups, processes and rules are chosen by others.
pub fn clean(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints text that is clean already, or made for a program, and a newline.
pub fn write(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").or_else(unwritten)
}

/// Whether it is an error that standard output could not be written to.
pub fn unwritten(error: std::io::Error) -> Result<()> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Error::failed(format!("write to standard output: {error}"))),
    }
}

/// A remark for the user, on standard error; for programs an object a line.
pub fn note(format: Format, text: &str) {
    match format {
        Format::Json => eprintln!("{}", serde_json::json!({ "note": text })),
        Format::Table => eprintln!("redirector: note: {}", printable(text)),
    }
}
