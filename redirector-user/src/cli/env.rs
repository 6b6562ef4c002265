//! What the verbs share: where instances are, how to print, what ends a command.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::{self, Format, Paint};
use crate::base::error::Error;
use crate::base::text::printable;
use crate::instance::directory::Directory;

/// Where systemd mounts the bpffs.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// What every verb gets.
pub(super) struct Env {
    pub(super) root: Directory,
    pub(super) format: Format,
}

impl Env {
    pub(super) fn new(bpffs: &Path, format: Format) -> Self {
        let tell: fn(&str) = match format {
            Format::Json => |text| output::note(Format::Json, text),
            Format::Table => |text| output::note(Format::Table, text),
        };
        Self { root: Directory::at(bpffs).telling(tell), format }
    }

    /// A remark for the user.
    pub(super) fn note(&self, text: &str) {
        output::note(self.format, text);
    }
}

/// The file of a namespace that is given by a process or as such, and what to say if it is not there.
pub(super) fn netns_given(pid: Option<u32>, file: Option<&PathBuf>) -> Option<(PathBuf, String)> {
    if let Some(pid) = pid {
        let missing = format!(
            "there is no process {pid} (or it has ended); give the pid as the host sees it, or the name of the instance"
        );
        return Some((format!("/proc/{pid}/ns/net").into(), missing));
    }
    file.map(|file| (file.clone(), format!("{} does not exist", file.display())))
}

/// The last line on standard error of a command that fails, with `--output json`.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Failure<'a> {
    error: String,
    remedy: Option<&'a str>,
    exit_code: u8,
}

pub(super) fn fail(error: &Error, format: Format) -> ExitCode {
    let remedy = error.remedy_on_command_line();
    if format == Format::Json {
        let failure = Failure { error: error.on_command_line(), remedy, exit_code: error.exit_code() };
        eprintln!("{}", serde_json::json!(failure));
    } else {
        let name = output::paint(Paint::Wrong, "redirector:", std::io::stderr().is_terminal());
        eprintln!("{name} {}", printable(&error.to_string()));
        if let Some(remedy) = remedy {
            eprintln!("  {}", printable(remedy));
        }
    }
    ExitCode::from(error.exit_code())
}
