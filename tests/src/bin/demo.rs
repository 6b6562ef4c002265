//! The demo: what every side of a connection sees without redirector, with it, and after it is gone.
//!
//! Run by `cargo xtask demo` as root. Everything happens in namespaces and a cgroup made for it, and removed again.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use redirector_tests::command::show;
use redirector_tests::observation::{Observation, Seen};
use redirector_tests::pod::{APP, PROXY, VIP4, World, at};
use redirector_tests::privileged::require_root;
use redirector_tests::probe::run_if_asked;
use redirector_tests::process::Place;
use redirector_tests::proxy::{any4, proxy_listeners};
use redirector_tests::probe::serve::Listen;
use redirector_tests::redirector::{Instance, is_listed};
use redirector_tests::scenario::Scenario;

const PORT: u16 = 8080;

fn main() -> ExitCode {
    // The servers and clients of the demo are this program, too.
    run_if_asked();
    if !require_root() {
        return ExitCode::FAILURE;
    }
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    println!("redirector demo: a throw-away pod, with a network around it\n");
    let world = World::new()?;
    let pod = world.pod();
    let service = at(VIP4, PORT);
    let app = at(pod.v4(), PORT);
    let _service = world.serve_outside(vec![Listen::on(any4(PORT))])?;
    let _app = pod.serve(APP, "app", vec![Listen::on(any4(PORT))])?;
    let _proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    println!("  the network   a client, and a service at {service}");
    println!("  in the pod    an application (uid 1000) that serves {app}");
    println!("                a proxy (uid 1337) that listens on 15001 and 15006 and has no idea of redirector\n");

    let look = || -> anyhow::Result<[Observation; 3]> {
        let outbound = one(&pod.place(APP)?, Scenario::to(service))?;
        let proxys = one(&pod.place(PROXY)?, Scenario::to(service))?;
        Ok([outbound, proxys, one(&world.outside(), Scenario::to(app))?])
    };

    println!("1. As it is");
    let before = look()?;
    print(&before);

    println!("2. After `redirector attach` to the pod: eBPF in the kernel, no iptables rule, no change to any program");
    let instance = Instance::attach_default(pod)?;
    let attached = look()?;
    print(&attached);
    let [outbound, proxys, inbound] = &attached;
    ensure!(outbound.summary() == format!("proxy:15001 original {service}"), "not redirected: {outbound:#?}");
    ensure!(proxys.summary() == format!("remote:{PORT}"), "the proxy was redirected: {proxys:#?}");
    ensure!(inbound.summary() == format!("proxy:15006 original {app}"), "not redirected: {inbound:#?}");

    println!("3. After `redirector detach`");
    let name = instance.name().to_owned();
    instance.detach()?;
    ensure!(!is_listed(&name)?, "{name} is still listed");
    let after = look()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(before.summary() == after.summary(), "it is not as before: {after:#?}");
    }
    println!("   everything is as in 1., and `redirector list` no longer knows the pod\n");

    let rules = show(pod.netns.command("iptables-save").arg("-c"));
    let rules = rules.rsplit("-- ").next().unwrap_or(&rules).to_owned();
    let found = redirector_tests::command::run(&mut pod.netns.command("iptables-save"), "").unwrap_or_default();
    ensure!(found.trim().is_empty(), "`{rules}` shows rules: {found}");
    println!("The pod is removed. This took {:.1} s.", started.elapsed().as_secs_f32());
    Ok(())
}

fn one(place: &Place, scenario: Scenario) -> anyhow::Result<Observation> {
    redirector_tests::pod::observe(place, &[scenario])?.pop().context("nothing was observed")
}

fn print([outbound, proxys, inbound]: &[Observation; 3]) {
    println!("   the application connects to the service");
    tell(outbound, "the application", "the service");
    println!("   the proxy connects to the service");
    tell(proxys, "the proxy", "the service");
    println!("   a client in the network connects to the application");
    tell(inbound, "the client", "the application");
    println!();
}

fn tell(seen: &Observation, client: &str, server: &str) {
    let Some(reached) = &seen.reached else {
        println!("     it failed: {}", seen.summary());
        return;
    };
    let peer = seen.peer.as_ref().map_or_else(String::new, Seen::to_string);
    if reached.role == "proxy" {
        println!("     reaches    the proxy, on port {}", reached.listener.port());
        println!("     {client:<15} believes to be connected to {peer} (getpeername)");
        println!("     {:<15} is told that it was meant for {} (SO_ORIGINAL_DST)", "the proxy", reached.original_dst);
        println!("     {:<15} sees that it comes from {} (accept)", "", address(&reached.accept_peer));
    } else {
        println!("     reaches    {server}");
        println!("     {client:<15} is connected to {peer}");
    }
}

/// Without the port, which says nothing.
fn address(seen: &Seen) -> String {
    seen.address().map_or_else(|| seen.to_string(), |address| address.ip().to_string())
}
