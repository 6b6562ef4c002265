//! The pods of this node as the API server lists them, and Events about them.
//!
//! The last list stays in use while the server is away.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod as ApiPod};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::model::NodePod;
use super::paced::PacedLayer;
use crate::agent::health::{Condition, Health};
use crate::agent::metrics::Reason;
use crate::agent::retry::{Failures, Subject, pause};
use crate::agent::sync::lock;
use crate::base::error::{Error, Result, chain};
use crate::base::input;
use crate::pod::name::PodName;

/// The runtime waits for an ADD meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// A watch that has held for so long works. A server may list, and refuse each watch.
const HOLDS: Duration = Duration::from_secs(2);
/// A list of one node's pods is one page.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_INTERVAL: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Before each attempt to write an Event. A server that restarts takes a minute or two.
const EVENT_RETRY_PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(180),
];
/// The server refuses longer notes.
const MAX_NOTE_BYTES: usize = 1000;

/// So many Events are written at once.
const EVENT_BURST: f64 = 50.0;
/// And so many a second in the long run: a node starts fewer pods.
const EVENT_RATE: f64 = 1.0;

/// How many Events may be written.
#[derive(Default)]
struct Allowance {
    /// Those of the burst that are used up, and since when that is so.
    used: f64,
    since: Option<Instant>,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let passed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.used = (self.used - passed.as_secs_f64() * EVENT_RATE).max(0.0);
        self.since = Some(now);
        let is_left = self.used + 1.0 <= EVENT_BURST;
        self.used += f64::from(u8::from(is_left));
        is_left
    }
}

type Pods = BTreeMap<(String, String), NodePod>;

/// A connection to the API server.
pub struct ApiSource {
    client: Client,
    node: String,
    runtime: Handle,
    recorder: Recorder,
    allowance: Mutex<Allowance>,
    /// Why the last Event could not be written: it is logged once.
    unwritten: Arc<Mutex<Option<String>>>,
    /// None until the first list is complete.
    pods: Mutex<Option<Pods>>,
}

