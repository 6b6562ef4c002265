//! What the runtime tells the plugin: the environment, and the configuration on standard input.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{CniError, Result};
use crate::cni::protocol::{CNI_VERSIONS, POD_ANNOTATIONS, code};
use crate::pod::name::PodName;
use crate::policy::annotations::key;

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are the specification's")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// From the variable's text.
    ///
    /// # Errors
    ///
    /// If there is no such command.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let text =
                    format!("CNI_COMMAND={other:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION");
                return Err(CniError::new(code::INVALID_ENVIRONMENT, "unknown command", text));
            }
        })
    }

    /// The version that brought it.
    pub fn since(self) -> &'static str {
        match self {
            Self::Add | Self::Del | Self::Version => "0.3.0",
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
        }
    }
}

/// The other variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS; empty if there is none.
    pub netns: String,
    /// The pod of CNI_ARGS, if there is one.
    pub pod: Option<PodName>,
}

impl Variables {
    /// Reads those that a command needs.
    ///
    /// # Errors
    ///
    /// If one is missing or wrong.
    pub fn read(command: Command, get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let wrong = |text: String| CniError::new(code::INVALID_ENVIRONMENT, "wrong environment", text);
        let need = |name: &str| {
            get(name).filter(|text| !text.is_empty()).ok_or_else(|| wrong(format!("{name} is missing")))
        };
        if matches!(command, Command::Gc | Command::Status | Command::Version) {
            return Ok(Self::default());
        }
        let (container, interface) = (need("CNI_CONTAINERID")?, need("CNI_IFNAME")?);
        if !is_id(&container) {
            return Err(wrong(format!("CNI_CONTAINERID={container:?} is no id")));
        }
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if interface.len() > 15 || matches!(interface.as_str(), "." | "..") || interface.contains(odd) {
            return Err(wrong(format!("CNI_IFNAME={interface:?} is no interface's name")));
        }
        // A namespace that is gone is no reason not to clean up.
        let netns = match command {
            Command::Del => get("CNI_NETNS").unwrap_or_default(),
            _ => need("CNI_NETNS")?,
        };
        let pod = pod(&get("CNI_ARGS").unwrap_or_default()).map_err(wrong)?;
        Ok(Self { container, netns, pod })
    }
}

/// The specification's form of ids.
fn is_id(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(good)
}

/// `KEY=VALUE;…`, of which Kubernetes' runtimes give K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID.
fn pod(arguments: &str) -> Result<Option<PodName>, String> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE"))?;
        let field = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            _ => continue,
        };
        // They become parts of paths and of names.
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if value.len() > 253 || value.starts_with(['.', '-']) || !value.chars().all(good) {
            return Err(format!("CNI_ARGS has {key}={value:?}, which is no name of Kubernetes"));
        }
        *field = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    match (namespace, name) {
        (Some(namespace), Some(name)) => Ok(Some(PodName { namespace, name, uid })),
        (None, None) => Ok(None),
        _ => Err("CNI_ARGS has only one of K8S_POD_NAMESPACE and K8S_POD_NAME".into()),
    }
}

/// The plugin's entry in the list, as the runtime hands it over.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// Version of the list.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// The agent's socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Where the list is, for the remedy of errors.
    #[serde(rename = "confDir", default = "conf_dir")]
    pub conf_dir: PathBuf,
    /// Pods of these namespaces start without asking the agent.
    #[serde(rename = "excludeNamespaces", default)]
    pub exclude_namespaces: Vec<String>,
    /// What the runtime adds for the capabilities of the entry.
    #[serde(rename = "runtimeConfig", default)]
    pub runtime: serde_json::Value,
    /// What the plugins before have answered.
    #[serde(rename = "prevResult", default)]
    pub previous: Option<Box<RawValue>>,
}

/// Where runtimes look for networks.
pub const CONF_DIR: &str = "/etc/cni/net.d";

fn conf_dir() -> PathBuf {
    CONF_DIR.into()
}

fn socket() -> PathBuf {
    "/run/redirector/agent.sock".into()
}

/// On every pod by the kubelet (`ConfigSourceAnnotationKey`): what has it is the whole of the pod's annotations.
const KUBELETS: &str = "kubernetes.io/config.source";

impl Config {
    /// Whether the runtime has told the pod's annotations, and by them the pod is none of the mesh's for certain.
    pub fn is_not_injected(&self) -> bool {
        let annotations = &self.runtime[POD_ANNOTATIONS];
        annotations[KUBELETS].is_string() && annotations.get(key::STATUS).is_none()
    }

    /// Reads and checks it.
    ///
    /// # Errors
    ///
    /// If it is not what a network's configuration is, or of a version in which the command is unknown.
    pub fn parse(text: &str, command: Command) -> Result<Self> {
        let wrong = |why: String| {
            CniError::new(
                code::DECODING,
                "the configuration cannot be read",
                format!("standard input: {why}"),
            )
        };
        // serde would take an array for the fields in their order.
        if !text.trim_start().starts_with('{') {
            return Err(wrong("not a JSON object".into()));
        }
        let config: Self = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        config.check(command).map(|()| config)
    }

    fn check(&self, command: Command) -> Result<()> {
        let known = CNI_VERSIONS.iter().position(|version| *version == self.version);
        let since = CNI_VERSIONS.iter().position(|version| *version == command.since());
        if known.is_none() || known < since {
            let text = format!(
                "the configuration has cniVersion {:?}; {command:?} is spoken in {} to {}",
                self.version,
                command.since(),
                CNI_VERSIONS[CNI_VERSIONS.len() - 1]
            );
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI version", text));
        }
        let wrong = |text: &str| Err(CniError::new(code::INVALID_CONFIG, "wrong configuration", text));
        if self.name.is_empty() {
            return wrong("the configuration has no name");
        }
        if !self.socket.is_absolute() {
            return wrong("socket must be an absolute path");
        }
        let chained = matches!(command, Command::Add | Command::Check);
        let previous = self.previous.as_deref().map(RawValue::get);
        if chained && !previous.is_some_and(|text| text.trim_start().starts_with('{')) {
            return wrong(
                "there is no prevResult: redirector makes no interface, chain it after a plugin that does",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
