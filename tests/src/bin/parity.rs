//! The differential suite over options: `cargo xtask parity`; see `redirector_tests::parity`.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    redirector_tests::parity::main()
}