impl ApiSource {
    /// For the pods of a node, by a kubeconfig or as a pod of the cluster. Nothing is asked yet. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the configuration is wrong or missing.
    pub async fn new(node: &str, kubeconfig: Option<&Path>) -> Result<Self> {
        let config = match kubeconfig {
            Some(path) => {
                let wrong = |e: &dyn std::error::Error| {
                    Error::input(format!("--kubeconfig {}: {}", path.display(), chain(e)))
                };
                // A FIFO would be waited for.
                input::file(path).map_err(|e| wrong(&e))?;
                let mut file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
                for user in file.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
                    user.token_file =
                        user.token_file.take().map(trimmed).transpose().map_err(|e| wrong(&e))?;
                }
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(|e| wrong(&e))?
            }
            None => Config::incluster().map_err(|e| {
                Error::input(format!(
                    "--node-name without --kubeconfig is for a pod of the cluster: {}",
                    chain(&e)
                ))
            })?,
        };
        let client = ClientBuilder::try_from(config)
            .map_err(|e| Error::input(format!("the API server's client cannot be made: {}", chain(&e))))?
            .with_layer(&PacedLayer::default())
            .build();
        let reporter = Reporter { controller: "redirector".into(), instance: Some(node.to_owned()) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            node: node.to_owned(),
            runtime: Handle::current(),
            allowance: Mutex::default(),
            unwritten: Arc::default(),
            pods: Mutex::new(None),
        })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The pod that a request names; else why it is not known. The watch may be late: a pod that it has not listed is
    /// asked for.
    pub fn find(&self, name: &PodName) -> Result<NodePod, String> {
        let key = (name.namespace.clone(), name.name.clone());
        let listed = lock(&self.pods).as_ref().and_then(|pods| pods.get(&key).cloned());
        let listed = listed.filter(|pod| pod.is(name));
        // Without a uid the listed pod may be gone, and the request mean a later one of its name.
        if let Some(pod) = listed.clone().filter(|_| name.uid.is_some()) {
            return Ok(pod);
        }
        match self.runtime.block_on(self.ask(name)) {
            Ok(Some(pod)) if pod.is(name) => Ok(pod),
            Ok(_) => Err(format!("the API server has no such pod {name}")),
            Err(why) => listed.ok_or_else(|| format!("the API server cannot be asked: {why}")),
        }
    }

    async fn ask(&self, name: &PodName) -> Result<Option<NodePod>, String> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &resource());
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, api.get_opt(&name.name)).await;
        match answer.map_err(|_| format!("no answer in {} seconds", ANSWER_TIMEOUT.as_secs()))? {
            Ok(object) => object.map(|object| node_pod(&object)).transpose(),
            Err(e) => Err(said(&e)),
        }
    }

    /// Whether the server lists pods to this agent.
    pub async fn check(&self) -> Result<(), String> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource());
        let one = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(1);
        match tokio::time::timeout(ANSWER_TIMEOUT, api.list(&one)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(format!("the API server does not list the pods: {}", said(&e))),
            Err(_) => Err("the API server does not answer".into()),
        }
    }

    /// All pods of the node; none until the server has listed them.
    pub fn all(&self) -> Vec<NodePod> {
        lock(&self.pods).iter().flat_map(|pods| pods.values().cloned()).collect()
    }

    /// Writes an Event on the pod (`kubectl describe pod`), unless there were too many; whether it tries to.
    pub fn tell(&self, about: &NodePod, kind: EventType, reason: &'static str, text: &str) -> bool {
        if !lock(&self.allowance).take(Instant::now()) {
            return false;
        }
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(text[..text.floor_char_boundary(MAX_NOTE_BYTES)].to_owned()),
            action: "Capture".into(),
            secondary: None,
        };
        let pod = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(about.name.namespace.clone()),
            name: Some(about.name.name.clone()),
            uid: Some(about.api_uid.clone()),
            ..ObjectReference::default()
        };
        let (recorder, unwritten) = (self.recorder.clone(), Arc::clone(&self.unwritten));
        self.runtime.spawn(async move {
            for pause in EVENT_RETRY_PAUSES {
                tokio::time::sleep(pause).await;
                let why = match tokio::time::timeout(ANSWER_TIMEOUT, recorder.publish(&event, &pod)).await {
                    Ok(Ok(())) => {
                        *lock(&unwritten) = None;
                        return;
                    }
                    // Another attempt would fail alike: the namespace ends, or the role lacks the verb.
                    Ok(Err(kube::Error::Api(e))) if (400..500).contains(&e.code) && e.code != 429 => {
                        tell_once(&unwritten, e.message);
                        return;
                    }
                    Ok(Err(e)) => said(&e),
                    Err(_) => "no answer".to_owned(),
                };
                tell_once(&unwritten, why);
            }
        });
        true
    }
}

fn tell_once(unwritten: &Mutex<Option<String>>, why: String) {
    let mut told = lock(unwritten);
    if told.as_ref() != Some(&why) {
        tracing::warn!("events cannot be written: {why}");
        *told = Some(why);
    }
}

/// A file that holds the token of this one without the newline that editors leave, which the client would send in a
/// header. It is read again before the client does so, once a minute.
fn trimmed(path: String) -> std::io::Result<String> {
    let text = input::file(Path::new(&path))?;
    if text == text.trim() {
        return Ok(path);
    }
    let file = std::fs::File::from(memfd_create("token", MemfdFlags::CLOEXEC)?);
    let write = move |file: &std::fs::File, text: &str| {
        file.write_all_at(text.trim().as_bytes(), 0).and_then(|()| file.set_len(text.trim().len() as u64))
    };
    write(&file, &text)?;
    let copy = format!("/proc/self/fd/{}", file.as_raw_fd());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(TOKEN_INTERVAL).await;
            let _ = std::fs::read_to_string(&path).and_then(|text| write(&file, &text));
        }
    });
    Ok(copy)
}

/// What the watch reports to.
pub struct Watch {
    pub server: Arc<ApiSource>,
    pub failures: Arc<Failures>,
    pub health: Arc<Health>,
    pub wake: Arc<Notify>,
}

impl Watch {
    /// Watches the node's pods, for ever.
    pub async fn run(self) {
        let mut times = 0;
        loop {
            let error = self.watch(&mut times).await;
            times += 1;
            self.failures.failed(Subject::ApiServer, Reason::Api, &error);
            tokio::time::sleep(pause(times, FIRST_PAUSE)).await;
        }
    }

