//! The fault campaign: `cargo xtask campaign`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use redirector_tests::harness::campaign::{plan, planted, run};
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
    /// Run for half an hour
    #[arg(long, conflicts_with_all = ["seconds", "planted"])]
    soak: bool,
    /// Show that each planted bug is found by the seed or one of the two after it [default: 1]
    #[arg(long)]
    planted: bool,
}

const SOAK: Duration = Duration::from_secs(1800);

fn main() -> anyhow::Result<ExitCode> {
    run_if_asked();
    let cli = Cli::parse();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = cli.seed.unwrap_or(if cli.planted { 1 } else { now.as_secs() });
    println!("seed {seed}");
    if let Some(count) = cli.list {
        plan::steps(seed).take(count).for_each(|step| println!("{step:?}"));
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::ensure!(require_root(), "not root");
    if cli.planted {
        return find_planted(seed);
    }
    let limit = if cli.soak { SOAK } else { Duration::from_secs(cli.seconds) };
    let report = run(seed, limit, None)?;
    println!("{report}");
    Ok(if report.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plants each bug, and tries three seeds.
fn find_planted(seed: u64) -> anyhow::Result<ExitCode> {
    let mut missed = 0;
    for planted in &planted::ALL {
        let mut found = None;
        for seed in seed..seed + 3 {
            let report = run(seed, Duration::from_secs(60), Some(planted))?;
            found = report
                .violation
                .map(|violation| format!("seed {seed}: {}", violation.lines().next().unwrap_or_default()));
            if found.is_some() {
                break;
            }
        }
        missed += usize::from(found.is_none());
        println!("{:42} {}", planted.name, found.as_deref().unwrap_or("NOT FOUND"));
    }
    println!("{} planted, {missed} not found", planted::ALL.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
