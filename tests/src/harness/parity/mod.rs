//! The differential suite over options: `redirector attach` with the flags of `istio-iptables`, beside real iptables
//! with the rules that `istio-iptables` makes of them.
//!
//! * [`options`] are varied, a [`configuration`] has some of them, the [`plan`] says which, from a [`random`] seed.
//! * [`mod@probes`] are chosen for a configuration, between the [`mod@addresses`] there are.
//! * The [`arena`] has two pods (each a `half`) that stay while their rules change.
//! * Some differences are [`known`].
//! * What differs is made small ([`mod@shrink`]) and printed ([`mod@report`]).

pub mod addresses;
pub mod arena;
pub mod configuration;
mod half;
pub mod known;
pub mod options;
pub mod plan;
pub mod probes;
pub mod random;
pub mod report;
pub mod shrink;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use self::arena::{Arena, Mistake};
use self::configuration::Configuration;
use self::probes::{Probe, probes};
use self::random::Random;
use self::report::Report;
use self::shrink::{Finding, shrink};
use crate::harness::probe;
use crate::harness::requirements::require_root;

/// After so many configurations there are new pods and a new instance.
const TOGETHER: usize = 40;

/// So often a configuration is not a change of the one before.
const ANEW_PERCENT: usize = 15;

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
    /// Shrink at most so many differences
    #[arg(long, default_value_t = 5)]
    findings: usize,
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Configurations to compare.
    pub configurations: usize,
    /// Seed of the configurations and probes.
    pub seed: u64,
    /// Start no configuration after this.
    pub limit: Option<Duration>,
    /// Shrink at most so many differences.
    pub findings: usize,
    /// A mistake in the oracle's rules.
    pub mistake: Option<Mistake>,
}

/// The program's `main`.
///
/// # Errors
/// When it could not be run.
pub fn main() -> anyhow::Result<ExitCode> {
    probe::run_if_asked();
    let cli = Cli::parse();
    anyhow::ensure!(require_root(), "not root");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let report = run(&Run {
        configurations: cli.configs,
        seed: cli.seed.unwrap_or(now.as_secs()),
        limit: cli.limit.map(Duration::from_secs),
        findings: cli.findings,
        mistake: None,
    })?;
    println!("{report}");
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares.
///
/// # Errors
/// When a side cannot be set up, or fails.
pub fn run(run: &Run) -> anyhow::Result<Report> {
    println!("seed {}", run.seed);
    let started = Instant::now();
    let plan = plan::configurations(run.seed, run.configurations);
    let mut random = Random::new(run.seed ^ 0x5eed);
    let mut report = Report::default();
    'all: for together in plan.chunks(TOGETHER) {
        let mut arena = Arena::new(run.mistake)?;
        let mut before: Option<&Configuration> = None;
        for configuration in together {
            if run.limit.is_some_and(|limit| started.elapsed() > limit) {
                break 'all;
            }
            let probes = probes(&configuration.options(), &mut random);
            // Mostly the policy changes. But programs are loaded for the options of the first one.
            if random.percent(ANEW_PERCENT) {
                arena.detach()?;
                before = None;
            }
            arena.configure(configuration)?;
            let outcome = arena.run(&probes)?;
            report.add(configuration, &outcome);
            if !outcome.differences.is_empty() {
                let mut differing: Vec<usize> = outcome.differences.iter().map(|(index, _)| *index).collect();
                differing.dedup();
                let differing: Vec<Probe> = differing.iter().map(|index| probes[*index].clone()).collect();
                look_into(&mut report, run, &mut arena, configuration, &differing, before)?;
                // Shrinking has left another one in force.
                arena.configure(configuration)?;
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

/// Shrinks the differences of a configuration, unless there are enough already.
fn look_into(
    report: &mut Report,
    run: &Run,
    arena: &mut Arena,
    configuration: &Configuration,
    differing: &[Probe],
    before: Option<&Configuration>,
) -> anyhow::Result<()> {
    if report.findings.len() >= run.findings {
        report.not_shrunk.push(configuration.clone());
        return Ok(());
    }
    match shrink(arena, configuration, differing, before)? {
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
