//! The schema of observations: the probe writes it, the tests compare it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The answer to "which address?": an address, or the error's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum AddressOrErrno {
    Address(SocketAddr),
    /// The name of an errno, or words for something unexpected.
    Error(String),
}

impl AddressOrErrno {
    /// The address, if there was one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Error(_) => None,
        }
    }
}

impl From<SocketAddr> for AddressOrErrno {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

impl From<std::io::Result<SocketAddr>> for AddressOrErrno {
    fn from(result: std::io::Result<SocketAddr>) -> Self {
        match result {
            Ok(address) => Self::Address(address),
            Err(error) => Self::Error(errno_name(&error)),
        }
    }
}

impl From<String> for AddressOrErrno {
    fn from(text: String) -> Self {
        SocketAddr::from_str(&text).map_or(Self::Error(text), Self::Address)
    }
}

impl From<AddressOrErrno> for String {
    fn from(seen: AddressOrErrno) -> Self {
        seen.to_string()
    }
}

impl fmt::Display for AddressOrErrno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Error(name) => f.write_str(name),
        }
    }
}

/// `"ok"` or the name of an errno.
pub type Outcome = String;

/// The word for success in an [`Outcome`].
pub const OK: &str = "ok";

/// Turns a result into an [`Outcome`].
pub fn outcome<T, E: Into<std::io::Error>>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => OK.to_owned(),
        Err(error) => errno_name(&error.into()),
    }
}

/// A `getsockopt` to be asked of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Ask the listening socket rather than the accepted one (servers only).
    pub listener: bool,
    /// Level, e.g. `SOL_IP`.
    pub level: i32,
    /// Option, e.g. `SO_ORIGINAL_DST`.
    pub name: i32,
    /// Length of the buffer.
    pub length: u32,
    /// How many bytes of the buffer are reported; `None`: all.
    pub shown: Option<u32>,
}

impl Question {
    /// A question to the connection itself.
    pub fn new(level: i32, name: i32, length: u32) -> Self {
        Self { listener: false, level, name, length, shown: None }
    }

    /// Reports only the first bytes of the answer.
    pub fn shown(mut self, bytes: u32) -> Self {
        self.shown = Some(bytes);
        self
    }

    /// A question to the listening socket.
    pub fn of_listener(mut self) -> Self {
        self.listener = true;
        self
    }
}

/// The answer to a `getsockopt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub question: Question,
    /// Success or the error.
    pub outcome: Outcome,
    /// The length the kernel left.
    pub length: u32,
    /// The buffer, which was filled with `aa` before: shows also what was *not* written.
    pub bytes: String,
}

/// A server's view of a connection it accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Which server: `proxy`, `app`, `remote`...
    pub role: String,
    /// The address its listener is bound to.
    pub listener: SocketAddr,
    /// The peer that `accept()` gave.
    pub accept_peer: AddressOrErrno,
    /// `getpeername()`.
    pub peer: AddressOrErrno,
    /// `getsockname()`.
    pub local: AddressOrErrno,
    /// `SO_ORIGINAL_DST` at `SOL_IP`.
    pub original_dst: AddressOrErrno,
    /// `SO_ORIGINAL_DST` at `SOL_IPV6`.
    pub original_dst6: AddressOrErrno,
}

/// An attempt before the one that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// The result of `connect()`.
    pub connect: Outcome,
    /// `getsockname()` afterwards.
    pub local: AddressOrErrno,
    /// `getpeername()` afterwards.
    pub peer: AddressOrErrno,
    /// The server's report, if it sent one.
    pub reached: Option<Accepted>,
    /// The result of `connect(AF_UNSPEC)`, if asked for.
    pub disconnect: Option<Outcome>,
    /// `getsockname()` after that.
    pub local_disconnected: Option<AddressOrErrno>,
    /// `getpeername()` after that.
    pub peer_disconnected: Option<AddressOrErrno>,
}

