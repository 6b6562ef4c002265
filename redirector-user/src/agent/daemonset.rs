//! The agent's own DaemonSet: is it being deleted, or replaced? Only then does the CNI plugin go with the agent.
//!
//! Nothing counts but what the API server says of this very object, once the agent has seen it. An answer that is
//! none (401 and 403: the role may be deleted before the object; a time-out; a proxy's 404) changes nothing.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, WatchEvent, WatchParams};
use tokio::sync::watch;
use tokio::time::timeout;

use super::pods::source_api::{ApiSource, said};
use super::retry::pause;

/// The server ends a watch after this long by itself.
const WATCH_SECONDS: u32 = 290;
/// A connection that nobody answers on is given up this much later.
const WATCH_GRACE: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSetName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for DaemonSetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |part: &str| !part.is_empty() && !part.contains('/');
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("not NAMESPACE/NAME".into()),
        }
    }
}

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A wrong `--daemonset` names an object that never was.
    Unseen,
    There,
    Deleted,
}

impl Fate {
    /// After the server has said whether the object is there and stays.
    fn told(self, stays: Option<bool>) -> Self {
        match (self, stays) {
            (_, Some(true)) => Self::There,
            (_, Some(false)) | (Self::There | Self::Deleted, None) => Self::Deleted,
            (Self::Unseen, None) => Self::Unseen,
        }
    }
}

pub struct OwnDaemonSet {
    api: Api<DynamicObject>,
    name: String,
    fate: watch::Sender<Fate>,
}

impl OwnDaemonSet {
    /// Nothing is asked yet.
    pub fn new(source: &ApiSource, name: &DaemonSetName) -> Arc<Self> {
        let resource = ApiResource::erase::<DaemonSet>(&());
        let api = Api::namespaced_with(source.client(), &name.namespace, &resource);
        Arc::new(Self { api, name: name.name.clone(), fate: watch::Sender::new(Fate::Unseen) })
    }

    pub fn is_deleted(&self) -> bool {
        *self.fate.borrow() == Fate::Deleted
    }

    /// Follows the object, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut times = 0;
        let mut reported = String::new();
        loop {
            match self.follow().await {
                Ok(()) => {
                    times = 0;
                    reported.clear();
                }
                Err(why) if why != reported => {
                    tracing::warn!(
                        daemonset = self.name,
                        "the agent's own DaemonSet cannot be followed: {why}"
                    );
                    reported = why;
                }
                Err(_) => {}
            }
            times += 1;
            tokio::time::sleep(pause(times, FIRST_PAUSE)).await;
        }
    }

    /// Until the watch ends.
    async fn follow(&self) -> Result<(), String> {
        let Some(version) = self.ask().await? else { return Ok(()) };
        let only =
            WatchParams::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        let watch = async {
            let mut events = self.api.watch(&only, &version).await.map_err(|e| said(&e))?.boxed();
            tracing::debug!(daemonset = self.name, "watching");
            while let Some(event) = events.next().await {
                match event.map_err(|e| said(&e))? {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        self.told(Some(stays(&object)))
                    }
                    WatchEvent::Deleted(_) => self.told(None),
                    WatchEvent::Bookmark(_) => {}
                    // Its version is too old: asked again.
                    WatchEvent::Error(_) => break,
                }
            }
            Ok(())
        };
        let longest = Duration::from_secs(WATCH_SECONDS.into()) + WATCH_GRACE;
        timeout(longest, watch).await.unwrap_or_else(|_| Err("the watch is not answered".into()))
    }

    /// Asks once; the object's version, if it is there.
    async fn ask(&self) -> Result<Option<String>, String> {
        match timeout(ANSWER_TIMEOUT, self.api.get(&self.name)).await {
            Ok(Ok(object)) => {
                self.told(Some(stays(&object)));
                Ok(Some(object.metadata.resource_version.unwrap_or_default()))
            }
            Ok(Err(kube::Error::Api(status))) if self.is_of_this_object(&status) => {
                self.told(None);
                Ok(None)
            }
            Ok(Err(e)) => Err(said(&e)),
            Err(_) => Err("no answer".into()),
        }
    }

    /// Whether the server has looked for this object and has none. A proxy's 404 has no such details.
    fn is_of_this_object(&self, status: &kube::core::Status) -> bool {
        let of = status.details.as_ref().is_some_and(|it| it.name == self.name && it.kind == "daemonsets");
        status.reason == "NotFound" && of
    }

    fn told(&self, stays: Option<bool>) {
        self.fate.send_if_modified(|fate| {
            let next = fate.told(stays);
            if next != *fate {
                tracing::info!(daemonset = self.name, "the agent's own DaemonSet is {next:?}");
            }
            std::mem::replace(fate, next) != next
        });
    }

    /// Whether it is deleted, or will be in a moment: where its namespace is deleted, pods may be told first.
    pub async fn is_deleted_within(&self, patience: Duration) -> bool {
        let mut fate = self.fate.subscribe();
        let ask = async {
            loop {
                let _ = self.ask().await;
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        let deleted = fate.wait_for(|fate| *fate == Fate::Deleted);
        let either = async {
            tokio::select! {
                found = deleted => found.is_ok(),
                () = ask => false,
            }
        };
        timeout(patience, either).await.unwrap_or(false)
    }
}

fn stays(object: &DynamicObject) -> bool {
    object.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_never_been_seen_is_not_deleted() {
        assert_eq!(Fate::Unseen.told(None), Fate::Unseen);
        assert_eq!(Fate::Unseen.told(Some(true)).told(None), Fate::Deleted);
        assert_eq!(Fate::Unseen.told(Some(false)), Fate::Deleted);
        // Made again, with the pods that were left (`--cascade=orphan`).
        assert_eq!(Fate::Deleted.told(Some(true)), Fate::There);
        assert!("a/b".parse::<DaemonSetName>().is_ok());
        for wrong in ["", "a", "/b", "a/", "a/b/c"] {
            assert!(wrong.parse::<DaemonSetName>().is_err(), "{wrong}");
        }
    }
}
