//! The benchmark: what redirection costs, beside no redirection at all and beside iptables.
//!
//! Sibling pods on the same kernel: direct (the app connects to the server over lo), the same with programs that only
//! return, the rules of istio-init by either engine of iptables, and redirector. In each the same server stands for the
//! proxy and the same client for the app, all on one CPU, so that a rate is the inverse of the CPU time of the whole
//! path. The pods take turns in many short rounds: what disturbs the machine disturbs all alike, and each ratio is of
//! two neighbours in time.
//!
//! * [`worker`] is what runs in the pods: this same program, started in another role.
//! * [`pods`] is a pod with its server and client, [`rounds`] lets the pods take turns.
//! * [`hooks`] and [`attach`] measure the eBPF programs and the commands, [`node`] many instances.
//! * [`cidrs`] is a benchmark of its own: policies with long lists, beside one without.
//! * [`report`] says what came of it, [`expected`] what should have; [`record`] keeps it in the documentation.

mod attach;
mod cidrs;
mod expected;
mod floor;
mod hooks;
mod machine;
mod node;
mod pods;
mod record;
mod report;
mod rounds;
mod stats;
mod sys;
mod worker;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use redirector_tests::harness::probe;
use serde::Serialize;

use self::machine::MachineInfo;
use self::pods::MeasuredPods;
use self::report::BenchReport;

const HELP: &str = "\
Examples:
  cargo xtask bench --quick                      a first impression, about three minutes
  cargo xtask bench                              narrower intervals, about fifteen minutes
  cargo xtask bench -- --record docs             and keep them in the documentation
  cargo xtask bench --quick -- --output json     for programs
  cargo xtask bench -- --rounds 20 --cpu 1       what you like
  cargo xtask bench -- cidrs                     long lists of networks: attach, connect, memory

The exit code does not depend on the figures: expectations are not a gate.";

/// Measure redirector beside no redirection and beside iptables. Needs root; cleans up after itself, also on Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = HELP)]
pub struct Cli {
    /// What to measure
    #[arg(value_enum, default_value_t = Measurement::Redirection)]
    part: Measurement,
    /// Few repetitions
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 400, with --quick 80]
    #[arg(long, value_parser = clap::value_parser!(u32).range(5..))]
    rounds: Option<u32>,
    /// Length of each measurement in a round, in milliseconds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(5..=5000))]
    slice: u64,
    /// The CPU that does all the work [default: the last one we may use]
    #[arg(long)]
    cpu: Option<usize>,
    /// Instances on the node that is measured [default: 200, with --quick 20]
    #[arg(long, value_parser = clap::value_parser!(u16).range(10..=1000))]
    instances: Option<u16>,
    /// Keep the results in this directory of documentation: benchmarks.json, benchmarks.svg, and in benchmarks.md
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::TextTable)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// Redirector beside no redirection and beside iptables
    Redirection,
    /// Policies with 50,000 networks beside one without
    Cidrs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    TextTable,
    Json,
}

/// The settings of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Rounds.
    pub rounds: u32,
    /// Length of a measurement.
    pub slice: Duration,
    /// How often to attach.
    pub attaches: u32,
    /// The CPU of servers and clients.
    pub cpu: usize,
    /// Instances on the node.
    pub instances: usize,
}

/// The program's `main`.
pub fn main() -> anyhow::Result<()> {
    if let Some(role) = worker::asked()? {
        return worker::run(&role);
    }
    probe::run_if_asked();
    let cli = Cli::parse();
    ensure!(
        rustix::process::geteuid().is_root(),
        "the benchmark makes network namespaces, cgroups and netfilter rules and needs root"
    );
    sys::catch_interrupts()?;
    let settings = Settings {
        rounds: cli.rounds.unwrap_or(if cli.quick { 80 } else { 400 }),
        slice: Duration::from_millis(cli.slice),
        attaches: if cli.quick { 11 } else { 41 },
        cpu: machine::choose_cpu(cli.cpu)?,
        instances: cli.instances.unwrap_or(if cli.quick { 20 } else { 200 }).into(),
    };
    // Neighbours on the machine would otherwise widen every interval. Workers and commands inherit it.
    rustix::process::nice(-20)?;
    let machine = MachineInfo::look()?;
    match cli.part {
        Measurement::Redirection => {
            let report = measure(machine, settings)?;
            if let Some(docs) = cli.record {
                record::write(&docs, &report)?;
            }
            print(cli.output, &report)
        }
        Measurement::Cidrs => print(cli.output, &cidrs::measure(machine, settings)?),
    }
}

fn print<T: Display + Serialize>(output: Format, report: &T) -> anyhow::Result<()> {
    match output {
        Format::TextTable => print!("{report}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(report)?),
    }
    Ok(())
}

fn measure(machine: MachineInfo, settings: Settings) -> anyhow::Result<BenchReport> {
    say("setting up the pods");
    let mut pods = MeasuredPods::start(settings.cpu)?;
    let rates = rounds::run(&mut pods, settings)?;
    say("hooks, with the kernel's run-time statistics on");
    let hooks = hooks::measure(&mut pods, settings)?;
    drop(pods);
    say("the commands");
    let commands = attach::measure(settings)?;
    let node = node::measure(settings.instances)?;
    let expectations = expected::check(&rates, &commands, &node);
    Ok(BenchReport { machine, settings: settings.into(), rates, hooks, commands, node, expectations })
}

/// Progress goes to stderr: stdout is for the results.
fn say(what: &str) {
    eprintln!("bench: {what}");
}
