//! What can go wrong while the kernel is asked.

use std::io;

use crate::base::Error;

/// Why a request was not answered.
#[derive(Debug)]
pub(crate) enum NetlinkError {
    /// There is no socket for it: the limit of open files, or a socket family that seccomp does not allow.
    Socket(io::Error),
    /// A request could not be sent.
    Send { what: &'static str, source: io::Error },
    /// An answer did not arrive. EAGAIN: none within the time limit; ENOBUFS: it did not fit into the
    /// socket's buffer.
    Receive { what: &'static str, source: io::Error },
    /// The kernel refused to list something.
    Refused { what: &'static str, source: io::Error },
    /// The list changed under every attempt to read it (`NLM_F_DUMP_INTR`).
    Restless { what: &'static str },
    /// A message that does not have the form its header in uapi/linux gives it.
    Malformed { what: &'static str },
}

impl NetlinkError {
    /// The kernel's answer, if there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket(source)
            | Self::Send { source, .. }
            | Self::Receive { source, .. }
            | Self::Refused { source, .. } => source.raw_os_error(),
            Self::Restless { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Whether a list was refused because the kernel does not have the family or the kind: then it is empty.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { .. })
            && matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
    }
}

/// A list that is empty where the kernel does not have the family or the kind.
pub(crate) fn if_present<T>(list: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match list {
        Err(e) if e.is_absent() => Ok(Vec::new()),
        list => list,
    }
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        let os = |what: String, source: io::Error| Self::os(what, source);
        match error {
            NetlinkError::Socket(source) => {
                os("open a netlink socket in the network namespace".into(), source)
            }
            NetlinkError::Send { what, source } => {
                os(format!("ask the kernel for {what} (netlink send)"), source)
            }
            NetlinkError::Receive { what, source } => os(
                format!(
                    "wait for {what} from the kernel (netlink receive; if it repeats raise net.core.rmem_max or look \
                     for a process that holds the rtnl lock)"
                ),
                source,
            ),
            NetlinkError::Refused { what, source } => {
                os(format!("list {what} of the network namespace"), source)
            }
            NetlinkError::Restless { what } => Self::failed(format!(
                "{what} of the network namespace changed during each attempt to list them; try again when they are at \
                 rest"
            )),
            NetlinkError::Malformed { what } => Self::failed(format!(
                "the kernel's answer for {what} is malformed; please report it with `uname -r`"
            )),
        }
    }
}
