//! The CNI plugin: chained after the plugin that makes a pod's interface, it has the agent capture the
//! pod before any of its processes runs. If that cannot be done the pod does not start.

mod client;
pub mod config;
mod error;

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use config::{Command, Config, Variables};
use error::{CniError, Result};

use crate::cni::protocol::{CNI_VERSIONS, Operation, Reply, Request, VERSION, code};
use crate::pod::name::PodName;

/// No configuration is as long.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Whether a container runtime has called this program.
pub fn is_called() -> bool {
    std::env::var_os("CNI_COMMAND").is_some()
}

/// Asks the agent whether it does all of its work.
///
/// # Errors
///
/// Why it does not, or that it does not answer.
pub fn ask_ready(socket: &Path) -> std::result::Result<(), String> {
    match client::ask_within(PEOPLES_PATIENCE, socket, &question(Operation::Ready, None), None)? {
        Reply::Failed { why, .. } => Err(why),
        _ => Ok(()),
    }
}

/// Asks the agent why it leaves a pod alone; None if it does not, or the reason is unknown.
pub fn ask_why_ignored(socket: &Path, pod: PodName) -> Option<String> {
    match client::ask_within(PEOPLES_PATIENCE, socket, &question(Operation::Check, Some(pod)), None).ok()? {
        Reply::Ignored { why } => Some(why),
        _ => None,
    }
}

/// So long a command waits for the agent.
const PEOPLES_PATIENCE: Duration = Duration::from_secs(5);

fn question(operation: Operation, pod: Option<PodName>) -> Request {
    Request { version: VERSION, operation, container: String::new(), netns: String::new(), pod }
}

/// Does what the environment and standard input say.
pub fn main() -> ExitCode {
    let mut version = CNI_VERSIONS[CNI_VERSIONS.len() - 1].to_owned();
    let result = run(&mut version);
    let (text, code) = match result {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("redirector: {}: {}", error.msg, error.details);
            (error.json(&version), ExitCode::FAILURE)
        }
    };
    // Nobody is left to be told if this fails.
    let _ = writeln!(std::io::stdout(), "{text}");
    code
}

fn run(version: &mut String) -> Result<String> {
    let command = Command::parse(&std::env::var("CNI_COMMAND").unwrap_or_default())?;
    if command == Command::Version {
        let versions = serde_json::json!({
            "cniVersion": CNI_VERSIONS[CNI_VERSIONS.len() - 1],
            "supportedVersions": CNI_VERSIONS,
        });
        return Ok(versions.to_string());
    }
    let mut text = String::new();
    std::io::stdin().take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(|e| {
        CniError::new(code::IO, "the configuration cannot be read", format!("standard input: {e}"))
    })?;
    // Errors are told in the version of the configuration, if it is one of ours.
    if let Some(known) = said(&text).filter(|said| CNI_VERSIONS.contains(&said.as_str())) {
        *version = known;
    }
    let config = Config::parse(&text, command)?;
    let variables = Variables::read(command, |name| std::env::var(name).ok())?;
    match command {
        Command::Add => add(&config, &variables),
        Command::Del => Ok(del(&config, &variables)),
        Command::Check => check(&config, &variables),
        Command::Gc => ask(&config, Operation::Gc, &variables).map(|_| String::new()),
        Command::Status => status(&config, &variables),
        Command::Version => Ok(String::new()),
    }
}

/// The version that a configuration says it has.
fn said(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(value.get("cniVersion")?.as_str()?.to_owned())
}

/// The answer is that of the plugin before, unchanged.
fn add(config: &Config, variables: &Variables) -> Result<String> {
    let previous = config.previous.as_ref().map(|value| value.get().to_owned()).unwrap_or_default();
    if is_outside(config, variables.pod.as_ref()) {
        return Ok(previous);
    }
    match ask(config, Operation::Add, variables)? {
        Reply::Failed { code, why } => Err(CniError::new(code, "the pod cannot be captured", why)),
        Reply::Done { .. } | Reply::Ignored { .. } => Ok(previous),
    }
}

/// Never fails: what is left belongs to a namespace that ends, and the agent removes it then.
fn del(config: &Config, variables: &Variables) -> String {
    match ask(config, Operation::Del, variables) {
        Err(error) => eprintln!("redirector: {}: {}", error.msg, error.details),
        Ok(Reply::Failed { why, .. }) => eprintln!("redirector: {why}"),
        Ok(_) => {}
    }
    String::new()
}

fn check(config: &Config, variables: &Variables) -> Result<String> {
    if is_outside(config, variables.pod.as_ref()) {
        return Ok(String::new());
    }
    match ask(config, Operation::Check, variables)? {
        Reply::Failed { code, why } => Err(CniError::new(code, "the pod is not captured", why)),
        Reply::Done { .. } | Reply::Ignored { .. } => Ok(String::new()),
    }
}

fn status(config: &Config, variables: &Variables) -> Result<String> {
    match ask(config, Operation::Status, variables) {
        Ok(Reply::Failed { code, why }) => Err(CniError::new(code, "the agent is not ready", why)),
        Ok(_) => Ok(String::new()),
        Err(error) => Err(CniError { code: code::NOT_AVAILABLE, ..error }),
    }
}

/// Whether the pod is left alone without the agent being asked, which may be away.
fn is_outside(config: &Config, pod: Option<&PodName>) -> bool {
    pod.is_some_and(|pod| config.exclude_namespaces.contains(&pod.namespace) || config.is_not_injected())
}

fn ask(config: &Config, operation: Operation, variables: &Variables) -> Result<Reply> {
    let request = Request {
        version: VERSION,
        operation,
        container: variables.container.clone(),
        netns: variables.netns.clone(),
        pod: variables.pod.clone(),
    };
    client::ask(&config.socket, &request, &config.conf_dir)
}
