//! What can go wrong: what failed, on which object, why, and what to do about it.

use std::fmt;
use std::io;

/// Result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error, and so the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong: exit code 2.
    Input,
    /// There is no such instance: exit code 3.
    NothingMatched,
    /// This kernel, node or set of privileges cannot: exit code 4.
    Unsupported,
    /// What is attached does not do what it should: exit code 1.
    Validation,
    /// The request was right and did not work: exit code 1.
    Failed,
}

/// An error. `Display` says what failed, on which object, and why. The remedy is apart, because the
/// command line, a log and a Kubernetes Event call for other words.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    why: Option<io::Error>,
    remedy: Option<String>,
    usage: Option<String>,
}

impl Error {
    /// An error of this kind. `what` names the action and its object.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: None, remedy: None, usage: None }
    }

    /// The request is wrong.
    pub fn input(what: impl Into<String>) -> Self {
        Self::new(Kind::Input, what)
    }

    /// There is no such instance.
    pub fn nothing_matched(what: impl Into<String>) -> Self {
        Self::new(Kind::NothingMatched, what)
    }

    /// This kernel, node or set of privileges cannot.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, what)
    }

    /// What is attached does not do what it should.
    pub fn validation(what: impl Into<String>) -> Self {
        Self::new(Kind::Validation, what)
    }

    /// The request was right and did not work.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    /// The kernel refused. EPERM and EACCES are a lack of privileges.
    pub fn os(what: impl Into<String>, why: impl Into<io::Error>) -> Self {
        let why = why.into();
        let kind = match why.kind() {
            io::ErrorKind::PermissionDenied => Kind::Unsupported,
            _ => Kind::Failed,
        };
        let remedy = (why.kind() == io::ErrorKind::ReadOnlyFilesystem).then(|| {
            "the file system is mounted read-only: mount it writable (mount -o remount,rw DIR)".into()
        });
        Self { why: Some(why), remedy, ..Self::new(kind, what) }
    }

    /// What to do about it, in words that fit everywhere: on the command line, in a log, in an Event.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// What to do about it on the command line: names its verbs and flags, and is shown nowhere else.
    #[must_use]
    pub fn usage(self, usage: impl Into<String>) -> Self {
        Self { usage: Some(usage.into()), ..self }
    }

    /// The same error about another action or object, told by the words it has now.
    #[must_use]
    pub fn about(self, what: impl FnOnce(&str) -> String) -> Self {
        Self { what: what(&self.what), ..self }
    }

    /// The same, with the option that it is about; a wrong value of it is wrong input.
    pub(crate) fn within(self, option: &str) -> Self {
        match self.kind {
            Kind::Input => self.about(|what| format!("{option}: {what}")),
            _ => self,
        }
    }

    /// Whether the kernel has refused to look, for lack of memory, of descriptors or of privileges: such an error says
    /// nothing of what was to be looked at. That it is not there (ENOENT) does.
    pub fn is_no_verdict(&self) -> bool {
        self.why.as_ref().is_some_and(|why| why.kind() != io::ErrorKind::NotFound)
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The kernel's word, if the kernel refused.
    pub fn why(&self) -> Option<&io::Error> {
        self.why.as_ref()
    }

    /// The remedy in words of the command line, else in words that fit everywhere.
    pub fn remedy_on_command_line(&self) -> Option<&str> {
        self.usage.as_deref().or(self.remedy.as_deref())
    }

    /// With the remedy in words of the command line.
    pub fn on_command_line(&self) -> String {
        join(self, self.remedy_on_command_line())
    }

    /// With the remedy, if it has words that fit everywhere: for logs and Events.
    pub fn advice(&self) -> String {
        join(self, self.remedy.as_deref())
    }

    /// Exit code of the command line, see docs/cli.md.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input => 2,
            Kind::NothingMatched => 3,
            Kind::Unsupported => 4,
            Kind::Validation | Kind::Failed => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.why.as_ref().map(|why| why as _)
    }
}

/// An error and its remedy on one line.
fn join(error: &Error, remedy: Option<&str>) -> String {
    match remedy {
        Some(remedy) => format!("{error}; {remedy}"),
        None => error.to_string(),
    }
}

/// Says what was attempted when a system call or a library fails.
pub trait Context<T> {
    /// `what`: the action and its object, as in "pin link to /sys/fs/bpf/…".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T, io::Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|why| Error::os(what(), why))
    }
}

impl<T> Context<T> for Result<T, rustix::io::Errno> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::os(what(), errno))
    }
}

impl<T> Context<T> for Result<T, aya::maps::MapError> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        use aya::maps::MapError::SyscallError;
        self.map_err(|e| match e {
            SyscallError(e) => Error::os(format!("{}: {}", what(), e.call), e.io_error),
            e => Error::failed(format!("{}: {}", what(), chain(&e))),
        })
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line_stay_there() {
        let plain = Error::os("pin x", rustix::io::Errno::PERM);
        assert_eq!(
            (plain.advice(), plain.exit_code()),
            ("pin x: Operation not permitted (os error 1)".into(), 4)
        );
        let both = Error::input("a name is taken").remedy("choose another").usage("give another --name");
        assert_eq!(both.advice(), "a name is taken; choose another");
        assert_eq!(both.on_command_line(), "a name is taken; give another --name");
        let usage = Error::failed("x is draining").usage("run `redirector detach`");
        assert_eq!(usage.advice(), "x is draining");
    }
}
