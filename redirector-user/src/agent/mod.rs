//! `redirector agent`: keeps what is captured on this node as it is wanted.
//!
//! Gather, plan, execute: a pass looks at what there is and at what is wanted, a pure function
//! ([`plan`]) says what to do, and it is done. Whatever happens (a file, a pod, a namespace that
//! ends) only wakes the next pass. Traffic does not depend on the agent: everything that captures
//! is pinned, and stays as it is while there is none.

mod cgroup_namespace;
mod cni_server;
mod decisions;
mod file_events;
mod health;
mod http;
mod lock;
pub mod log;
mod metrics;
mod netns_events;
mod pass;
pub mod plan;
pub mod pods;
mod refresh;
mod retry;
mod target_files;
mod target_path;

use crate::base::error::{Context, Error, Result};
use crate::cni_install::Places;
use crate::instance::directory::Directory;
use file_events::Watcher;
use health::Health;
use http::Purpose;
use metrics::Metrics;
use netns_events::Namespaces;
use pods::source_api::{self, Kubernetes};
use pods::{Pods, Source};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Values of the label `reason` of `redirector_errors_total`.
pub const REASONS: [&str; 13] = [
    "api", "config", "pods", "target", "attach", "detach", "upgrade", "refresh", "follow", "cni", "peer",
    "request", "install",
];

/// What the agent is asked to do.
pub struct Options {
    /// Where instances are.
    pub root: Directory,
    /// Directory of the files that name targets.
    pub config: Option<PathBuf>,
    /// Who knows the pods, and which of them are captured.
    pub pods: PodOptions,
    /// Where the CNI plugin is installed; None: it is not.
    pub plugin: Option<Places>,
    /// Directory of the lock and the socket.
    pub run_dir: PathBuf,
    /// Address of `/metrics`; None for none.
    pub http: Option<SocketAddr>,
    /// Another one of `/healthz` and `/readyz` alone.
    pub probes: Option<SocketAddr>,
    /// The node is looked at this often even if nothing seems to happen.
    pub resync: Duration,
}

/// What is asked for about pods.
#[derive(Clone, Debug, Default)]
pub struct PodOptions {
    /// Directory of Pod objects.
    pub files: Option<PathBuf>,
    /// The node whose pods the API server is asked for.
    pub node: Option<String>,
    /// How to reach the server, if not as a pod of the cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Namespaces that are left alone.
    pub excluded: Vec<String>,
    /// Where the kubelet's cgroups are, if not somewhere below the root.
    pub cgroup_root: Option<PathBuf>,
    /// Let pods start that nobody knows, uncaptured.
    pub pass_unknown: bool,
}

impl PodOptions {
    async fn source(&self) -> Result<Source> {
        match (&self.files, &self.node) {
            (Some(dir), _) => Ok(Source::Files(dir.clone())),
            (None, Some(node)) => {
                let server = Kubernetes::new(node, self.kubeconfig.as_deref()).await?;
                Ok(Source::Kubernetes(Arc::new(server)))
            }
            (None, None) => Ok(Source::None),
        }
    }
}

/// What every task of the agent shares.
pub struct Agent {
    root: Directory,
    config: Option<PathBuf>,
    pods: Pods,
    plugin: Option<Places>,
    resync: Duration,
    metrics: Metrics,
    health: Health,
    namespaces: Namespaces,
    watcher: Watcher,
    wake: Notify,
    memory: pass::Memory,
    /// That no other agent is at work, as long as anything of this one is.
    lock: OnceLock<File>,
    /// Whose turn it is to attach for the plugin.
    turn: Mutex<()>,
}

/// Runs until the process is told to end. What is captured stays captured.
///
/// # Errors
///
/// If the agent cannot start.
pub fn run(options: Options) -> Result<()> {
    cgroup_namespace::enter_hosts()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the runtime".into())?;
    let result = runtime.block_on(start(options));
    // What is being attached is finished: a killed attach is swept, but this is cleaner.
    runtime.shutdown_timeout(Duration::from_secs(10));
    result
}

impl Agent {
    /// `/readyz`, and the plugin's STATUS.
    fn ready(&self) -> Result<&'static str, String> {
        match (self.health.ready(), self.pods.source.waits_for()) {
            (Ok("ok"), Some(what)) => Err(format!("waiting for {what}")),
            (ready, _) => ready,
        }
    }
}

async fn start(options: Options) -> Result<()> {
    if let Some(dir) = &options.config
        && !dir.is_dir()
    {
        return Err(Error::input(format!("--config {} is no directory", dir.display())));
    }
    let Options { root, config, pods, plugin, run_dir, http, probes, resync } = options;
    let pods = Pods::new(pods.source().await?, pods.excluded, pods.cgroup_root, pods.pass_unknown);
    let agent = Arc::new(Agent {
        root,
        config,
        pods,
        plugin,
        resync,
        metrics: Metrics::new(),
        health: Health::new(resync),
        namespaces: Namespaces::new()?,
        watcher: Watcher::new()?,
        wake: Notify::new(),
        memory: pass::Memory::default(),
        lock: OnceLock::new(),
        turn: Mutex::default(),
    });
    let (mut terminated, mut hangup) = (on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    let mut interrupted = on(SignalKind::interrupt())?;
    for (at, purpose) in [(http, Purpose::Everything), (probes, Purpose::Probes)] {
        if let Some(at) = at {
            tokio::spawn(http::serve(at, purpose, http::bind(at, purpose)?, Arc::clone(&agent)));
        }
    }
    let work = work(Arc::clone(&agent), run_dir);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
            _ = hangup.recv() => agent.wake.notify_one(),
        }
    }
    tracing::info!("ending; what is captured stays captured");
    Ok(())
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).context(|| "wait for signals".into())
}

/// The agent's work, once no other agent is at work on this node.
async fn work(agent: Arc<Agent>, run_dir: PathBuf) -> Result<()> {
    let _ = agent.lock.set(lock::lock(&agent, &run_dir).await?);
    tokio::spawn(cni_server::serve(cni_server::bind(&run_dir)?, Arc::clone(&agent)));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), bpffs = %agent.root.dir().display(), "working");
    if let Source::Kubernetes(server) = &agent.pods.source {
        tokio::spawn(source_api::watch(Arc::clone(server), Arc::clone(&agent)));
    }
    tokio::spawn(refresh::follow(Arc::clone(&agent)));
    let watching = Arc::clone(&agent);
    tokio::spawn(async move {
        loop {
            watching.watcher.changed().await;
            watching.wake.notify_one();
        }
    });
    pass::passes(agent).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
