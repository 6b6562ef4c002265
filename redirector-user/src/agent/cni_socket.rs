//! `agent.sock`, on which the CNI plugin asks. Only processes of root may.

use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use super::cni_server::CniServer;
use super::file_events::{Names, Signs, Watcher};
use super::health::{Condition, Health};
use super::lock::HeldLock;
use super::metrics::Reason;
use super::retry::{Subject, pause};
use crate::base::error::{Context, Error, Result};
use crate::cni::protocol::{MAX_MESSAGE_BYTES, Reply, Request, SOCKET, code};

/// A plugin sends at once.
const PLUGIN_IO_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);
const FIRST_BIND_PAUSE: Duration = Duration::from_millis(100);
/// inotify reports a removed socket at once, but nothing that is mounted over it.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Requests that are worked on at once; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;

/// The bound socket.
pub struct Socket {
    run_dir: PathBuf,
    listener: UnixListener,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    watcher: Watcher,
    lock: Arc<HeldLock>,
    health: Arc<Health>,
}

impl Socket {
    /// Binds the socket in place of one that a killed agent has left.
    ///
    /// # Errors
    ///
    /// If something else is there.
    pub fn bind(run_dir: PathBuf, lock: Arc<HeldLock>, health: Arc<Health>) -> Result<Self> {
        let (listener, file) = bind(&run_dir)?;
        let socket = Self { run_dir, listener, file, watcher: Watcher::new()?, lock, health };
        socket.watch();
        Ok(socket)
    }

    /// Answers for ever.
    pub async fn serve(mut self, server: Arc<CniServer>) {
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.watcher.changed() => { self.keep(&server).await; continue }
                () = tokio::time::sleep(CHECK_INTERVAL) => { self.keep(&server).await; continue }
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            };
            let uid = stream.peer_cred().map(|peer| peer.uid());
            let Ok(stream) = stream.into_std() else { continue };
            let server = Arc::clone(&server);
            tokio::task::spawn_blocking(move || {
                converse(&server, stream, uid.ok());
                drop(permit);
            });
        }
    }

    /// Binds the socket again if its file is gone: a cleaner of /run, or another unit's RuntimeDirectory=.
    async fn keep(&mut self, server: &CniServer) {
        let failures = &server.executor.failures;
        let mut times = 0;
        while file(&self.run_dir).ok() != Some(self.file) {
            let bound = self.lock.renew(&self.run_dir).and_then(|()| bind(&self.run_dir));
            match bound {
                Ok((listener, file)) => {
                    (self.listener, self.file) = (listener, file);
                    self.watch();
                    failures.succeeded(&Subject::Socket);
                    self.health.met(Condition::Socket);
                    tracing::warn!(run_dir = %self.run_dir.display(), "somebody had removed the agent's socket; it is bound again");
                }
                Err(e) => {
                    times += 1;
                    self.health
                        .unmet(Condition::Socket, format!("the CNI plugin cannot ask: {}", e.advice()));
                    failures.failed(Subject::Socket, Reason::Socket, &e);
                    tokio::time::sleep(pause(times, FIRST_BIND_PAUSE)).await;
                }
            }
        }
    }

    fn watch(&self) {
        self.watcher.set(Signs::from([(self.run_dir.clone(), Names::one(SOCKET.as_ref()))]));
    }
}

fn bind(run_dir: &Path) -> Result<(UnixListener, (u64, u64))> {
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        // A kubelet that mounted it as a volume before there was an agent has made a directory.
        Err(e) if e.kind() == ErrorKind::IsADirectory => std::fs::remove_dir(&path).map_err(|e| {
            Error::os(format!("{} is a directory, and cannot be removed", path.display()), e)
                .remedy("remove it; mount the directory of the socket, not the socket")
        })?,
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).context(|| format!("listen on {}", path.display()))?;
    // The mode of the directory keeps others out meanwhile.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .context(|| format!("chmod 600 {}", path.display()))?;
    Ok((listener, file(run_dir)?))
}

fn file(run_dir: &Path) -> Result<(u64, u64)> {
    let path = run_dir.join(SOCKET);
    let file = std::fs::symlink_metadata(&path).context(|| format!("stat {}", path.display()))?;
    Ok((file.dev(), file.ino()))
}

/// Reads one request and answers it.
fn converse(server: &CniServer, mut stream: UnixStream, uid: Option<u32>) {
    let set = stream.set_nonblocking(false);
    let set = set.and(stream.set_read_timeout(Some(PLUGIN_IO_TIMEOUT)));
    if set.and(stream.set_write_timeout(Some(PLUGIN_IO_TIMEOUT))).is_err() {
        return;
    }
    // The request is read in any case: closing a socket with unread data discards the answer.
    let reply = match (receive(&mut stream), uid) {
        (Ok((request, netns)), Some(0)) => server.answer(&request, netns, &stream),
        (Err(why), Some(0)) => refuse(server, Reason::Request, why),
        (_, other) => {
            let uid = other.unwrap_or(u32::MAX);
            refuse(server, Reason::Peer, format!("only root may ask, not user {uid}"))
        }
    };
    // A plugin that has hung up gets no answer; the runtime asks again.
    let _ = stream.write_all(&reply.written());
}

/// Answers what is no request of root.
fn refuse(server: &CniServer, reason: Reason, why: String) -> Reply {
    server.executor.metrics.error(reason);
    tracing::warn!(reason = reason.name(), "refused a request: {why}");
    Reply::Failed { code: code::CAPTURE, why }
}

/// Takes a request, and the descriptor that came with it.
///
/// # Errors
///
/// Why it is none.
pub fn receive(stream: &mut UnixStream) -> Result<(Request, Option<OwnedFd>), String> {
    let mut text = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let first = recvmsg(&*stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| format!("receive: {e}"))?;
    let mut netns = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // More than one is closed unused.
            netns = netns.or(fds.into_iter().next());
        }
    }
    text.truncate(first.bytes);
    if !text.ends_with(b"\n") {
        let rest = (MAX_MESSAGE_BYTES - text.len()) as u64;
        stream.take(rest).read_to_end(&mut text).map_err(|e| format!("receive: {e}"))?;
    }
    let request = serde_json::from_slice(&text).map_err(|e| format!("not a request: {e}"))?;
    Ok((request, netns))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cni::protocol::{Operation, VERSION};
    use crate::pod::name::PodName;

    /// What the agent takes from a client that sends these pieces and hangs up.
    fn received(pieces: [&[u8]; 2]) -> Result<Request, String> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for piece in pieces {
                    // What is too much is not read.
                    let _ = theirs.write_all(piece);
                    std::thread::yield_now();
                }
            });
            let request = receive(&mut ours).map(|(request, _)| request);
            drop(ours);
            request
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn requests_arrive_in_any_pieces(words in prop::array::uniform4(".*"), at: prop::sample::Index) {
            let [container, netns, namespace, name] = words;
            let pod = Some(PodName { namespace, name, uid: None });
            let request = Request { version: VERSION, operation: Operation::Add, container, netns, pod };
            let line = serde_json::to_string(&request).unwrap() + "\n";
            let (first, second) = line.as_bytes().split_at(at.index(line.len()));
            prop_assert_eq!(received([first, second]), Ok(request));
        }

        #[test]
        fn anything_else_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), long: bool) {
            let rest = if long { vec![b' '; 2 * MAX_MESSAGE_BYTES] } else { Vec::new() };
            prop_assert!(received([&bytes, &rest]).is_err());
        }
    }
}
