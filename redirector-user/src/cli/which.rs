//! Naming one instance: `NAME | --pid | --netns | --pod`, the same for every verb that looks at one.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use super::env::{BPFFS, Env, netns_given};
use crate::base::error::{Error, Result};
use crate::cni::plugin;
use crate::cni::protocol::SOCKET;
use crate::instance::directory::{Directory, check_name};
use crate::instance::find;
use crate::pod::name::PodName;
use crate::pod::open_netns;

/// The agent's directory, if it was given no other.
const RUN_DIR: &str = "/run/redirector";

/// Which instance.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").args(["name", "named", "pid", "netns", "pod"])))]
pub struct Which {
    /// Name of the instance.
    #[arg(add = ArgValueCompleter::new(names_of_instances))]
    pub name: Option<String>,
    /// The same.
    #[arg(long = "name", value_name = "NAME", hide = true)]
    pub named: Option<String>,
    /// A process of the pod.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// File of the network namespace.
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,
    /// A pod of Kubernetes on this node.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: Option<String>,
}

impl Which {
    /// Whether anything was said.
    pub fn is_some(&self) -> bool {
        self.name.is_some()
            || self.named.is_some()
            || self.pid.is_some()
            || self.netns.is_some()
            || self.pod.is_some()
    }

    /// The instance's name, where there has to be one.
    ///
    /// # Errors
    ///
    /// If nothing was said, or there is no such instance.
    pub fn require(&self, env: &Env) -> Result<String> {
        let nothing =
            || Error::input("nothing says which instance").usage("give NAME, --pid, --netns or --pod");
        self.resolve(env)?.ok_or_else(nothing)
    }

    /// The instance's name; None if nothing was said.
    ///
    /// # Errors
    ///
    /// If there is no such instance.
    pub fn resolve(&self, env: &Env) -> Result<Option<String>> {
        if let Some(name) = self.name.as_ref().or(self.named.as_ref()) {
            check_name(name)?;
            return Ok(Some(name.clone()));
        }
        if let Some(pod) = &self.pod {
            return of_pod(env, pod).map(Some);
        }
        let Some((path, missing)) = netns_given(self.pid, self.netns.as_ref()) else {
            return Ok(None);
        };
        let netns = open_netns(&path, || missing)?;
        let name = find::by_netns(&env.root, &netns)?.ok_or_else(|| {
            Error::nothing_matched(format!("no instance is attached to {}", path.display()))
                .usage("see `redirector list`")
        })?;
        Ok(Some(name))
    }
}

/// Names of instances that begin so, for completions; none where they cannot be read.
pub(super) fn names_of_instances(begin: &OsStr) -> Vec<CompletionCandidate> {
    let names = Directory::at(Path::new(BPFFS)).names().unwrap_or_default().into_iter();
    let begin = begin.to_string_lossy();
    names.filter(|name| name.starts_with(&*begin)).map(CompletionCandidate::new).collect()
}

fn of_pod(env: &Env, pod: &str) -> Result<String> {
    let Some((namespace, name)) =
        pod.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
    else {
        return Err(Error::input(format!("--pod {pod}: not NAMESPACE/NAME")));
    };
    find::by_pod(&env.root, namespace, name)?.ok_or_else(|| {
        let asked = PodName { namespace: namespace.into(), name: name.into(), uid: None };
        let why = plugin::ask_why_ignored(&Path::new(RUN_DIR).join(SOCKET), asked);
        let because = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let what = format!("the pod {pod} is not captured on this node{because}");
        Error::nothing_matched(what).remedy(match why {
            Some(_) => "see docs/options.md for the annotations that make a pod one of the mesh",
            None => "see the pod's node and annotations, its events, and the agent's log",
        })
    })
}
