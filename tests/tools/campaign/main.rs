//! The fault campaign: `cargo xtask campaign`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use redirector_tests::harness::campaign::{plan, run};
use redirector_tests::harness::probe::run_if_asked;
use redirector_tests::harness::requirements::require_root;

/// Kill and fail commands, swap programs and policies, reload the proxy, all under load; check that nothing escapes
#[derive(Debug, Parser)]
#[command(name = "campaign", bin_name = "cargo xtask campaign --")]
struct Cli {
    /// Start no step after so many seconds
    #[arg(long, value_name = "N", default_value_t = 900)]
    seconds: u64,
    /// Seed of the plan [default: another one each time]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print the first steps of the plan and do nothing
    #[arg(long, value_name = "STEPS")]
    list: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    run_if_asked();
    let cli = Cli::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = cli.seed.unwrap_or(now.as_secs());
    println!("seed {seed}");
    if let Some(count) = cli.list {
        plan::steps(seed).take(count).for_each(|step| println!("{step:?}"));
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(require_root(), "not root");
    let report = run(seed, Duration::from_secs(cli.seconds), None)?;
    println!("{report}");
    Ok(if report.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
