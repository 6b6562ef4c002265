//! The demo: what every side of a connection sees without redirector, with it, and after it is gone.
//!
//! Run by `cargo xtask demo` as root. Everything happens in namespaces and a cgroup made for it, and removed again.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use redirector_tests::harness::probe::observation::{AddressOrErrno, Observation};
use redirector_tests::harness::probe::run_if_asked;
use redirector_tests::harness::probe::scenario::Scenario;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::process::Place;
use redirector_tests::harness::product::{Instance, is_listed};
use redirector_tests::harness::requirements::require_root;
use redirector_tests::harness::server::{any4, proxy_listeners};
use redirector_tests::harness::world::{APP, PROXY, VIP4, World, at};

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
    println!("A throw-away pod, and a network around it:\n");
    let world = World::new()?;
    let pod = world.pod();
    let service = at(VIP4, PORT);
    let app = at(pod.v4(), PORT);
    let service_outside = world.serve_outside(vec![Listen::on(any4(PORT))])?;
    let app_server = pod.serve(APP, "app", vec![Listen::on(any4(PORT))])?;
    let proxy = pod.serve(PROXY, "proxy", proxy_listeners(1))?;
    println!("   network       a client, and a service at {service}");
    println!("   application   in the pod, uid 1000, serves {app}");
    println!(
        "   proxy         in the pod, uid 1337, listens on 15001 and 15006, knows nothing of redirector\n"
    );

    let look = || -> anyhow::Result<[Observation; 3]> {
        let outbound = one(&pod.place(APP)?, Scenario::to(service))?;
        let proxys = one(&pod.place(PROXY)?, Scenario::to(service))?;
        Ok([outbound, proxys, one(&world.outside(), Scenario::to(app))?])
    };

    println!("1. As it is:");
    let before = look()?;
    tell(&before, service, app);

    println!(
        "2. After `redirector attach` to the pod (eBPF in the kernel: no iptables, no change to any program):"
    );
    let instance = Instance::attach(pod, &[], &[])?;
    let attached = look()?;
    tell(&attached, service, app);
    let [outbound, proxys, inbound] = &attached;
    ensure!(outbound.summary() == format!("proxy:15001 original {service}"), "not redirected: {outbound:#?}");
    ensure!(proxys.summary() == format!("remote:{PORT}"), "the proxy was redirected: {proxys:#?}");
    ensure!(inbound.summary() == format!("proxy:15006 original {app}"), "not redirected: {inbound:#?}");

    println!("3. After `redirector detach`:");
    let name = instance.name().to_owned();
    instance.detach()?;
    ensure!(!is_listed(&name)?, "{name} is still listed");
    for (before, after) in before.iter().zip(&look()?) {
        ensure!(before.summary() == after.summary(), "it is not as before: {after:#?}");
    }
    println!("   everything is as in 1., and `redirector list` no longer knows the pod.\n");
    drop((service_outside, app_server, proxy));
    drop(world);
    println!("Pod and network are removed. This took {:.1} s.", started.elapsed().as_secs_f32());
    Ok(())
}

fn one(place: &Place, scenario: Scenario) -> anyhow::Result<Observation> {
    redirector_tests::harness::world::observe(place, &[scenario])?.pop().context("nothing was observed")
}

fn tell([outbound, proxys, inbound]: &[Observation; 3], service: SocketAddr, app: SocketAddr) {
    connection("application", service, "the service itself", outbound);
    connection("proxy", service, "the service itself", proxys);
    connection("network", app, "the application itself", inbound);
    println!();
}

/// One connection in one line; if it landed at the proxy, with what both ends are told about it.
fn connection(client: &str, to: SocketAddr, server: &str, seen: &Observation) {
    let arrow = format!("   {client:<11} -> {:<15}  ", to.to_string());
    let Some(reached) = seen.reached.as_ref().filter(|_| seen.failure().is_none()) else {
        println!("{arrow}fails: {}", seen.summary());
        return;
    };
    if reached.role != "proxy" {
        println!("{arrow}reaches {server}");
        return;
    }
    println!("{arrow}lands at the proxy, port {}", reached.listener.port());
    let told =
        |who: &str, what: &str, by: &str| println!("                     {who:<11} sees {what:<34} ({by})");
    let peer = seen.peer.as_ref().map_or_else(String::new, AddressOrErrno::to_string);
    told(client, &format!("its peer:    {peer}"), "getpeername");
    told("proxy", &format!("destination: {}", reached.original_dst), "SO_ORIGINAL_DST");
    // The client's port says nothing to a reader.
    let from = reached.accept_peer.address().map_or_else(String::new, |address| address.ip().to_string());
    told("proxy", &format!("client:      {from}"), "accept");
}
