//! Running other programs: every command is shown before it runs and named when it fails.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// A command line that knows how to show itself.
///
/// Standard input is `/dev/null` unless [`Cmd::interactive`] is called: a child that stops to ask a
/// question would hang a CI machine.
pub struct Cmd {
    inner: Command,
    shown: String,
    quiet: bool,
}

impl Cmd {
    /// A command that runs `program`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut inner = Command::new(&program);
        inner.stdin(Stdio::null());
        Self { inner, shown: shell_word(program.as_ref()), quiet: false }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&shell_word(arg.as_ref()));
        self.inner.arg(arg);
        self
    }

    /// Adds several arguments.
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable and shows it in front of the command.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{name}={} {}", shell_word(value.as_ref()), self.shown);
        self.hidden_env(name, value)
    }

    /// Sets an environment variable that nobody wants to read on every line.
    pub fn hidden_env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.inner.env_remove(name);
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// Passes our standard input on.
    pub fn interactive(mut self) -> Self {
        self.inner.stdin(Stdio::inherit());
        self
    }

    /// Neither shows the command nor its standard output; errors stay visible.
    pub fn quiet(mut self, quiet: bool) -> Self {
        self.quiet = quiet;
        self
    }

    /// Runs to the end; anything but success is an error that names the command.
    pub fn run(self) -> Result<()> {
        let shown = self.shown.clone();
        check(&shown, self.status()?)
    }

    /// Runs to the end and returns how it ended.
    pub fn status(mut self) -> Result<ExitStatus> {
        if self.quiet {
            self.inner.stdout(Stdio::null());
        } else {
            eprintln!("+ {}", self.shown);
        }
        self.inner.status().with_context(|| not_started(&self.shown))
    }

    /// Runs it and returns its standard output.
    pub fn read(self) -> Result<String> {
        let shown = self.shown.clone();
        String::from_utf8(self.read_bytes()?).with_context(|| format!("`{shown}` did not write UTF-8"))
    }

    /// The same, of a program that does not write text.
    pub fn read_bytes(mut self) -> Result<Vec<u8>> {
        if !self.quiet {
            eprintln!("+ {}", self.shown);
        }
        let output = self
            .inner
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| not_started(&self.shown))?;
        check(&self.shown, output.status)?;
        Ok(output.stdout)
    }

    /// Asks a question silently: `None` when the program is missing or says no.
    pub fn probe(mut self) -> Option<String> {
        let output = self.inner.stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

fn not_started(shown: &str) -> String {
    format!("cannot start `{shown}`")
}

fn check(shown: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// `word` as one would type it in a shell.
fn shell_word(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    let mut quoted = String::from("'");
    for c in word.chars() {
        match c {
            '\'' => quoted.push_str(r"'\''"),
            c if c.is_control() => drop(write!(quoted, "{}", c.escape_default())),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// Puts `dir` in front of `PATH`.
pub fn path_with(dir: &Path) -> OsString {
    let mut path = OsString::from(dir);
    if let Some(old) = std::env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_when_needed() {
        assert_eq!(shell_word("--target=bpfel".as_ref()), "--target=bpfel");
        assert_eq!(shell_word("a b".as_ref()), "'a b'");
        assert_eq!(shell_word("it's".as_ref()), r"'it'\''s'");
        assert_eq!(shell_word("".as_ref()), "''");
    }

    #[test]
    fn a_failure_names_the_command() {
        let error = Cmd::new("false").arg("x").quiet(true).run().unwrap_err().to_string();
        assert!(error.contains("`false x` failed"), "{error}");
        let error = Cmd::new("/nonexistent/program").quiet(true).run().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/program"), "{error}");
    }
}
