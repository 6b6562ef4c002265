//! Pods on a node like one in production, made through CRI: unified cgroups, systemd as the first process and as the
//! driver of cgroups, containerd that calls the CNI plugins itself. `cargo xtask vm --node` runs it.

mod agent;
mod install;
mod kubelet;
mod libcni;
mod node;
mod pod;
mod runtime;

use anyhow::{Context, ensure};
use redirector_tests::harness::retry;

use crate::agent::AgentPod;
use crate::kubelet::Kubelet;
use crate::node::{Node, node, sh};
use crate::pod::{Met, Pod};

const STARTS: u32 = 50;
/// Pods of the control.
const LATE: usize = 5;
/// Starts of the application's container in one pod.
const RESTARTS: u32 = 5;

/// The package: it captures a unit, is upgraded and purged; afterwards the other tests need it again.
#[test]
fn the_page_about_installing_is_right() -> anyhow::Result<()> {
    let node = &mut *node()?;
    install::captures_a_unit()?;
    install::removes()?;
    node.install()
}

/// Nothing of a pod that was removed stays captured.
fn nothing_left(node: &Node) -> anyhow::Result<()> {
    ensure!(node.pods > 0);
    retry::until("the instances to go with their pods", || node::list().ok()?.is_empty().then_some(()))
}

#[test]
fn containers_are_captured_from_their_first_instruction() -> anyhow::Result<()> {
    let node = &mut *node()?;
    for _ in 0..STARTS / RESTARTS {
        let mut pod = Pod::start(node)?;
        for _ in 0..RESTARTS {
            refused(node, &mut pod)?;
        }
        pod.remove(node)?;
    }
    node.nobody_reached_it()?;
    nothing_left(node)
}

/// As the kubelet starts a sidecar that is an init container with `restartPolicy: Always`: before the application, and it
/// outlives the application's restarts.
#[test]
fn a_native_sidecar_serves_the_first_instruction() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let mut pod = Pod::start(node)?;
    let proxy = pod.proxy(node)?;
    for _ in 0..2 {
        served(node, &mut pod)?;
    }
    node.runtime.remove(&proxy)?;
    let met = pod.first(node)?;
    ensure!(met == Met::Refused, "{met:?} without a proxy");
    let again = pod.proxy(node)?;
    served(node, &mut pod)?;
    node.runtime.remove(&again)?;
    pod.remove(node)?;
    node.nobody_reached_it()?;
    nothing_left(node)
}

/// The application is refused: no proxy listens.
fn refused(node: &mut Node, pod: &mut Pod) -> anyhow::Result<()> {
    let met = pod.first(node)?;
    ensure!(met == Met::Refused, "{met:?}: {}", pod.logs());
    Ok(())
}

/// The application is served by the proxy. It listens some time after its start: until then the application is refused.
fn served(node: &mut Node, pod: &mut Pod) -> anyhow::Result<()> {
    let met = retry::until("the proxy to listen", || match pod.first(node) {
        Ok(Met::Refused) => None,
        other => Some(other),
    })??;
    ensure!(met == Met::Proxy, "{met:?}: {}", pod.logs());
    Ok(())
}

/// `hostUsers: false`: the proxy's user is one of the pod's own.
#[test]
fn a_pod_with_users_of_its_own() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let mut pod = Pod::with_own_users(node)?;
    refused(node, &mut pod)?;
    let proxy = pod.proxy(node)?;
    served(node, &mut pod)?;
    node.runtime.remove(&proxy)?;
    pod.remove(node)?;
    node.nobody_reached_it()?;
    nothing_left(node)
}

#[test]
fn a_pods_next_sandbox_is_captured() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let mut pod = Pod::start(node)?;
    for _ in 0..2 {
        refused(node, &mut pod)?;
        pod.restart_sandbox(node)?;
    }
    refused(node, &mut pod)?;
    pod.remove(node)?;
    node.nobody_reached_it()?;
    nothing_left(node)
}

/// As the shipped DaemonSet has it. While it is killed, what is captured stays so and no pod starts.
#[test]
fn an_agent_in_a_container() -> anyhow::Result<()> {
    let node = &mut *node()?;
    sh("systemctl stop redirector-agent")?;
    let mut agent = AgentPod::start(node)?;
    let container = agent.run(node)?;
    let mut pod = Pod::start(node)?;
    let proxy = pod.proxy(node)?;
    served(node, &mut pod)?;
    node.runtime.remove(&container)?;
    served(node, &mut pod)?;
    ensure!(Pod::start(node).is_err(), "a pod starts without the agent");
    agent.run(node)?;
    served(node, &mut pod)?;
    let mut next = Pod::start(node)?;
    refused(node, &mut next)?;
    node.runtime.remove(&proxy)?;
    [pod, next].into_iter().try_for_each(|pod| pod.remove(node))?;
    node.nobody_reached_it()?;
    nothing_left(node)?;
    agent.remove(node)?;
    node.agent(true)
}

