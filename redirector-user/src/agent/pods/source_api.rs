//! The pods of this node as the API server has them, and events about them.
//!
//! What is known stays known while the server is away.

use super::{Found, Known};
use crate::agent::{Agent, lock};
use crate::base::error::{Error, Result, chain};
use crate::cni::protocol::PodName;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod as ApiPod};
use kube::api::{ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;

/// An ADD is not kept waiting for a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pauses between attempts to watch, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Before each attempt to write an event: a server that is started anew takes a minute or two.
const EVENT_PAUSES: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(180),
];
/// The server takes notes of 1 kB.
const LONGEST_NOTE: usize = 1000;

type Pods = BTreeMap<(String, String), Known>;

/// A connection to the API server.
pub struct Kubernetes {
    client: Client,
    node: String,
    runtime: Handle,
    recorder: Recorder,
    /// None until the first list is complete.
    pods: Mutex<Option<Pods>>,
}

impl Kubernetes {
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
                let file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
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
        let client = Client::try_from(config)
            .map_err(|e| Error::input(format!("the API server's client cannot be made: {}", chain(&e))))?;
        let reporter = Reporter { controller: "redirector".into(), instance: Some(node.to_owned()) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            node: node.to_owned(),
            runtime: Handle::current(),
            pods: Mutex::new(None),
        })
    }

    /// The pod of this name. One that is not known yet is asked for: the watch may be late.
    pub fn find(&self, wanted: &PodName) -> Found {
        let same = |known: &Known| wanted.uid.as_ref().is_none_or(|uid| *uid == known.uid);
        let key = (wanted.namespace.clone(), wanted.name.clone());
        let last = lock(&self.pods).as_ref().and_then(|pods| pods.get(&key).cloned());
        // Without a uid the last known may be a pod that is gone, of the same name.
        if let Some(known) = last.clone().filter(|known| wanted.uid.is_some() && same(known)) {
            return Found::Pod(Box::new(known));
        }
        match self.runtime.block_on(self.ask(wanted)) {
            Ok(Some(known)) if same(&known) => Found::Pod(Box::new(known)),
            Ok(_) => Found::Unknown(format!("the API server has no such pod {wanted}")),
            Err(why) => match last.filter(same) {
                Some(known) => Found::Pod(Box::new(known)),
                None => Found::Unknown(format!("the API server cannot be asked: {why}")),
            },
        }
    }

    async fn ask(&self, wanted: &PodName) -> Result<Option<Known>, String> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &wanted.namespace, &resource());
        let answer = tokio::time::timeout(PATIENCE, api.get_opt(&wanted.name)).await;
        match answer.map_err(|_| format!("no answer in {} seconds", PATIENCE.as_secs()))? {
            Ok(object) => object.map(|object| known(&object)).transpose(),
            Err(e) => Err(said(&e)),
        }
    }

    /// All pods of the node; None until the server has told them for the first time.
    pub fn all(&self) -> Option<Vec<Known>> {
        lock(&self.pods).as_ref().map(|pods| pods.values().cloned().collect())
    }

    /// Tells whoever looks at the pod (`kubectl describe pod`).
    pub fn warn(&self, about: &Known, reason: &'static str, text: &str) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(text[..text.floor_char_boundary(LONGEST_NOTE)].to_owned()),
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
        let recorder = self.recorder.clone();
        self.runtime.spawn(async move {
            for pause in EVENT_PAUSES {
                tokio::time::sleep(pause).await;
                match tokio::time::timeout(PATIENCE, recorder.publish(&event, &pod)).await {
                    Ok(Ok(())) => return,
                    // It will say so again: the namespace ends, or the role lacks it.
                    Ok(Err(kube::Error::Api(e))) if (400..500).contains(&e.code) && e.code != 429 => {
                        tracing::warn!("an event could not be written: {}", e.message);
                        return;
                    }
                    Ok(Err(e)) => tracing::warn!("an event could not be written: {}", said(&e)),
                    Err(_) => tracing::warn!("an event could not be written: no answer"),
                }
            }
        });
    }
}

/// Watches the node's pods, for ever.
pub async fn watch(server: Arc<Kubernetes>, agent: Arc<Agent>) {
    const ABOUT: &str = "the API server";
    let pods: Api<DynamicObject> = Api::all_with(server.client.clone(), &resource());
    let only = watcher::Config::default().fields(&format!("spec.nodeName={}", server.node));
    let mut events = watcher_of(pods, only);
    let mut listing = Pods::new();
    while let Some(event) = events.next().await {
        let changed = match event {
            Ok(event) => {
                agent.fine(ABOUT);
                server.apply(event, &mut listing)
            }
            Err(e) => {
                agent.failed(ABOUT, "api", &Error::failed(said(&e)));
                false
            }
        };
        if changed {
            agent.wake.notify_one();
        }
    }
}

fn watcher_of(
    pods: Api<DynamicObject>,
    only: watcher::Config,
) -> futures::stream::BoxStream<'static, watcher::Result<watcher::Event<DynamicObject>>> {
    watcher(pods, only).backoff(Pauses(FIRST_PAUSE)).boxed()
}

/// The pauses to come.
struct Pauses(Duration);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(LONGEST_PAUSE);
        Some(now)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = FIRST_PAUSE;
    }
}

/// An error in words; the client adds the whole answer of the server as Rust would print it.
fn said(error: &dyn std::error::Error) -> String {
    let text = chain(error);
    text.split(" (Status {").next().unwrap_or(&text).to_owned()
}

impl Kubernetes {
    /// True if something that matters has changed.
    fn apply(&self, event: watcher::Event<DynamicObject>, listing: &mut Pods) -> bool {
        let key = |known: &Known| (known.name.namespace.clone(), known.name.name.clone());
        let read = |object: &DynamicObject| match known(object) {
            Ok(known) => Some(known),
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
                listing.extend(read(&object).map(|known| (key(&known), known)));
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
                (Some(known), Some(pods)) => pods.insert(key(&known), known.clone()).as_ref() != Some(&known),
                _ => false,
            },
            watcher::Event::Delete(object) => match (read(&object), pods.as_mut()) {
                (Some(known), Some(pods)) => pods.remove(&key(&known)).is_some(),
                _ => false,
            },
        }
    }
}

fn resource() -> ApiResource {
    ApiResource::erase::<ApiPod>(&())
}

fn known(object: &DynamicObject) -> Result<Known, String> {
    let value = serde_json::to_value(object).map_err(|e| e.to_string())?;
    Known::parse(&value)
}
