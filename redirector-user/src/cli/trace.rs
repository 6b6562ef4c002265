//! `redirector trace`.

use super::env::Env;
use super::output::{self, Format, note};
use super::which::Which;
use crate::base::error::{Context, Result};
use crate::instance::trace::{End, Event, Trace};
use crate::kernel;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

const EXAMPLES: &str = "\
Examples:
  redirector attach --pid 4711 --trace
  redirector trace n4097
  redirector trace n4097 --output json      one document a line";

/// Print decisions live, as connections are made and arrive, until interrupted.
///
/// What was decided before is not told. The instance must have been attached with --trace. What connect() refuses is only counted (see
/// `show`). The kernel drops events when nobody reads them. It ends when the instance is detached or gets other programs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    kernel::privileges::require()?;
    let name = args.which.require(env)?;
    let format = env.format;
    let unwritten = Arc::new(OnceLock::new());
    let failed = Arc::clone(&unwritten);
    let mut trace = Trace::open(&env.root, &name, move |event: &Event| {
        let line = match format {
            Format::Json => serde_json::to_string(event).unwrap_or_default(),
            Format::Table => event.to_string(),
        };
        // A reader that has closed the pipe (`| head`) wants no more.
        writeln!(std::io::stdout(), "{line}").map_err(|e| failed.set(e)).is_ok()
    })?;
    trace.forget();
    note(format, "waiting for connections; interrupt to end");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "start the runtime".into())?;
    if runtime.block_on(trace.follow(tokio::signal::ctrl_c()))? == End::Replaced {
        note(format, "the programs that were traced are gone: detached, or others were swapped in");
    }
    Arc::into_inner(unwritten).and_then(OnceLock::into_inner).map_or(Ok(()), output::unwritten)?;
    Ok(ExitCode::SUCCESS)
}
