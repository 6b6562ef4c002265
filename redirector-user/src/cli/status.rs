//! `redirector status`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, clean, json_text};
use super::watch::{self, AllRates, Look, Watch};
use super::which::Which;
use crate::base::error::Result;
use crate::health::node::{self, NodeHealth, Places};
use crate::health::{self, Finding, Health, NodeProcesses};
use crate::instance::sweep;

const EXAMPLES: &str = "\
Examples:
  redirector status                    the whole node, with agent and CNI plugin
  redirector status pod1
  redirector status --pid 4711
  redirector status --pod shop/cart-7d4b9
  redirector status pod1 --watch
  redirector status --output json

Exit codes:
  0  nothing is wrong (notices and a pod that is starting are not)
  1  something is: traffic is refused, loops, or goes past the proxy
  3  there is no such instance";

/// Say what is wrong with an instance or with the node, what it means for traffic, and what to do.
///
/// Only looks: no connection is made, nothing is changed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    watch: Watch,
    /// Directory of the agent's lock and socket.
    #[arg(long, value_name = "DIR", default_value = "/run/redirector")]
    run_dir: PathBuf,
    /// Directory of the files that name the agent's targets.
    #[arg(long, value_name = "DIR", default_value = "/etc/redirector/targets.d")]
    config: PathBuf,
    /// Directory of the runtime's network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    /// Whether nothing is a fault.
    ok: bool,
    /// Null if one instance was asked for.
    node: Option<&'a NodeHealth>,
    instances: &'a [Health],
    /// With --watch, from the second look on: connections per second, by instance and rule.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, BTreeMap<String, f64>>>")]
    rates: &'a AllRates,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    watch::run(env, &args.watch, |rates| look(env, args, rates))
}

fn look(env: &Env, args: &Args, rates: &AllRates) -> Result<Look> {
    for swept in sweep::sweep_if_idle(&env.root)? {
        env.note(&swept);
    }
    let (node, instances) = match args.which.resolve(env)? {
        Some(name) => (None, vec![health::instance(&env.root, &name, &NodeProcesses::read()?)?]),
        None => {
            let instances = node::instances(&env.root)?;
            let places = Places {
                run_dir: args.run_dir.clone(),
                targets: args.config.clone(),
                cni_conf: args.cni_conf_dir.clone(),
            };
            let node = node::node(&env.root, &places, &instances, awaited(env, args, &instances));
            (Some(node), instances)
        }
    };
    let ok = !instances.iter().any(Health::has_fault)
        && !node.as_ref().is_some_and(|node| health::has_fault(&node.findings));
    let text = match env.format {
        Format::Json => json_text(&Answer { ok, node: node.as_ref(), instances: &instances, rates })?,
        Format::Table => clean(&text(node.as_ref(), &instances, rates).join("\n")),
    };
    Ok((text, ok))
}

#[cfg(feature = "agent")]
fn awaited(env: &Env, args: &Args, instances: &[Health]) -> Vec<Finding> {
    crate::agent::awaited::findings(&env.root, &args.config, instances)
}

#[cfg(not(feature = "agent"))]
fn awaited(_env: &Env, _args: &Args, _instances: &[Health]) -> Vec<Finding> {
    Vec::new()
}

fn text(node: Option<&NodeHealth>, instances: &[Health], rates: &AllRates) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(node) = node {
        lines.push(node_line(node, instances));
        lines.extend(findings(&node.findings));
    }
    for health in instances {
        lines.push(instance_line(health));
        lines.extend(health.captures.iter().map(|captures| format!("  captures  {captures}")));
        lines.extend(rates.get(&health.name).map(|rates| format!("  rates     {}", watch::told(rates))));
        lines.extend(findings(&health.findings));
    }
    lines
}

fn node_line(node: &NodeHealth, instances: &[Health]) -> String {
    let faulty = instances.iter().filter(|health| health.has_fault()).count();
    let count = match instances.len() {
        1 => "1 instance".to_owned(),
        more => format!("{more} instances"),
    };
    let agent = match node.agent {
        Some(true) => "agent at work",
        Some(false) => "no agent",
        None => "agent not known",
    };
    let plugin = match &node.plugin {
        Some(path) => format!("CNI plugin in {}", path.display()),
        None => "no CNI plugin".into(),
    };
    format!("node: {count}, {faulty} with faults; {agent}; {plugin}")
}

fn instance_line(health: &Health) -> String {
    let faults = health.findings.iter().filter(|finding| finding.level == health::Level::Fault).count();
    let well = match faults {
        0 if health.findings.iter().any(|finding| finding.level == health::Level::Unknown) => {
            "not all is known".to_owned()
        }
        0 => "nothing is wrong".to_owned(),
        1 => "1 fault".to_owned(),
        more => format!("{more} faults"),
    };
    let pod = health.pod.as_ref().map(|pod| format!(" ({pod})")).unwrap_or_default();
    format!("{}{pod}: {}, {well}", health.name, health.state)
}

/// Each finding, and its remedy on a line of its own.
pub fn findings(findings: &[Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in findings {
        lines.push(format!("  {:<9} {}", finding.level.word(), finding.line()));
        if !finding.remedy.is_empty() {
            lines.push(format!("  {:<9} -> {}", "", finding.remedy));
        }
    }
    lines
}
