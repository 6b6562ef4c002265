//! `redirector agent`: keeps what is captured on this node as it is desired.
//!
//! Gather, plan, execute: a pass takes the inventory and the desired state, a pure function (`plan`) makes the
//! steps, and they are executed. Every event (a file, a pod, a namespace that ends) only wakes the next pass.
//! Traffic does not depend on the agent: everything that captures is pinned, and stays while there is no agent.

mod cni_server;
pub mod cni_socket;
mod daemonset;
mod decisions;
mod execute;
mod file_events;
mod health;
mod http;
mod leaving;
mod lock;
mod lock_file;
pub mod log;
mod metrics;
mod netns_events;
mod pass;
mod plan;
mod plugin;
mod pods;
mod refresh;
mod remount;
mod retry;
mod standby;
mod survey;
mod sync;
mod targets;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use cni_server::CniServer;
use cni_socket::Socket;
pub use daemonset::DaemonSetName;
use daemonset::OwnDaemonSet;
use execute::Executor;
use file_events::Watcher;
use health::{Condition, Health};
use http::Purpose;
use leaving::Leaving;
use lock::HeldLock;
use metrics::Metrics;
use pass::Passes;
use plugin::{Installation, PluginKeeper};
use pods::cache::{PodCache, Source};
use pods::source_api::{ApiSource, Watch};
use refresh::Refresher;
use retry::Failures;
use standby::Standby;
pub use targets::awaited;
use targets::capture::FileTargets;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::base::error::{Context, Error, Result};
use crate::cni_install::Places;
use crate::instance::directory::Directory;

/// A blocking task that attaches may finish; a killed attach would be swept later.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the agent shall do.
pub struct Options {
    /// Where instances are.
    pub root: Directory,
    /// Directory of the files that name targets.
    pub config: Option<PathBuf>,
    /// Where pods are listed, and which of them are captured.
    pub pods: PodOptions,
    /// Where the CNI plugin is installed; None: it is not.
    pub plugin: Option<Places>,
    /// The DaemonSet that the agent is of: when that is deleted, the plugin goes with the agent.
    pub daemonset: Option<DaemonSetName>,
    /// Directory of the lock and the socket.
    pub run_dir: PathBuf,
    /// Address of `/metrics`; None for none.
    pub http: Option<SocketAddr>,
    /// Another address, of `/healthz` and `/readyz` alone.
    pub probes: Option<SocketAddr>,
    /// The longest pause between passes.
    pub resync: Duration,
}

/// The options about pods.
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
    /// Let unknown pods start, uncaptured.
    pub pass_unknown: bool,
}

impl PodOptions {
    async fn source(&self) -> Result<Source> {
        match (&self.files, &self.node) {
            (Some(dir), _) => Ok(Source::Files(dir.clone())),
            (None, Some(node)) => {
                let server = ApiSource::new(node, self.kubeconfig.as_deref()).await?;
                Ok(Source::Api(Arc::new(server)))
            }
            (None, None) => Ok(Source::None),
        }
    }
}

/// Runs until the process is told to end. What is captured stays captured.
///
/// # Errors
///
/// If the agent cannot start.
pub fn run(options: Options) -> Result<()> {
    crate::pod::cgroup_namespace::enter_hosts()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the runtime".into())?;
    // Held until the last attach has ended.
    let lock = Arc::default();
    let result = runtime.block_on(start(options, Arc::clone(&lock)));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    drop(lock);
    result
}

/// The lock that this agent holds, once it does.
type Held = Arc<OnceLock<Arc<HeldLock>>>;

async fn start(options: Options, held: Held) -> Result<()> {
    if let Some(dir) = &options.config
        && !dir.is_dir()
    {
        return Err(Error::input(format!("--config {} is no directory", dir.display())));
    }
    let health = Arc::new(Health::new(options.resync));
    let metrics = Arc::new(Metrics::new(options.plugin.is_some()));
    let wake = Arc::new(Notify::new());
    let (mut terminated, mut hangup) = (on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    let mut interrupted = on(SignalKind::interrupt())?;
    let (http, probes) = (options.http, options.probes);
    let state = http::State {
        root: options.root.clone(),
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
    };
    let work = prepare(options, health, metrics, Arc::clone(&wake)).await?;
    serve_http(&[(http, Purpose::Everything), (probes, Purpose::Probes)], state)?;
    let leaving = work.leaving.clone();
    let work = work.run(Arc::clone(&held));
    let ended = async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => return,
        }
        // The plugin is the working agent's.
        if let (Some(leaving), Some(_)) = (leaving, held.get()) {
            leaving.leave().await;
        }
    };
    tokio::pin!(work, ended);
    loop {
        tokio::select! {
            result = &mut work => return result,
            () = &mut ended => break,
            _ = hangup.recv() => wake.notify_one(),
        }
    }
    tracing::info!("ending; what is captured stays captured");
    Ok(())
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).context(|| "wait for signals".into())
}

