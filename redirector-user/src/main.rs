//! The `redirector` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    redirector_user::cli::main()
}
