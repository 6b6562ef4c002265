//! Running helper programs with errors that say what was run and what it answered.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};

/// Runs to the end and returns the output, whatever the exit status.
pub fn output(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    let shown = show(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // In a thread of its own: input and output may both be larger than a pipe.
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("waiting for {shown}"))?;
    // A program that fails early does not read its input: its own words matter more than our broken pipe.
    let _ = writer.join();
    Ok(output)
}

/// Runs to the end and returns stdout; anything but success is an error that carries stderr.
pub fn run(command: &mut Command, input: &str) -> anyhow::Result<String> {
    let output = output(command, input)?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        show(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
