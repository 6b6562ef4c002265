//! Millions of connections, thousands of attaches: `cargo xtask endure`.

use std::process::ExitCode;

use clap::Parser;
use redirector_tests::harness::endure::cycles::cycles;
use redirector_tests::harness::endure::{Endurance, connections};
use redirector_tests::harness::probe::run_if_asked;
use redirector_tests::harness::requirements::require_root;

/// Make connections through one instance, within and beyond its quota, then attach and detach; nothing may be wrong or grow
#[derive(Debug, Parser)]
#[command(name = "endure", bin_name = "cargo xtask endure")]
struct Cli {
    /// Connections under each quota; 0: none
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    connections: u64,
    /// To so many destinations
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    destinations: u32,
    /// Quota, `--max-destinations`, one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = QUOTAS)]
    quotas: Vec<u32>,
    /// Attaches and detaches; 0: none
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    cycles: usize,
}

/// One with an address for each destination, and that of redirector.
const QUOTAS: [u32; 2] = [131_072, 16_384];

fn main() -> anyhow::Result<ExitCode> {
    run_if_asked();
    let cli = Cli::parse();
    anyhow::ensure!(require_root(), "not root");
    let mut has_failed = false;
    for quota in cli.quotas.into_iter().filter(|_| cli.connections > 0) {
        let wanted = Endurance { connections: cli.connections, destinations: cli.destinations, quota };
        let endured = connections(&wanted, |_, so_far| {
            println!("quota {quota}: {so_far}");
            Ok(())
        })?;
        if let Some(fault) = endured.fault() {
            has_failed = true;
            println!("FAILED, quota {quota}: {fault}");
        }
    }
    if cli.cycles > 0 {
        let cycled = cycles(cli.cycles, true)?;
        println!("{cycled}");
        has_failed |= cycled.left.is_some();
    }
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
