//! Drives the product: the `redirector` binary, as a user does.

pub mod agent;
pub mod bpffs;
pub mod health;
pub mod objects;
pub mod older;
pub mod runs;
pub mod schema;
pub mod test_pod;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::harness::command::{output, show};
use crate::harness::names;
use crate::harness::world::Pod;

/// Exit codes of the contract.
pub mod exit {
    /// Done, or nothing to do.
    pub const OK: i32 = 0;
    pub const FAILED: i32 = 1;
    /// Bad usage or bad input.
    pub const USAGE: i32 = 2;
    pub const NOTHING: i32 = 3;
    /// This kernel or node cannot.
    pub const CANNOT: i32 = 4;
}

/// The result of running the binary.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command, for messages.
    pub command: String,
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// How it ended, for messages.
    pub status: std::process::ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Runs a command made by [`command`].
    pub fn of(command: &mut Command) -> anyhow::Result<Self> {
        let binary = binary();
        ensure!(
            binary.is_file(),
            "{} does not exist: build it (`cargo build -p redirector-user`) or name one in REDIRECTOR_BIN",
            binary.display()
        );
        let output = output(command, "")?;
        Ok(Self {
            command: show(command),
            code: output.status.code(),
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Requires an exit code.
    pub fn expect(self, code: i32) -> anyhow::Result<Self> {
        ensure!(
            self.code == Some(code),
            "`{}` ended with {} instead of {code}.\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.stdout.trim(),
            self.stderr.trim()
        );
        Ok(self)
    }

    /// Requires that it has looked: found nothing wrong, or something.
    pub fn looked(self) -> anyhow::Result<Self> {
        let code = if self.code == Some(exit::FAILED) { exit::FAILED } else { exit::OK };
        self.expect(code)
    }

    /// Requires an exit code, and that the error (in JSON on standard error) contains all of these.
    pub fn refused(self, code: i32, words: &[&str]) -> anyhow::Result<Self> {
        let run = self.expect(code)?;
        let error = run.error()?;
        ensure!(error["exit_code"] == code, "`{}`: another exit code in the error: {error}", run.command);
        let text = error["error"].as_str().context("an error is a text")?;
        for word in words {
            ensure!(text.contains(word), "`{}` does not say {word:?}: {text}", run.command);
        }
        Ok(run)
    }

    /// The error: the last line of standard error, in JSON as all the others.
    pub fn error(&self) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        for line in self.stderr.lines() {
            last = serde_json::from_str(line)
                .with_context(|| format!("`{}` printed no JSON: {}", self.command, self.stderr))?;
        }
        if self.code.is_some_and(|code| code != exit::OK) {
            schema::check("error", &last)?;
        }
        Ok(last)
    }

    /// Its output as JSON, which is of the schema of the verb.
    pub fn json(&self) -> anyhow::Result<Value> {
        let value = serde_json::from_str(&self.stdout)
            .with_context(|| format!("`{}` printed no JSON: {}", self.command, self.stdout))?;
        schema::check_output(&self.command, &value)?;
        Ok(value)
    }
}

/// The binary: `REDIRECTOR_BIN`, else the one cargo built beside the tests.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("REDIRECTOR_BIN") {
        return path.into();
    }
    let me = std::env::current_exe().unwrap_or_default();
    let directory =
        me.parent().map(|dir| if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir });
    directory.unwrap_or(&me).join("redirector")
}

/// Runs the binary with JSON output and a clean environment.
pub fn redirector(arguments: &[&str], environment: &[(&str, String)]) -> anyhow::Result<Run> {
    let mut command = command(&[]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.args(arguments).args(["--output", "json"]);
    Run::of(&mut command)
}

/// The binary with a clean environment, to be run by another program (with its arguments) if one is given.
pub fn command(by: &[&str]) -> Command {
    command_of(&binary(), by)
}

/// The same for another binary.
pub fn command_of(binary: &Path, by: &[&str]) -> Command {
    let mut command = match by.split_first() {
        None => Command::new(binary),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary);
            command
        }
    };
    // Options may come from the environment, and must not come from the developer's.
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// An attached instance; detached on drop.
pub struct Instance {
    name: String,
}

impl Instance {
    /// Attaches to a pod with the flags given.
    pub fn attach(pod: &Pod, flags: &[String], environment: &[(&str, String)]) -> anyhow::Result<Self> {
        let instance = Self { name: names::unique() };
        attach_run(pod, &instance.name, flags, environment)?.expect(exit::OK)?;
        Ok(instance)
    }

    /// An instance that the caller attaches.
    pub fn named(name: String) -> Self {
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Detaches now, so that failing to do so is an error.
    pub fn detach(self) -> anyhow::Result<()> {
        redirector(&["detach", "--name", &self.name], &[])?.expect(exit::OK)?;
        Ok(())
    }

    /// `redirector show`.
    pub fn show(&self) -> anyhow::Result<Value> {
        redirector(&["show", &self.name], &[])?.looked()?.json()
    }

    /// `redirector original-dst`.
    pub fn original_dst(&self) -> anyhow::Result<Value> {
        redirector(&["original-dst", &self.name], &[])?.expect(exit::OK)?.json()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let run = redirector(&["detach", "--name", &self.name, "--ignore-missing"], &[]);
        if let Err(error) = run.and_then(|run| run.expect(exit::OK)) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

/// `redirector attach`, whatever its exit code.
pub fn attach_run(
    pod: &Pod,
    name: &str,
    flags: &[String],
    environment: &[(&str, String)],
) -> anyhow::Result<Run> {
    let target = bpffs::target(pod);
    let mut arguments = vec!["attach", "--name", name];
    arguments.extend(target.iter().map(String::as_str));
    arguments.extend(flags.iter().map(String::as_str));
    redirector(&arguments, environment)
}

/// `redirector list`: whether the name is in it.
pub fn is_listed(name: &str) -> anyhow::Result<bool> {
    let list = redirector(&["list"], &[])?.looked()?;
    list.json()?;
    Ok(list.stdout.contains(&format!("\"{name}\"")))
}
