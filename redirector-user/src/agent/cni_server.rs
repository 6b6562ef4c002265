//! The socket on which the CNI plugin asks. Only root's processes may.

use super::pass::about_target;
use super::pods::{Found, Known, instance, is_uid};
use super::{Agent, lock};
use crate::base::error::{Context, Result};
use crate::cni::protocol::{MAX_MESSAGE_BYTES, Operation, Reply, Request, SOCKET, VERSION, code};
use crate::instance::attach::Outcome;
use crate::instance::inventory::{InstanceState, InventoryItem, take_inventory};
use crate::instance::{find, status};
use crate::pod::{Target, kubernetes};
use crate::policy::annotations::Membership;
use crate::sys::netns::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// The kubelet makes a pod's cgroup before its sandbox, so that this is for machines that stall.
const CGROUP_PATIENCE: Duration = Duration::from_secs(3);
/// A plugin sends at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests that are worked on at once; more wait in the backlog.
const CONNECTIONS: usize = 64;

/// Opens the socket, in place of one that a killed agent has left: the caller is the only one at work.
///
/// # Errors
///
/// If the directory cannot be written to.
pub fn bind(run_dir: &Path) -> Result<UnixListener> {
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).context(|| format!("listen on {}", path.display()))?;
    // The directory keeps others out meanwhile.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .context(|| format!("chmod 600 {}", path.display()))?;
    Ok(listener)
}

/// Answers for ever.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let Ok(stream) = stream.into_std() else { continue };
        let agent = Arc::clone(&agent);
        tokio::task::spawn_blocking(move || {
            agent.converse(stream, uid.ok());
            drop(permit);
        });
    }
}

impl Agent {
    fn converse(&self, mut stream: UnixStream, uid: Option<u32>) {
        let set = stream.set_nonblocking(false);
        if set
            .and(stream.set_read_timeout(Some(PATIENCE)))
            .and(stream.set_write_timeout(Some(PATIENCE)))
            .is_err()
        {
            return;
        }
        // Read in any case: closing with something unread would take the answer away.
        let reply = match (receive(&mut stream), uid) {
            (Ok((request, netns)), Some(0)) => self.answer(&request, netns, &stream),
            (Err(why), Some(0)) => self.refuse("request", why),
            (_, other) => {
                self.refuse("peer", format!("only root may ask, not user {}", other.unwrap_or(u32::MAX)))
            }
        };
        // Whoever has hung up gets no answer; the runtime asks again.
        let _ = stream.write_all(&reply.written());
    }

    fn refuse(&self, reason: &'static str, why: String) -> Reply {
        self.metrics.error(reason);
        tracing::warn!(reason, "refused a request: {why}");
        Reply::Failed { code: code::CAPTURE, why }
    }

    fn answer(&self, request: &Request, netns: Option<OwnedFd>, asker: &UnixStream) -> Reply {
        if request.version != VERSION {
            let why = format!(
                "the plugin speaks version {} of the protocol, this agent {VERSION}; it is being replaced",
                request.version
            );
            return Reply::Failed { code: code::TRY_AGAIN, why };
        }
        tracing::debug!(operation = request.operation.name(), container = request.container, "asked");
        let reply = match request.operation {
            Operation::Add => self.add(request, netns, asker),
            Operation::Del => self.del(request, netns),
            Operation::Check => self.check(request, netns),
            Operation::Gc => self.gc(),
            Operation::Status => match self.ready() {
                Ok(_) => Reply::Done { instance: None },
                Err(why) => Reply::Failed { code: code::NOT_AVAILABLE, why },
            },
        };
        let operation = request.operation.name();
        let pod = request.pod.as_ref().map(ToString::to_string);
        let outcome = match &reply {
            Reply::Done { .. } => "done",
            Reply::Ignored { why } => {
                tracing::info!(operation, pod, container = request.container, "ignored: {why}");
                "ignored"
            }
            Reply::Failed { why, .. } => {
                tracing::error!(operation, pod, container = request.container, "failed: {why}");
                "failed"
            }
        };
        self.metrics.cni(operation, outcome);
        reply
    }

