//! What the verbs share: where instances are, how to print, what ends a command.

use super::output::{self, Format};
use crate::base::error::Error;
use crate::instance::directory::Directory;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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

/// What clap has to say: help and version, or that it did not understand.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has closed the pipe is no error.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if !asks_for_json(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned())) {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.to_string();
    fail(&Error::input(text.trim().trim_start_matches("error: ").to_owned()), Format::Json)
}

/// Whether a command line that was not understood has `--output json` in it.
fn asks_for_json(args: impl Iterator<Item = String>) -> bool {
    let args: Vec<String> = args.collect();
    args.iter().any(|arg| arg == "--output=json") || args.windows(2).any(|pair| pair == ["--output", "json"])
}

/// The file of a namespace that is given by a process or as such, and what to say if it is not there.
pub(super) fn netns_given(pid: Option<u32>, file: Option<&PathBuf>) -> Option<(PathBuf, String)> {
    if let Some(pid) = pid {
        let missing = format!(
            "there is no process {pid} (or it has ended); give the pid as the host sees it, or --name"
        );
        return Some((format!("/proc/{pid}/ns/net").into(), missing));
    }
    file.map(|file| (file.clone(), format!("{} does not exist", file.display())))
}

pub(super) fn fail(error: &Error, format: Format) -> ExitCode {
    if format == Format::Json {
        let text = serde_json::json!({ "error": error.on_command_line(), "exit_code": error.exit_code() });
        eprintln!("{text}");
    } else {
        eprintln!("redirector: {}", error.on_command_line());
    }
    ExitCode::from(error.exit_code())
}
