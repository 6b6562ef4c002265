//! What a container runtime does with a CNI configuration list: each plugin in turn, with the result of the one before
//! (<https://www.cni.dev/docs/spec/#section-3-execution-of-network-configurations>).

use anyhow::{Context, ensure};
use redirector_tests::harness::command::output;
use redirector_tests::harness::machine::Machine;
use serde_json::Value;

/// A pod as a runtime tells plugins of it.
pub struct Sandbox {
    /// Name of the network namespace below /run/netns.
    pub netns: String,
    /// The pod's namespace, name and uid.
    pub pod: [String; 3],
}

impl Sandbox {
    fn arguments(&self) -> String {
        let [namespace, name, uid] = &self.pod;
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid};\
             K8S_POD_INFRA_CONTAINER_ID={}",
            self.netns
        )
    }
}

/// ADD of every plugin of a list; the last result. If one fails, the error it printed.
pub fn add(machine: &Machine, list: &Value, sandbox: &Sandbox) -> anyhow::Result<Value> {
    let mut result = Value::Null;
    for plugin in plugins(list)? {
        let (code, answer) = run(machine, "ADD", list, plugin, &result, sandbox)?;
        ensure!(code == Some(0), "{} failed ({code:?}): {answer}", plugin["type"]);
        result = answer;
    }
    Ok(result)
}

/// DEL of every plugin of a list, in reverse order; none may fail.
pub fn del(machine: &Machine, list: &Value, result: &Value, sandbox: &Sandbox) -> anyhow::Result<()> {
    for plugin in plugins(list)?.iter().rev() {
        let (code, answer) = run(machine, "DEL", list, plugin, result, sandbox)?;
        ensure!(code == Some(0), "{} failed ({code:?}): {answer}", plugin["type"]);
    }
    Ok(())
}

fn plugins(list: &Value) -> anyhow::Result<&Vec<Value>> {
    list["plugins"].as_array().context("a list of plugins")
}

/// Runs one plugin; its exit code and what it printed.
pub fn run(
    machine: &Machine,
    verb: &str,
    list: &Value,
    plugin: &Value,
    previous: &Value,
    sandbox: &Sandbox,
) -> anyhow::Result<(Option<i32>, Value)> {
    let mut input = plugin.clone();
    input["name"] = list["name"].clone();
    input["cniVersion"] = list["cniVersion"].clone();
    if !previous.is_null() {
        input["prevResult"] = previous.clone();
    }
    let name = plugin["type"].as_str().context("a plugin has a type")?;
    let mut command = machine.command("env");
    command
        .args([format!("CNI_COMMAND={verb}"), format!("CNI_CONTAINERID={}", sandbox.netns)])
        .args([format!("CNI_NETNS=/run/netns/{}", sandbox.netns), "CNI_IFNAME=eth0".into()])
        .args([format!("CNI_ARGS={}", sandbox.arguments()), "CNI_PATH=/opt/cni/bin".into()])
        .arg(format!("/opt/cni/bin/{name}"));
    let output = output(&mut command, &input.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = if text.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text)
            .with_context(|| format!("{name} printed: {text}{}", String::from_utf8_lossy(&output.stderr)))?
    };
    Ok((output.status.code(), answer))
}