    /// The pod that a request is about, if it is to be captured.
    fn member(&self, request: &Request) -> Result<Known, Reply> {
        let ignored = |why: String| Reply::Ignored { why };
        let Some(name) = &request.pod else { return Err(ignored("CNI_ARGS names no pod".into())) };
        if name.uid.as_deref().is_some_and(|uid| !is_uid(uid)) {
            return Err(Reply::Failed {
                code: code::INVALID_ENVIRONMENT,
                why: "K8S_POD_UID is no uid".into(),
            });
        }
        // Not worth a question.
        if self.pods.excluded.contains(&name.namespace) {
            return Err(ignored(format!("namespace {} is excluded", name.namespace)));
        }
        let known = match self.pods.source.find(name) {
            Found::Pod(known) => *known,
            Found::Unknown(why) if self.pods.pass_unknown => {
                return Err(ignored(format!("nobody knows the pod, and --unknown-pods is pass: {why}")));
            }
            Found::Unknown(why) => {
                let why = format!("nobody knows whether the pod {name} is to be captured: {why}");
                return Err(Reply::Failed { code: code::TRY_AGAIN, why });
            }
        };
        match self.pods.membership(&known.pod) {
            Membership::Inside => Ok(known),
            Membership::Outside(why) => Err(ignored(why.to_string())),
        }
    }

    fn add(&self, request: &Request, netns: Option<OwnedFd>, asker: &UnixStream) -> Reply {
        let known = match self.member(request) {
            Ok(known) => known,
            Err(reply) => return reply,
        };
        let Some(netns) = netns else {
            return Reply::Failed {
                code: code::INVALID_ENVIRONMENT,
                why: "no network namespace was passed".into(),
            };
        };
        match self.capture(&known, &netns, &request.netns, asker) {
            Ok(Some(name)) => Reply::Done { instance: Some(name) },
            Ok(None) => Reply::Failed { code: code::TRY_AGAIN, why: "the plugin has not waited".into() },
            Err(e) => {
                if self.refused(&about_add(&known.instance()), "cni", &e) {
                    self.pods.source.warn(&known, &e);
                }
                Reply::Failed { code: code::CAPTURE, why: e.advice() }
            }
        }
    }

    /// None: whoever asked has given up. The runtime has told the kubelet so, which makes another sandbox, and that one is
    /// not to lose its capture to one that is to be thrown away.
    fn capture(
        &self,
        known: &Known,
        netns: &OwnedFd,
        path: &str,
        asker: &UnixStream,
    ) -> Result<Option<String>> {
        let cgroup = kubernetes::cgroup_of(&known.uid, self.pods.cgroup_root.as_deref(), CGROUP_PATIENCE)?;
        let target = Target::of_open(&file(netns), PathBuf::from(path), cgroup)?;
        let policy = self.pods.policy(known, &target)?;
        let name = known.instance();
        let _turn = lock(&self.turn);
        if has_hung_up(asker) {
            return Ok(None);
        }
        self.replace_sandbox(&name, &target)?;
        let report = self.attach(&name, &target, &policy, true)?;
        if report.outcome == Outcome::Unchanged {
            self.wake.notify_one();
        }
        self.fine(&name);
        self.fine(&about_target(&name));
        self.fine(&about_add(&name));
        Ok(Some(name))
    }

    /// A pod whose sandbox has ended gets another one, with another namespace.
    fn replace_sandbox(&self, name: &str, target: &Target) -> Result<()> {
        let old = take_inventory(&self.root)?.into_iter().find(|instance| instance.name == name);
        let Some(InventoryItem { identity, state, .. }) = old else { return Ok(()) };
        let is_another = match state {
            InstanceState::Active(active) => {
                active.netns_cookie != target.netns.cookie || active.cgroup_id != target.cgroup.id
            }
            // Both namespaces are there, or the old one is gone: numbers tell.
            InstanceState::Foreign { netns: Some(inode), .. } => inode != target.netns.inode,
            _ => false,
        };
        if is_another {
            tracing::info!(instance = name, "detaching: the pod has a new sandbox");
            self.detach(name, identity)?;
            self.metrics.step("detach");
        }
        Ok(())
    }

