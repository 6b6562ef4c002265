//! Answers the CNI plugin.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::execute::Executor;
use super::health::Health;
use super::metrics::Reason;
use super::plan::{POD_PREFIX, Present};
use super::pods::cache::Told;
use super::pods::model::{NodePod, instance_name, is_uid};
use super::retry::Subject;
use super::sync::lock;
use crate::base::error::{Context, Result};
use crate::cni::protocol::{Operation, Reply, Request, VERSION, code};
use crate::instance::attach::Outcome;
use crate::instance::directory::Directory;
use crate::instance::inventory::{InstanceState, InventoryItem, look_at, take_inventory};
use crate::instance::{find, status};
use crate::pod::name::PodName;
use crate::pod::{Target, kubernetes, sandbox};
use crate::policy::annotations::Membership;
use crate::sys::netns::NetNs;

/// The kubelet makes a pod's cgroup before its sandbox; this is for machines that stall.
const CGROUP_TIMEOUT: Duration = Duration::from_secs(3);
/// So many pods at most are attached at once.
const PODS_AT_ONCE: usize = 32;
/// Logged failures of different pods that are remembered.
const MAX_REPORTED: usize = 1024;

pub struct CniServer {
    pub executor: Arc<Executor>,
    pub health: Arc<Health>,
    /// One is held by the request that attaches: the same one for the same pod.
    pub attaching: [Mutex<()>; PODS_AT_ONCE],
    /// Failures that were logged, until they change.
    pub reported: Mutex<HashMap<(Operation, Option<PodName>), String>>,
}

impl CniServer {
    /// Answers a request of root.
    pub fn answer(&self, request: &Request, netns: Option<OwnedFd>, plugin: &UnixStream) -> Reply {
        if request.version != VERSION {
            let why = format!(
                "the plugin speaks version {} of the protocol, this agent {VERSION}; it is being replaced",
                request.version
            );
            return Reply::Failed { code: code::TRY_AGAIN, why };
        }
        tracing::debug!(operation = request.operation.name(), container = request.container, "asked");
        let key = (request.operation, request.pod.clone());
        let reply = match request.operation {
            Operation::Add => self.add(request, netns, plugin),
            Operation::Del => self.del(request, netns),
            Operation::Check => self.check(request, netns),
            Operation::Gc => self.gc(),
            // Only what makes the next ADD fail on this node counts: a runtime that gets an error here makes the node
            // NotReady, and its pods are evicted.
            Operation::Status => match self.can_attach() {
                Ok(()) => Reply::Done { instance: None },
                Err(e) => failed(code::NOT_AVAILABLE, e.advice()),
            },
            Operation::Ready => match self.health.ready() {
                Ok(_) => Reply::Done { instance: None },
                Err(why) => failed(code::NOT_AVAILABLE, why),
            },
        };
        let operation = request.operation.name();
        let pod = request.pod.as_ref().map(ToString::to_string);
        let outcome = match &reply {
            Reply::Done { .. } => {
                lock(&self.reported).remove(&key);
                "done"
            }
            Reply::Ignored { why } => {
                tracing::info!(operation, pod, container = request.container, "ignored: {why}");
                "ignored"
            }
            Reply::Failed { why, .. } => {
                if self.is_new(request, why) {
                    tracing::error!(operation, pod, container = request.container, "failed: {why}");
                    let mut reported = lock(&self.reported);
                    if reported.len() >= MAX_REPORTED {
                        reported.clear();
                    }
                    reported.insert(key, why.clone());
                }
                "failed"
            }
        };
        self.executor.metrics.cni(operation, outcome);
        reply
    }

    fn can_attach(&self) -> Result<()> {
        self.executor.root.require()?;
        take_inventory(&self.executor.root).map(drop)
    }

    /// Whether a failure has not been reported yet. The runtime repeats a failed ADD by itself.
    fn is_new(&self, request: &Request, why: &str) -> bool {
        let key = (request.operation, request.pod.clone());
        lock(&self.reported).get(&key).is_none_or(|reported| reported != why)
    }

