//! The example mesh: `cargo xtask mesh up`, `measure`, `down`.

mod measure;
mod mesh;

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use redirector_tests::harness::envoy::{GATEWAY_PORT, HOST, SERVICE};
use redirector_tests::harness::probe::run_if_asked;
use redirector_tests::harness::requirements::{require_envoy, require_root};

use crate::measure::{Measured, Split};
use crate::mesh::Mesh;

/// Two versions of an app behind weighted routing and a gateway, with real Envoys captured by redirector
#[derive(Debug, Parser)]
#[command(name = "mesh", bin_name = "cargo xtask mesh --")]
struct Cli {
    /// Name of the mesh; several can be up at once
    #[arg(long, default_value = "example", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start it, measure, and leave it running
    Up(Requests),
    /// Measure once more
    Measure(Requests),
    /// Remove everything
    Down,
}

#[derive(clap::Args, Debug)]
struct Requests {
    /// Requests for each split
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Print what was measured as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    run_if_asked();
    let cli = Cli::parse();
    if !require_root() {
        return ExitCode::FAILURE;
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the mesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let mesh = Mesh::new(&cli.name);
    match &cli.verb {
        Verb::Up(requests) => {
            mesh.up(&require_envoy().context("no Envoy")?)?;
            tell(&mesh.measure(requests.requests)?, requests)?;
            if !requests.json {
                try_it(&cli.name);
            }
        }
        Verb::Measure(requests) => tell(&mesh.measure(requests.requests)?, requests)?,
        Verb::Down => {
            let there = mesh.left()?;
            mesh.down()?;
            println!(
                "removed: {}. Nothing is left.",
                if there.is_empty() { "nothing".to_owned() } else { there.join(", ") }
            );
        }
    }
    Ok(())
}

fn tell(measured: &Measured, how: &Requests) -> anyhow::Result<()> {
    if how.json {
        println!("{}", serde_json::to_string(measured)?);
        return Ok(());
    }
    println!("Weighted routing, 90 % to v1 and 10 % to v2, a connection a request:");
    split(&format!("user-app-v2 -> http://{SERVICE}/"), measured.inside);
    split(&format!("outside -> gateway, Host: {HOST}"), measured.gateway);
    println!("\nRewritten prefixes at the gateway:");
    for rewrite in &measured.rewrites {
        println!("   {:<4} -> {:<22} the app saw GET {}", rewrite.path, rewrite.answer, rewrite.seen_by_app);
    }
    println!("   another host -> {}\n", measured.other_host);
    println!("Captured by redirector:");
    for (pod, outbound, inbound) in &measured.captured {
        println!("   {pod}: {outbound} connections outbound, {inbound} inbound");
    }
    println!("   netfilter rules in all namespaces: {}\n", measured.netfilter_rules);
    for (what, split) in [("in the mesh", measured.inside), ("at the gateway", measured.gateway)] {
        ensure!(split.deviation() < 5.0, "the split {what} is not 90/10: {split:?}");
    }
    Ok(())
}

fn split(what: &str, split: Split) {
    let all = f64::from(split.v1 + split.v2);
    let percent = |part: u32| f64::from(part) * 100.0 / all;
    println!(
        "   {what:<42} v1 {:>4} ({:.1} %)   v2 {:>4} ({:.1} %)   {:.1} standard deviations off",
        split.v1,
        percent(split.v1),
        split.v2,
        percent(split.v2),
        split.deviation()
    );
}

fn try_it(name: &str) {
    let flags = if name == "example" { String::new() } else { format!(" -- --name {name}") };
    println!("It stays up. Try it, from the network outside:");
    println!(
        "   nsenter --net=/run/netns/redirmesh-{name}-client curl -i -H 'Host: {HOST}' 10.77.2.2:{GATEWAY_PORT}/v2"
    );
    println!("   redirector show redirmesh-{name}-user-app-v2");
    println!("   logs and Envoy's configuration: {}/redirmesh-{name}", std::env::temp_dir().display());
    println!("Tear it down: cargo xtask mesh down{flags}");
}