    /// Lists and watches until something fails. A list that is not answered fails, too: a load balancer may have lost
    /// the server.
    async fn watch(&self, times: &mut u32) -> Error {
        let pods: Api<DynamicObject> = Api::all_with(self.server.client.clone(), &resource());
        let only = watcher::Config::default().fields(&format!("spec.nodeName={}", self.server.node));
        let mut events = watcher(pods, only).boxed();
        let (mut listing, mut is_listing) = (Pods::new(), true);
        // Since when it watches; none while it lists, and once the watch has held.
        let mut watches_since = None;
        loop {
            if watches_since.is_some_and(|since: Instant| since.elapsed() >= HOLDS) {
                watches_since = None;
                *times = 0;
                self.failures.succeeded(&Subject::ApiServer);
            }
            let next = match (is_listing, watches_since) {
                (true, _) => tokio::time::timeout(LIST_TIMEOUT, events.next()).await,
                (false, Some(_)) => tokio::time::timeout(HOLDS, events.next()).await,
                (false, None) => Ok(events.next().await),
            };
            let event = match next {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(e))) => return Error::failed(said(&e)),
                Ok(None) => return Error::failed("the watch has ended"),
                Err(_) if !is_listing => continue,
                Err(_) => {
                    let seconds = LIST_TIMEOUT.as_secs();
                    return Error::failed(format!(
                        "the API server has not listed the pods in {seconds} seconds"
                    ));
                }
            };
            is_listing = matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
            let is_list = matches!(event, watcher::Event::InitDone);
            watches_since = is_list.then(Instant::now).or(watches_since.filter(|_| !is_listing));
            if self.server.apply(event, &mut listing) {
                self.wake.notify_one();
            }
            if is_list {
                self.health.met(Condition::PodList);
            }
        }
    }
}

/// An error in words; the client adds the whole answer of the server as Rust would print it.
pub fn said(error: &dyn std::error::Error) -> String {
    let text = chain(error);
    text.split(" (Status {").next().unwrap_or(&text).to_owned()
}

impl ApiSource {
    /// True if something that matters has changed.
    fn apply(&self, event: watcher::Event<DynamicObject>, listing: &mut Pods) -> bool {
        let key = |pod: &NodePod| (pod.name.namespace.clone(), pod.name.name.clone());
        let read = |object: &DynamicObject| match node_pod(object) {
            Ok(pod) => Some(pod),
            Err(why) => {
                tracing::warn!(pod = object.metadata.name, "not understood: {why}");
                None
            }
        };
        let mut pods = lock(&self.pods);
        match event {
            watcher::Event::Init => {
                listing.clear();
                false
            }
            watcher::Event::InitApply(object) => {
                listing.extend(read(&object).map(|pod| (key(&pod), pod)));
                false
            }
            watcher::Event::InitDone => {
                let changed = pods.as_ref() != Some(listing);
                if pods.is_none() {
                    tracing::info!(
                        pods = listing.len(),
                        node = self.node,
                        "the API server has told the node's pods"
                    );
                }
                *pods = Some(std::mem::take(listing));
                changed
            }
            watcher::Event::Apply(object) => match (read(&object), pods.as_mut()) {
                (Some(pod), Some(pods)) => pods.insert(key(&pod), pod.clone()).as_ref() != Some(&pod),
                _ => false,
            },
            watcher::Event::Delete(object) => match (read(&object), pods.as_mut()) {
                (Some(pod), Some(pods)) => pods.remove(&key(&pod)).is_some(),
                _ => false,
            },
        }
    }
}

fn resource() -> ApiResource {
    ApiResource::erase::<ApiPod>(&())
}

fn node_pod(object: &DynamicObject) -> Result<NodePod, String> {
    let value = serde_json::to_value(object).map_err(|e| e.to_string())?;
    NodePod::parse(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_limited() {
        let (mut allowance, begin) = (Allowance::default(), Instant::now());
        let burst = (0..100).filter(|_| allowance.take(begin)).count();
        assert_eq!(burst, EVENT_BURST as usize);
        let later = begin + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| allowance.take(later)).count(), 3);
    }
}