    /// The pod that a request is about, if it is to be captured.
    fn member(&self, request: &Request) -> Result<NodePod, Reply> {
        let ignored = |why: String| Reply::Ignored { why };
        let pods = &self.executor.pods;
        let Some(name) = &request.pod else { return Err(ignored("CNI_ARGS names no pod".into())) };
        if name.uid.as_deref().is_some_and(|uid| !is_uid(uid)) {
            return Err(failed(code::INVALID_ENVIRONMENT, "K8S_POD_UID is no uid"));
        }
        // Excluded pods start without the API server.
        if pods.excluded.contains(&name.namespace) {
            return Err(ignored(format!("namespace {} is excluded", name.namespace)));
        }
        let pod = match pods.source.find(name) {
            Ok(pod) => pod,
            Err(why) if pods.pass_unknown => {
                return Err(ignored(format!("nobody knows the pod, and --unknown-pods is pass: {why}")));
            }
            Err(why) => {
                let why = format!("nobody knows whether the pod {name} is to be captured: {why}");
                return Err(failed(code::TRY_AGAIN, why));
            }
        };
        match pods.membership(&pod.pod) {
            Membership::Inside => Ok(pod),
            Membership::Outside(why) => Err(ignored(why.to_string())),
        }
    }

    fn add(&self, request: &Request, netns: Option<OwnedFd>, plugin: &UnixStream) -> Reply {
        let pod = match self.member(request) {
            Ok(pod) => pod,
            Err(reply) => return reply,
        };
        let Some(netns) = netns else {
            return failed(code::INVALID_ENVIRONMENT, "no network namespace was passed");
        };
        match self.capture(&pod, &netns, &request.netns, plugin) {
            Ok(Some(name)) => Reply::Done { instance: Some(name) },
            Ok(None) => failed(code::TRY_AGAIN, "the plugin has not waited"),
            Err(e) => {
                self.executor.metrics.error(Reason::Cni);
                if self.is_new(request, &e.advice()) {
                    self.executor.pods.source.tell(&pod, &Told::Failed(&e), &self.executor.metrics);
                }
                failed(code::CAPTURE, e.advice())
            }
        }
    }

    /// None if the plugin has hung up: then the kubelet makes another sandbox, which must not lose its capture to this
    /// one.
    fn capture(
        &self,
        pod: &NodePod,
        netns: &OwnedFd,
        path: &str,
        plugin: &UnixStream,
    ) -> Result<Option<String>> {
        let pods = &self.executor.pods;
        let cgroup = kubernetes::cgroup_of(&pod.uid, pods.cgroup_root.as_deref(), CGROUP_TIMEOUT)?;
        let target = Target {
            pod: Some(pod.name.clone()),
            ..Target::of_open(&file(netns), PathBuf::from(path), cgroup)?
        };
        let policy = pods.make_policy(pod, &target)?;
        let name = pod.instance();
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let _attaching = lock(&self.attaching[hasher.finish() as usize % PODS_AT_ONCE]);
        if has_hung_up(plugin) {
            return Ok(None);
        }
        self.replace_sandbox(&name, &target)?;
        let report = self.executor.attach(&name, &Present { target, policy, allow_partial: true })?;
        if report.outcome == Outcome::Unchanged {
            self.executor.wake.notify_one();
        }
        for subject in [Subject::Instance, Subject::Target] {
            self.executor.failures.succeeded(&subject(name.clone()));
        }
        Ok(Some(name))
    }

    /// Detaches the instance of a sandbox that has ended: the pod's next one has another namespace.
    fn replace_sandbox(&self, name: &str, target: &Target) -> Result<()> {
        let old = look_at(&self.executor.root, name)?;
        let Some(InventoryItem { identity, state, .. }) = old else { return Ok(()) };
        let is_another = match state {
            InstanceState::Active(active) => {
                active.netns_cookie != target.netns.id.number() || active.cgroup_id != target.cgroup.id
            }
            // Inode numbers suffice: both namespaces exist, or the old one is gone.
            InstanceState::Foreign { netns: Some(inode), .. } => inode != target.netns.inode,
            _ => false,
        };
        if is_another {
            tracing::info!(instance = name, "detaching: the pod has a new sandbox");
            self.executor.detach(name, identity)?;
            self.executor.metrics.step("detach");
        }
        Ok(())
    }

