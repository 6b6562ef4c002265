//! Naming one instance: `NAME | --pid | --netns | --pod`, the same for every verb that looks at one.

use super::env::{Env, netns_given};
use super::generate::names_of_instances;
use crate::base::error::{Context, Error, Result};
use crate::cni::plugin;
use crate::cni::protocol::{PodName, SOCKET};
use crate::instance::directory::check_name;
use crate::instance::find;
use crate::pod::open_netns;
use clap_complete::engine::ArgValueCompleter;
use std::path::{Path, PathBuf};

/// The kubelet makes a directory here for each pod, `NAMESPACE_NAME_UID` (`BuildPodLogsDirectory`).
const POD_LOGS: &str = "/var/log/pods";
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
            return of_pod(env, pod, Path::new(POD_LOGS)).map(Some);
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

fn of_pod(env: &Env, pod: &str, logs: &Path) -> Result<String> {
    let Some((namespace, name)) =
        pod.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
    else {
        return Err(Error::input(format!("--pod {pod}: not NAMESPACE/NAME")));
    };
    let uids = uids_of(namespace, name, logs)?;
    if uids.is_empty() {
        return Err(Error::nothing_matched(format!(
            "{} has no directory of a pod {pod}: it is not on this node, or has not started",
            logs.display()
        )));
    }
    let instances = env.root.names()?;
    let of_pod = uids.iter().map(|uid| format!("pod-{uid}")).find(|name| instances.contains(name));
    of_pod.ok_or_else(|| {
        let name =
            |uid: &String| PodName { namespace: namespace.into(), name: name.into(), uid: Some(uid.clone()) };
        let socket = Path::new(RUN_DIR).join(SOCKET);
        let why = uids.iter().find_map(|uid| plugin::ask_why_ignored(&socket, name(uid)));
        let because = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let what = format!("the pod {pod} (uid {}) is not captured{because}", uids.join(", "));
        Error::nothing_matched(what).remedy(match why {
            Some(_) => "see docs/options.md for the annotations that make a pod one of the mesh",
            None => "see the agent's log for why, and the pod's annotations",
        })
    })
}

/// A pod of the same name that was deleted leaves its directory for a while.
fn uids_of(namespace: &str, name: &str, logs: &Path) -> Result<Vec<String>> {
    let prefix = format!("{namespace}_{name}_");
    let entries = std::fs::read_dir(logs).context(|| format!("read {}", logs.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|dir| dir.strip_prefix(&prefix).map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_of_pods() {
        let logs = std::env::temp_dir().join(format!("redirector-pods-{}", std::process::id()));
        for dir in ["shop_cart-1_aaaa", "shop_cart-1_bbbb", "shop_cart-12_cccc", "bank_cart-1_dddd"] {
            std::fs::create_dir_all(logs.join(dir)).unwrap();
        }
        let mut uids = uids_of("shop", "cart-1", &logs).unwrap();
        uids.sort();
        assert_eq!(uids, ["aaaa", "bbbb"]);
        assert!(uids_of("shop", "cart", &logs).unwrap().is_empty());
        std::fs::remove_dir_all(&logs).unwrap();
        assert!(uids_of("shop", "cart", &logs).is_err());
    }
}
