//! `redirector agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::env::Env;
use crate::agent::{self, DaemonSetName, Options, PodOptions, log};
use crate::base::error::{Context, Error, Result};
use crate::cni::protocol::SOCKET;
use crate::cni_install::Places;
use crate::instance::sweep::sweep_if_idle;
use crate::kernel;

const EXAMPLES: &str = "\
Examples:
  redirector agent --config /etc/redirector/targets.d
      with a file such as shop.toml there:
        unit = \"shop.service\"
        [policy]
        outbound_exclude_ports = [5432]
  curl -s 127.0.0.1:9464/metrics";

/// Keep what is captured on this node as it is wanted, until told to end.
///
/// It attaches what is missing, follows address and route changes, swaps in programs of its own
/// version and removes what belongs to namespaces that are gone. What is captured stays captured
/// while no agent runs. See docs/agent.md.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory with a file for each target to capture; changes take effect at once.
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Directory with a Pod object (JSON) for each pod of this node, for the CNI plugin: where there is no
    /// API server.
    #[arg(long, value_name = "DIR")]
    pods: Option<PathBuf>,
    /// The node whose pods are captured: the API server is asked for them.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", conflicts_with = "pods")]
    node_name: Option<String>,
    /// How to reach the API server [default: as a pod of the cluster].
    #[arg(long, value_name = "FILE", requires = "node_name")]
    kubeconfig: Option<PathBuf>,
    /// Leave pods of these namespaces alone.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    exclude_namespaces: Vec<String>,
    /// What becomes of a pod that nobody knows when it starts.
    #[arg(long, value_enum, default_value_t = UnknownPods::Refuse)]
    unknown_pods: UnknownPods,
    /// The cgroup (v2) below which the kubelet makes those of pods [default: looked for].
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Install the CNI plugin: directory of the plugins' binaries (/opt/cni/bin).
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// Install the CNI plugin: directory of the configurations (/etc/cni/net.d).
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
    /// Name of the network of pods, if it is not the first that the runtime can use (CRI-O: cni_default_network).
    #[arg(long, value_name = "NAME", requires = "cni_bin_dir")]
    cni_network: Option<String>,
    /// The agent's socket as the plugin sees it [default: agent.sock in --run-dir].
    #[arg(long, value_name = "FILE", requires = "cni_bin_dir")]
    cni_socket: Option<PathBuf>,
    /// The DaemonSet that this agent is of: if it is deleted, the agent takes the CNI plugin off when it ends.
    #[arg(long, value_name = "NAMESPACE/NAME", requires_all = ["node_name", "cni_bin_dir"])]
    daemonset: Option<DaemonSetName>,
    /// Directory for the agent's lock and socket.
    #[arg(long, value_name = "DIR", default_value = "/run/redirector")]
    run_dir: PathBuf,
    /// Address of /metrics, /healthz and /readyz; `off` for none.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9464", value_parser = http)]
    http: Http,
    /// Another address of /healthz and /readyz alone, for the kubelet: where nobody else can keep them from answering.
    #[arg(long, value_name = "ADDR:PORT")]
    probes: Option<SocketAddr>,
    /// Look at the node this often, even if nothing seems to happen.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    resync: u32,
    /// How to log, on standard error.
    #[arg(long, value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// What to log.
    #[arg(long, value_enum, default_value_t = log::Level::Info)]
    log_level: log::Level,
}

/// `--unknown-pods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum UnknownPods {
    /// It does not start, and the kubelet tries again.
    Refuse,
    /// It starts uncaptured.
    Pass,
}

impl Args {
    fn pods(&self) -> PodOptions {
        PodOptions {
            files: self.pods.clone(),
            node: self.node_name.clone().filter(|name| !name.is_empty()),
            kubeconfig: self.kubeconfig.clone(),
            excluded: self.exclude_namespaces.clone(),
            cgroup_root: self.cgroup_root.clone(),
            pass_unknown: self.unknown_pods == UnknownPods::Pass,
        }
    }

    fn plugin(&self) -> Result<Option<Places>> {
        let (Some(bin_dir), Some(conf_dir)) = (self.cni_bin_dir.clone(), self.cni_conf_dir.clone()) else {
            return Ok(None);
        };
        let socket = self.cni_socket.clone().unwrap_or_else(|| self.run_dir.join(SOCKET));
        let socket = std::path::absolute(&socket).context(|| format!("resolve {}", socket.display()))?;
        Ok(Some(Places {
            program: "/proc/self/exe".into(),
            bin_dir,
            conf_dir,
            network: self.cni_network.clone(),
            socket,
            exclude_namespaces: self.exclude_namespaces.clone(),
        }))
    }
}

/// `--http`.
#[derive(Clone, Copy, Debug)]
struct Http(Option<SocketAddr>);

fn http(text: &str) -> Result<Http, String> {
    match text {
        "off" => Ok(Http(None)),
        text => text
            .parse()
            .map(|at| Http(Some(at)))
            .map_err(|_| "not an address with a port, such as 127.0.0.1:9464 or [::]:9464".into()),
    }
}

fn refuse_nothing_to_do(args: &Args) -> Result<()> {
    if args.config.is_none() && args.pods.is_none() && args.pods().node.is_none() {
        return Err(
            Error::input("nothing says what to capture").usage("give --config, --pods or --node-name")
        );
    }
    for (flag, dir) in
        [("--config", &args.config), ("--pods", &args.pods), ("--cgroup-root", &args.cgroup_root)]
    {
        if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(Error::input(format!("{flag} {}: there is no such directory", dir.display())));
        }
    }
    Ok(())
}

pub fn run(env: &Env, args: Args) -> Result<ExitCode> {
    refuse_nothing_to_do(&args)?;
    kernel::privileges::require()?;
    log::init(args.log_format, args.log_level);
    agent::run(Options {
        root: env.root.clone().on_prepared_node()?,
        pods: args.pods(),
        plugin: args.plugin()?,
        daemonset: args.daemonset,
        config: args.config,
        run_dir: args.run_dir,
        http: args.http.0,
        probes: args.probes,
        resync: Duration::from_secs(args.resync.into()),
    })?;
    // The programs that were kept for the next instance. A command that is at work removes them itself.
    sweep_if_idle(&env.root)?;
    Ok(ExitCode::SUCCESS)
}
