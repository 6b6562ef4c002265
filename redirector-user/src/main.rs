//! The `redirector` command.

use std::process::ExitCode;

/// That of musl maps and unmaps memory for each few objects, which was a sixth of the CPU time of an attach.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    redirector_user::cli::main()
}
