//! The differential suite over options: `cargo xtask parity`; see `redirector_tests::harness::parity`.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    redirector_tests::harness::parity::main()
}
