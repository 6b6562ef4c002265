//! The workflow files run nothing that is not run here: each command of theirs stands in `.ci`, or is a command line of
//! xtask that parses.

use std::fs;

use clap::Parser as _;

use crate::{Cli, project};

fn read(path: &str) -> String {
    fs::read_to_string(project::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files with a line of each, trimmed.
fn lines() -> Vec<(String, String)> {
    let directory = project::root().join(".github/workflows");
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| format!(".github/workflows/{}", name.to_string_lossy()));
    let lines = names.flat_map(|name| {
        let text = read(&name);
        text.lines().map(|line| (name.clone(), line.trim().to_owned())).collect::<Vec<_>>()
    });
    lines.collect()
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.trim_start_matches("- ").strip_prefix(key)?.strip_prefix(':').map(str::trim)
}

#[test]
fn workflows_run_what_is_run_here() {
    let scripts = [read(".ci/run"), read(".ci/quick"), read(".ci/install")].concat();
    let mut commands = 0;
    for (file, line) in lines() {
        let Some(command) = value(&line, "run") else { continue };
        commands += 1;
        assert!(!command.is_empty() && command != "|", "{file}: a command of several lines belongs into .ci");
        let in_scripts = [".ci/run", ".ci/quick"].contains(&command)
            || scripts.lines().any(|line| line.trim().ends_with(command));
        // A placeholder is filled in by the runner.
        let words = command.split_whitespace().filter(|word| !["${{", "}}"].contains(word));
        let parses =
            command.strip_prefix("cargo xtask ").is_some() && Cli::try_parse_from(words.skip(1)).is_ok();
        assert!(in_scripts || parses, "{file}: `{command}` is in no script of .ci");
    }
    assert!(commands >= 6, "only {commands} commands found");
}

#[test]
fn actions_are_pinned_to_commits() {
    let uses: Vec<(String, String)> = lines()
        .into_iter()
        .filter_map(|(file, line)| value(&line, "uses").map(|action| (file, action.to_owned())))
        .collect();
    assert!(uses.len() >= 6, "{uses:?}");
    for (file, action) in uses {
        let commit = action.split('@').nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{file}: {action}");
    }
}