    /// Never fails: what is missing needs no removing, and what is left goes with its namespace.
    fn del(&self, request: &Request, netns: Option<OwnedFd>) -> Reply {
        let Some((name, identity)) = self.ended(request, netns) else {
            return Reply::Done { instance: None };
        };
        self.end(&name, identity, "the pod ends");
        Reply::Done { instance: Some(name) }
    }

    fn end(&self, name: &str, identity: u64, why: &str) {
        match self.detach_ended(name, identity) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.metrics.step("detach");
                tracing::info!(instance = name, "detach done: {why}");
            }
            Err(e) => {
                self.failed(name, "detach", &e);
                self.wake.notify_one();
            }
        }
    }

    /// What belongs to sandboxes that are gone goes before the answer. Attachments that the runtime names as valid are
    /// not asked for: capture ends with the namespace, whatever anybody says.
    fn gc(&self) -> Reply {
        for InventoryItem { name, identity, state } in take_inventory(&self.root).unwrap_or_default() {
            if state.has_ended() && name.starts_with(super::plan::POD) {
                self.end(&name, identity, "garbage");
            }
        }
        self.wake.notify_one();
        Reply::Done { instance: None }
    }

    /// The instance that belongs to the sandbox that ends: not that of a newer one of the same pod.
    fn ended(&self, request: &Request, netns: Option<OwnedFd>) -> Option<(String, u64)> {
        if let Some(netns) = netns {
            let found = find::identified(&self.root, &passed(&netns).ok()?).ok()??;
            return found.0.starts_with(super::plan::POD).then_some(found);
        }
        let name = instance(request.pod.as_ref()?.uid.as_deref().filter(|uid| is_uid(uid))?);
        let there = take_inventory(&self.root).ok()?.into_iter().find(|instance| instance.name == name)?;
        there.state.has_ended().then_some((name, there.identity))
    }

    fn check(&self, request: &Request, netns: Option<OwnedFd>) -> Reply {
        let known = match self.member(request) {
            Ok(known) => known,
            Err(reply) => return reply,
        };
        let name = known.instance();
        let of_it = netns.map_or(Ok(None), |netns| find::by_netns(&self.root, &passed(&netns)?));
        if !of_it.is_ok_and(|found| found.as_ref() == Some(&name)) {
            self.wake.notify_one();
            let why = format!("{} is not captured as {name}", request.netns);
            return Reply::Failed { code: code::NOT_CAPTURED, why };
        }
        match status::status(&self.root, &name) {
            Ok(status) if status.effective && status.state == "active" => {
                Reply::Done { instance: Some(name) }
            }
            Ok(_) => {
                self.wake.notify_one();
                let why = format!("not every hook of {name} is in force; see `redirector show {name} -v`");
                Reply::Failed { code: code::NOT_CAPTURED, why }
            }
            Err(e) => {
                self.wake.notify_one();
                Reply::Failed { code: code::NOT_CAPTURED, why: e.to_string() }
            }
        }
    }
}

/// What a failure of an ADD is about: the runtime tries again, whatever the passes find.
fn about_add(name: &str) -> String {
    format!("{name} (ADD)")
}

/// Whether the other end is closed; that it sends no more says nothing.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut asker = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut asker, Some(&Timespec::default())).is_ok() && asker[0].revents().contains(PollFlags::HUP)
}

/// The file of a descriptor that came with a request.
fn file(netns: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()))
}

fn passed(netns: &OwnedFd) -> Result<NetNs> {
    NetNs::open(&file(netns)).context(|| "open the network namespace that was passed".into())
}

/// Takes a request, and the descriptor that came with it.
fn receive(stream: &mut UnixStream) -> Result<(Request, Option<OwnedFd>), String> {
    let mut text = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let first = recvmsg(&*stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(|e| format!("receive: {e}"))?;
    let mut netns = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // The first counts; others are closed.
            netns = netns.or(fds.into_iter().next());
        }
    }
    text.truncate(first.bytes);
    if !text.ends_with(b"\n") {
        let room = (MAX_MESSAGE_BYTES - text.len()) as u64;
        stream.take(room).read_to_end(&mut text).map_err(|e| format!("receive: {e}"))?;
    }
    let request = serde_json::from_slice(&text).map_err(|e| format!("not a request: {e}"))?;
    Ok((request, netns))
}
