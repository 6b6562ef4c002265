//! Asking the agent.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::error::{CniError, Result};
use crate::cni::protocol::{MAX_MESSAGE_BYTES, Operation, PLUGIN_TYPE, Reply, Request, code};

/// Longer than the agent takes for anything; the runtime waits for minutes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

/// Sends a request, with the namespace's descriptor if it has one, and waits for the answer.
///
/// # Errors
///
/// If the agent cannot be reached ("try again later": it may just be replaced), or says nothing of use.
pub fn ask(socket: &Path, request: &Request, conf_dir: &Path) -> Result<Reply> {
    let netns = open_netns(request)?;
    ask_within(ANSWER_TIMEOUT, socket, request, netns.as_ref()).map_err(|why| {
        let text = format!("{why}; {}", remedy(conf_dir));
        CniError::new(code::TRY_AGAIN, "the agent cannot be asked", text)
    })
}

/// The same, for as long as this; the error is for people.
pub fn ask_within(
    limit: Duration,
    socket: &Path,
    request: &Request,
    netns: Option<&File>,
) -> std::result::Result<Reply, String> {
    let failed =
        |what: &str, e: &dyn std::fmt::Display| format!("{what} the agent at {}: {e}", socket.display());
    let stream = UnixStream::connect(socket).map_err(|e| failed("cannot connect to", &e))?;
    let io = |e: std::io::Error| match e.kind() {
        ErrorKind::WouldBlock => {
            failed("no answer from", &format!("it has said nothing for {} s", limit.as_secs()))
        }
        _ => failed("lost the connection to", &e),
    };
    stream.set_read_timeout(Some(limit)).map_err(io)?;
    stream.set_write_timeout(Some(limit)).map_err(io)?;
    let mut text = serde_json::to_vec(request).map_err(|e| failed("cannot write to", &e))?;
    text.push(b'\n');
    send(&stream, &text, netns).map_err(io)?;
    stream.shutdown(Shutdown::Write).map_err(io)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE_BYTES as u64).read_to_end(&mut answer).map_err(io)?;
    if answer.is_empty() {
        return Err(failed("no answer from", &"it has hung up"));
    }
    serde_json::from_slice(&answer).map_err(|e| failed("no sense in the answer of", &e))
}

/// The agent takes the plugin off when its DaemonSet is deleted, unless it is killed meanwhile or the node is off.
fn remedy(conf_dir: &Path) -> String {
    let own = std::env::current_exe().unwrap_or_else(|_| PLUGIN_TYPE.into());
    format!(
        "see whether `redirector agent` runs on this node; if redirector was taken off the cluster, run here: \
         {} cni uninstall --bin-dir {} --conf-dir {}",
        own.display(),
        own.parent().unwrap_or(Path::new("/")).display(),
        conf_dir.display()
    )
}

/// The file is opened here: the agent may have other mounts.
fn open_netns(request: &Request) -> Result<Option<File>> {
    if request.netns.is_empty() {
        return Ok(None);
    }
    match File::open(&request.netns) {
        Ok(file) => Ok(Some(file)),
        Err(_) if request.operation == Operation::Del => Ok(None),
        Err(e) => {
            let text = format!("CNI_NETNS={}: {e}", request.netns);
            Err(CniError::new(code::INVALID_ENVIRONMENT, "the network namespace cannot be opened", text))
        }
    }
}

fn send(stream: &UnixStream, text: &[u8], netns: Option<&File>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = netns.iter().map(|file| file.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // Descriptors go with the first byte; requests are shorter than a socket's buffer.
    let sent = sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    if sent < text.len() {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