/// Everything seen of one connection, from both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    pub scenario: String,
    /// The result of creating the socket.
    pub socket: Option<Outcome>,
    /// The result of `bind()`.
    pub bind: Option<Outcome>,
    /// `getsockname()` before `connect()`.
    pub local_before: Option<AddressOrErrno>,
    /// Answers asked before connecting.
    pub before: Vec<Answer>,
    /// Earlier attempts on the socket.
    pub earlier: Vec<Earlier>,
    /// The result of `connect()`.
    pub connect: Option<Outcome>,
    /// For a connection completed later: what became of it.
    pub finished: Option<Outcome>,
    /// `getsockname()` of the client.
    pub local: Option<AddressOrErrno>,
    /// `getpeername()` of the client.
    pub peer: Option<AddressOrErrno>,
    /// `SO_ORIGINAL_DST` at `SOL_IP`, asked of the client's own socket.
    pub original_dst: Option<AddressOrErrno>,
    /// The same at `SOL_IPV6`.
    pub original_dst6: Option<AddressOrErrno>,
    /// The server's own report, as it arrived over the connection.
    pub reached: Option<Accepted>,
    /// The bytes that arrived instead of a report.
    pub greeting: Option<String>,
    /// The sender of a UDP answer, as `recvfrom()` gives it.
    pub answered_by: Option<AddressOrErrno>,
    /// Answers of the server's socket.
    pub server: Vec<Answer>,
    /// Answers of the client's socket.
    pub client: Vec<Answer>,
}

impl Observation {
    /// In a few words: where it ended. `"proxy:15001 original 10.96.0.10:8080"`, or the error.
    pub fn summary(&self) -> String {
        if let Some(failed) = self.failure() {
            return failed;
        }
        let Some(reached) = &self.reached else {
            return format!("connected, but no report: {}", self.greeting.as_deref().unwrap_or("nothing"));
        };
        let original = match (reached.role.as_str(), reached.original_dst.address(), &reached.original_dst6) {
            ("proxy", Some(original), _) => format!(" original {original}"),
            ("proxy", None, original) => format!(" original {original}"),
            _ => String::new(),
        };
        format!("{}:{}{original}", reached.role, reached.listener.port())
    }

    /// The first thing that went wrong, if any.
    pub fn failure(&self) -> Option<String> {
        let pending = |text: &str| text == OK || text == "EINPROGRESS";
        let steps = [("socket", &self.socket), ("bind", &self.bind), ("connect", &self.connect)];
        for (step, outcome) in steps {
            if let Some(text) = outcome
                && !(pending(text) && (text == OK || self.finished.is_some()))
            {
                return Some(if step == "connect" { text.clone() } else { format!("{step}: {text}") });
            }
        }
        self.finished.clone().filter(|text| text != OK)
    }
}

/// The summary of what is captured on its way out.
pub fn captured(to: SocketAddr) -> String {
    format!("proxy:15001 original {to}")
}

/// The symbolic name of an I/O error: stable in reports, unlike its message.
pub fn errno_name(error: &std::io::Error) -> String {
    let Some(number) = error.raw_os_error() else { return error.to_string() };
    macro_rules! names {
        ($($errno:ident)*) => { [$((libc::$errno, stringify!($errno))),*] };
    }
    let names = names!(
        EPERM ENOENT EBADF EAGAIN ENOMEM EACCES EFAULT
        EINVAL EMFILE EPIPE ENOPROTOOPT EOPNOTSUPP EPROTONOSUPPORT EAFNOSUPPORT
        EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ECONNABORTED ECONNRESET ENOBUFS
        EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED EHOSTUNREACH EALREADY EINPROGRESS
    );
    let known = names.iter().find(|(errno, _)| *errno == number);
    known.map_or_else(|| format!("errno {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_errors_survive_json() {
        for text in ["10.0.0.1:80", "[fd00::1]:80", "[fe80::1%7]:80", "[::ffff:10.0.0.1]:80", "ENOENT"] {
            let seen = AddressOrErrno::from(text.to_owned());
            assert_eq!(seen.address().is_none(), text == "ENOENT", "{text}");
            let json = serde_json::to_string(&seen).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<AddressOrErrno>(&json).unwrap(), seen);
        }
    }

    #[test]
    fn a_failure_is_named_by_its_step() {
        let mut observation =
            Observation { socket: Some(OK.into()), bind: Some("EADDRINUSE".into()), ..Default::default() };
        assert_eq!(observation.failure().unwrap(), "bind: EADDRINUSE");
        observation.bind = None;
        observation.connect = Some("EINPROGRESS".into());
        assert_eq!(observation.failure().unwrap(), "EINPROGRESS", "a wait that ran out of time is a failure");
        observation.finished = Some(OK.into());
        assert_eq!(observation.failure(), None);
    }
}
