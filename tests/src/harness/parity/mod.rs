//! The differential suite over options: `redirector attach` with the flags of `istio-iptables`, beside real iptables
//! with the rules that `istio-iptables` makes of them.
//!
//! * [`options`] are varied, a [`configuration`] has some of them, the [`plan`] says which, from a [`random`] seed.
//! * [`mod@probes`] are chosen for a configuration, between the [`mod@addresses`] there are.
//! * A [`pair`](mod@pair) of pods stays while their rules change.
//! * What differs is made small ([`mod@shrink`]) and printed ([`mod@report`]).

pub mod addresses;
pub mod configuration;
pub mod options;
pub mod pair;
pub mod plan;
pub mod probes;
pub mod random;
pub mod report;
pub mod shrink;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use self::configuration::Configuration;
use self::options::Choice;
pub use self::pair::PROXY_PORTS;
use self::pair::{Mistake, ParityPair, Rules};
use self::probes::{Probe, probes};
use self::random::Random;
use self::report::ParityReport;
use self::shrink::{Finding, shrink};
use crate::harness::probe;
use crate::harness::requirements::require_root;

/// After so many configurations there are new pods and a new instance.
const CONFIGURATIONS_PER_PAIR: usize = 40;

/// So often a configuration is not a change of the one before.
const REATTACH_PERCENT: usize = 15;

const HELP: &str = "\
Examples:
  cargo xtask parity --configs 2000              a long run, of another seed each time
  cargo xtask parity --configs 200 --seed 7      the same again
  cargo xtask parity --configs 50 -- --findings 1

Exit codes: 0 no unexplained difference, 1 some, or it could not be run.";

/// Compare redirector with iptables under many combinations of options. Needs root.
#[derive(Debug, Parser)]
#[command(name = "parity", after_help = HELP)]
pub struct Cli {
    /// Configurations to compare
    #[arg(long, default_value_t = 200)]
    configs: usize,
    /// Seed of the configurations and probes [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Start no configuration after so many seconds
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Compare with Istio's native nftables rules instead of its iptables rules
    #[arg(long)]
    nft: bool,
    /// Shrink at most so many differences
    #[arg(long, default_value_t = 5)]
    findings: usize,
}

/// A run of the comparison.
pub struct ParityRun {
    /// Configurations to compare.
    pub configurations: usize,
    /// Seed of the configurations and probes.
    pub seed: u64,
    /// Start no configuration after this.
    pub limit: Option<Duration>,
    /// Shrink at most so many differences.
    pub findings: usize,
    pub rules: Rules,
    /// A mistake in the oracle's rules.
    pub mistake: Option<Mistake>,
}

/// The program's `main`.
pub fn main() -> anyhow::Result<ExitCode> {
    probe::run_if_asked();
    let cli = Cli::parse();
    anyhow::ensure!(require_root(), "not root");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let report = run(&ParityRun {
        configurations: cli.configs,
        seed: cli.seed.unwrap_or(now.as_secs()),
        limit: cli.limit.map(Duration::from_secs),
        findings: cli.findings,
        rules: if cli.nft { Rules::Nft } else { Rules::Iptables },
        mistake: None,
    })?;
    println!("{report}");
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares.
pub fn run(run: &ParityRun) -> anyhow::Result<ParityReport> {
    println!("seed {}", run.seed);
    let started = Instant::now();
    let mut plan = plan::configurations(run.seed, run.configurations);
    if run.rules == Rules::Nft {
        plan.iter_mut().for_each(|configuration| *configuration = beside_nft(configuration));
    }
    let mut random = Random::new(run.seed ^ 0x5eed);
    let mut report = ParityReport::default();
    'all: for together in plan.chunks(CONFIGURATIONS_PER_PAIR) {
        let mut pair = ParityPair::new(run.rules, run.mistake)?;
        let mut before: Option<&Configuration> = None;
        for configuration in together {
            if run.limit.is_some_and(|limit| started.elapsed() > limit) {
                break 'all;
            }
            let probes = probes(&configuration.options(), &mut random);
            // Mostly the policy changes. But programs are loaded for the options of the first one.
            if random.percent(REATTACH_PERCENT) {
                pair.detach()?;
                before = None;
            }
            pair.configure(configuration)?;
            let comparison = pair.run(&probes)?;
            report.add(configuration, &comparison);
            if !comparison.differences.is_empty() {
                let mut differing: Vec<usize> =
                    comparison.differences.iter().map(|(index, _)| *index).collect();
                differing.dedup();
                let differing: Vec<Probe> = differing.iter().map(|index| probes[*index].clone()).collect();
                look_into(&mut report, run, &mut pair, configuration, &differing, before)?;
                // Shrinking has left another one in force.
                pair.configure(configuration)?;
            }
            if run.mistake.is_some() && report.findings.len() >= run.findings {
                break 'all;
            }
            before = Some(configuration);
        }
    }
    report.took = started.elapsed();
    Ok(report)
}

/// Without the two holes of Istio's native rules. They redirect IPv6 where it is off, because rules that name no address
/// are of both versions; and what nobody listens for passes the statement `tproxy` (nft_tproxy_eval, NFT_BREAK).
fn beside_nft(configuration: &Configuration) -> Configuration {
    let configuration = configuration.clone().with(Choice::Ipv6, "on");
    let options = configuration.options();
    let heard = options.tproxy.is_none() || PROXY_PORTS.contains(&options.inbound_capture_port);
    if heard { configuration } else { configuration.without(Choice::InboundCapturePort) }
}

/// Shrinks the differences of a configuration, unless there are enough already.
fn look_into(
    report: &mut ParityReport,
    run: &ParityRun,
    pair: &mut ParityPair,
    configuration: &Configuration,
    differing: &[Probe],
    before: Option<&Configuration>,
) -> anyhow::Result<()> {
    if report.findings.len() >= run.findings {
        report.not_shrunk.push(configuration.clone());
        return Ok(());
    }
    match shrink(pair, configuration, differing, before)? {
        None => report.not_again.push(configuration.clone()),
        Some(finding) if report.findings.iter().any(|known| same(known, &finding)) => {}
        Some(finding) => {
            eprintln!("{finding}");
            report.findings.push(finding);
        }
    }
    Ok(())
}

/// The same cause, as far as one can tell.
fn same(one: &Finding, other: &Finding) -> bool {
    one.configuration == other.configuration
        && one.differences.len() == other.differences.len()
        && one.differences.iter().zip(&other.differences).all(|(one, other)| one.field == other.field)
}