/// What changes a pod's namespace beside the hooks: parameters, routes and rules, and a filter at an interface.
#[test]
fn an_agent_in_a_container_changes_namespaces() -> anyhow::Result<()> {
    let node = &mut *node()?;
    sh("systemctl stop redirector-agent")?;
    let mut agent = AgentPod::start(node)?;
    agent.run(node)?;
    for annotation in
        [("sidecar.istio.io/interceptionMode", "TPROXY"), ("istio.io/reroute-virtual-interfaces", "eth0")]
    {
        let mut pod = Pod::annotated(node, &[annotation])?;
        let proxy = pod.proxy(node)?;
        served(node, &mut pod)?;
        node.runtime.remove(&proxy)?;
        pod.remove(node)?;
    }
    node.nobody_reached_it()?;
    nothing_left(node)?;
    agent.remove(node)?;
    node.agent(true)
}

/// Runtimes other than containerd call CHECK and GC. The agent answers both: without it they fail.
#[test]
fn libcni_adds_checks_deletes_and_collects() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let pod = Pod::start(node)?;
    // It is the only one, and this the name that the runtime has for it.
    let netns = sh("echo /var/run/netns/cni-*")?;
    let check_pod = || libcni::call("check", &[&pod.sandbox, netns.trim()]);
    check_pod()?;

    let sandbox = libcni::Sandbox::add(node)?;
    ensure!(node::list()?.len() == 2, "{:?}", node::list()?);
    libcni::call("check", &[&sandbox.container])?;
    libcni::call("del", &[&sandbox.container])?;
    ensure!(node::list()?.len() == 1, "{:?}", node::list()?);
    sandbox.remove()?;

    // It has died without a DEL.
    let sandbox = libcni::Sandbox::add(node)?;
    sandbox.remove()?;
    sh("systemctl stop redirector-agent")?;
    let checked = check_pod();
    let collected = libcni::collect(&[&pod.sandbox]);
    node.agent(true)?;
    ensure!(checked.is_err_and(|e| format!("{e:#}").contains("the agent cannot be asked")));
    ensure!(collected.is_err() == node::knows_status()?, "{collected:?}");
    libcni::collect(&[&pod.sandbox])?;
    let lost = libcni::call("check", &[&sandbox.container]);
    ensure!(lost.is_err_and(|e| format!("{e:#}").contains("the cache has no")));
    ensure!(node::list()?.len() == 1, "{:?}", node::list()?);
    check_pod()?;
    pod.remove(node)?;
    nothing_left(node)
}

/// Not with containerd 2, which has forgotten v1alpha2 of CRI; the kubelet that can be built here speaks no other.
#[test]
fn a_pod_of_the_kubelet() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let mut kubelet = Kubelet::start()?;
    let code = kubelet.first(node).with_context(Kubelet::what_it_says)?;
    let met = Met::of(code)?;
    ensure!(met == Met::Refused, "{met:?}; {:?}\n{}", node::list()?, node::what_the_agent_says());
    node.nobody_reached_it()?;
    ensure!(node::list()?.len() == 1, "{:?}", node::list()?);
    kubelet.remove()?;
    nothing_left(node).with_context(Kubelet::what_it_says)?;
    kubelet.end(node)
}

/// A runtime that asks plugins for their STATUS, as containerd 2 does, tells the kubelet that the network is not ready
/// while there is no agent. Others never ask.
#[test]
fn the_runtime_asks_for_status_where_it_can() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let (asks, runtime) = (node::knows_status()?, &mut node.runtime);
    retry::until("the network to be ready", || runtime.network_ready().ok()?.then_some(()))?;
    sh("systemctl stop redirector-agent")?;
    let ready = runtime.network_ready();
    node.agent(true)?;
    ensure!(ready? != asks, "plugins know STATUS: {asks}");
    let runtime = &mut node.runtime;
    retry::until("the network to be ready again", || runtime.network_ready().ok()?.then_some(()))
}

/// The negative control: without it the first test could pass by not looking. There is no plugin, and the agent is stopped
/// until the application has run.
#[test]
fn an_agent_that_attaches_late_lets_all_escape() -> anyhow::Result<()> {
    let node = &mut *node()?;
    let mut met = Vec::new();
    node.agent(false)?;
    node::network()?;
    for _ in 0..LATE {
        sh("systemctl kill --signal=STOP redirector-agent")?;
        let mut pod = Pod::start(node)?;
        met.push(pod.first(node)?);
        sh("systemctl kill --signal=CONT redirector-agent")?;
        retry::until("the agent to attach", || pod.is_captured().ok()?.then_some(()))
            .with_context(node::what_the_agent_says)?;
        met.push(pod.first(node)?);
        pod.remove(node)?;
    }
    node.agent(true)?;
    ensure!(met.chunks(2).all(|pod| pod == [Met::Escaped, Met::Refused]), "{met:?}");
    ensure!(node.reached() == LATE, "the service was reached {} times", node.reached());
    Ok(())
}
