//! Printing: tables for people, JSON for programs.

use crate::base::error::{Error, Result};
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write};

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
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::failed(format!("serialise the result: {e}")))?;
    print(&text)
}

/// Prints rows below a header, without lines, as `ps` does.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    print(&lines.join("\n"))
}

/// Prints text and a newline. A reader that has closed the pipe (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
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
        Format::Table => eprintln!("redirector: note: {text}"),
    }
}