    /// Never fails: an instance that is left is detached when its namespace is gone.
    fn del(&self, request: &Request, netns: Option<OwnedFd>) -> Reply {
        let Some((name, identity)) = self.ended(request, netns) else {
            return Reply::Done { instance: None };
        };
        self.end(&name, identity, "the pod ends");
        Reply::Done { instance: Some(name) }
    }

    fn end(&self, name: &str, identity: u64, why: &str) {
        let pod = find::recorded_pod(&self.executor.root, name).map(|pod| pod.to_string());
        match self.executor.detach_ended(name, identity) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.executor.metrics.step("detach");
                tracing::info!(instance = name, pod, "detach done: {why}");
            }
            Err(e) => {
                self.executor.failures.failed(Subject::Instance(name.to_owned()), Reason::Detach, &e);
                self.executor.wake.notify_one();
            }
        }
    }

    /// Detaches what belongs to sandboxes that are gone, before it answers. The runtime's list of valid attachments is
    /// not needed: capture ends with the namespace.
    fn gc(&self) -> Reply {
        for InventoryItem { name, identity, state } in take_inventory(&self.executor.root).unwrap_or_default()
        {
            if state.has_ended() && name.starts_with(POD_PREFIX) {
                self.end(&name, identity, "garbage");
            }
        }
        self.executor.wake.notify_one();
        Reply::Done { instance: None }
    }

    /// The instance of the sandbox that ends, and not that of a newer one of the same pod.
    fn ended(&self, request: &Request, netns: Option<OwnedFd>) -> Option<(String, u64)> {
        let root = &self.executor.root;
        if let Some(netns) = netns {
            let found = find::identified(root, &passed(&netns).ok()?).ok()??;
            return found.0.starts_with(POD_PREFIX).then_some(found);
        }
        let name = instance_name(request.pod.as_ref()?.uid.as_deref().filter(|uid| is_uid(uid))?);
        let instance = look_at(root, &name).ok()??;
        instance.state.has_ended().then_some((name, instance.identity))
    }

    fn check(&self, request: &Request, netns: Option<OwnedFd>) -> Reply {
        let pod = match self.member(request) {
            Ok(pod) => pod,
            Err(reply) => return reply,
        };
        let name = pod.instance();
        let root = &self.executor.root;
        let captured_as = netns.map_or(Ok(None), |netns| find::by_netns(root, &passed(&netns)?));
        let why = if !captured_as.is_ok_and(|found| found.as_ref() == Some(&name)) {
            format!("{} is not captured as {name}", request.netns)
        } else {
            match status::status(root, &name) {
                Ok(status) if status.effective && status.state == "active" => match own_kernel(root, &name) {
                    None => return Reply::Done { instance: Some(name) },
                    Some(why) => why,
                },
                Ok(_) => format!("not every hook of {name} is in force; see `redirector show {name} -v`"),
                Err(e) => e.advice(),
            }
        };
        self.executor.wake.notify_one();
        failed(code::NOT_CAPTURED, why)
    }
}

/// Why nothing of a pod is captured although every hook is in force.
fn own_kernel(root: &Directory, name: &str) -> Option<String> {
    let process = sandbox::of(&find::target(root, name).ok()?.cgroup).ok()??;
    Some(format!("the pod has a kernel of its own ({process}): {}", sandbox::REMEDY))
}

fn failed(code: u32, why: impl Into<String>) -> Reply {
    Reply::Failed { code, why: why.into() }
}

/// Whether the other end is closed. A plugin shuts its writing side down and waits.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::HUP)
}

/// The file of a descriptor that came with a request.
fn file(netns: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()))
}

fn passed(netns: &OwnedFd) -> Result<NetNs> {
    NetNs::open(&file(netns)).context(|| "open the network namespace that was passed".into())
}