fn serve_http(addresses: &[(Option<SocketAddr>, Purpose)], state: http::State) -> Result<()> {
    let state = Arc::new(state);
    for (address, purpose) in addresses {
        if let Some(address) = *address {
            let bound = http::bind(address, *purpose)?;
            tokio::spawn(http::serve(address, *purpose, bound, Arc::clone(&state)));
        }
    }
    Ok(())
}

/// Everything that works once this agent has the lock.
struct Work {
    run_dir: PathBuf,
    passes: Passes,
    leaving: Option<Arc<Leaving>>,
}

async fn prepare(
    options: Options,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    wake: Arc<Notify>,
) -> Result<Work> {
    let Options { root, config, pods, plugin, daemonset, run_dir, resync, .. } = options;
    let source = pods.source().await?;
    if matches!(source, Source::Api(_)) {
        health.unmet(Condition::PodList, "waiting for the API server to tell the node's pods".into());
    }
    let plugin = plugin.map(|places| Arc::new(Installation::new(places)));
    let leaving = match (&source, daemonset, &plugin) {
        (Source::Api(server), Some(name), Some(installation)) => {
            let daemonset = OwnDaemonSet::new(server, &name);
            tokio::spawn(Arc::clone(&daemonset).run());
            let (installation, run_dir) = (Arc::clone(installation), run_dir.clone());
            Some(Arc::new(Leaving { daemonset, installation, run_dir }))
        }
        _ => None,
    };
    let pods = PodCache::new(source, pods.excluded, pods.cgroup_root, pods.pass_unknown);
    let failures = Arc::new(Failures::new(Arc::clone(&metrics)));
    let refresher = Refresher::new(
        root.clone(),
        Arc::clone(&metrics),
        Arc::clone(&failures),
        Arc::clone(&health),
        Arc::clone(&wake),
    )?;
    let keeper = |installation| {
        PluginKeeper::new(installation, Arc::clone(&failures), Arc::clone(&metrics), Arc::clone(&health))
    };
    let plugin = plugin.map(keeper);
    let executor = Executor {
        root,
        metrics,
        failures,
        wake,
        refresher: Arc::new(refresher),
        pods: Arc::new(pods),
        kept: Mutex::default(),
    };
    let passes = Passes {
        lock: None,
        executor: Arc::new(executor),
        files: FileTargets::new(config),
        plugin,
        watcher: Arc::new(Watcher::new()?),
        health,
        resync,
        in_transition: 0,
    };
    Ok(Work { run_dir, passes, leaving })
}

impl Work {
    /// Waits until no other agent works on this node, and works then.
    async fn run(self, held: Held) -> Result<()> {
        let Self { run_dir, mut passes, leaving } = self;
        let (executor, health) = (Arc::clone(&passes.executor), Arc::clone(&passes.health));
        // The bpffs is above the directory of instances.
        let bpffs = executor.root.dir().parent().unwrap_or(Path::new("/"));
        let standby = Standby {
            root: executor.root.clone(),
            pods: Arc::clone(&executor.pods),
            installation: passes.plugin.as_ref().map(|plugin| Arc::clone(&plugin.installation)),
            leaving,
        };
        let lock = Arc::new(lock::lock(&health, &run_dir, bpffs, &standby).await?);
        let _ = held.set(Arc::clone(&lock));
        let server = CniServer {
            executor: Arc::clone(&executor),
            health: Arc::clone(&health),
            attaching: Default::default(),
            reported: Mutex::default(),
        };
        passes.lock = Some(Arc::clone(&lock));
        tokio::spawn(remount::watch(Arc::clone(&lock), bpffs.to_owned(), Arc::clone(&executor.wake)));
        let socket = Socket::bind(run_dir, lock, Arc::clone(&health))?;
        tokio::spawn(socket.serve(Arc::new(server)));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), bpffs = %executor.root.dir().display(), "working");
        if let Source::Api(server) = &executor.pods.source {
            let watch = Watch {
                server: Arc::clone(server),
                failures: Arc::clone(&executor.failures),
                health,
                wake: Arc::clone(&executor.wake),
            };
            tokio::spawn(watch.run());
        }
        tokio::spawn(Arc::clone(&executor.refresher).run());
        let metrics = Arc::clone(&executor.metrics);
        tokio::spawn(survey::findings(executor.root.clone(), metrics, passes.resync));
        tokio::spawn(survey::links(executor.root.clone(), Arc::clone(&executor.wake)));
        let (watcher, wake) = (Arc::clone(&passes.watcher), Arc::clone(&executor.wake));
        tokio::spawn(async move {
            loop {
                watcher.changed().await;
                wake.notify_one();
            }
        });
        passes.run().await
    }
}
