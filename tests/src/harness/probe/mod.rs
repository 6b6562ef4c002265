//! The probe: the one helper program that runs inside namespaces, cgroups and user ids.
//!
//! It speaks JSON: what to do comes as arguments or on stdin, what was seen leaves on stdout, a line each.

pub mod connect;
pub mod connect_proxy;
pub mod enter;
pub mod hold;
pub mod many;
pub mod observation;
mod relay;
pub mod scenario;
pub mod sequence;
pub mod serve;
pub mod storm;
pub mod surge;
pub mod sys;
pub mod udp;
pub mod validate;

use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::harness::probe::scenario::Scenario;

/// Set by programs that carry the probe in themselves (see [`run_if_asked`]).
pub const AS_PROBE: &str = "REDIRECTOR_TESTS_AS_PROBE";

/// Helper of the tests: acts inside a network namespace and cgroup, and tells what it saw.
#[derive(Debug, Parser)]
#[command(name = "probe")]
pub struct Cli {
    /// Join this cgroup first: sockets belong to the cgroup in which they are created
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Then enter this network namespace
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Then become this user (no supplementary groups)
    #[arg(long)]
    uid: Option<u32>,
    /// ... and group
    #[arg(long)]
    gid: Option<u32>,
    /// Outlive who started it, in a session of its own, instead of dying with them
    #[arg(long)]
    outlive: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Read scenarios (one JSON object a line) from stdin, connect, print observations
    Connect,
    /// Listen as the JSON given says; print what is accepted; obey commands on stdin; end with it
    Serve {
        /// A `Service` in JSON
        service: String,
    },
    /// Read a `Load` (JSON) from stdin: many connections from many threads; print a `LoadReport`
    Many,
    /// Read a `Storm` (JSON) from stdin: many short connections, the process being client and proxy; print an `Outcome`
    Storm,
    /// Read a `Surge` (JSON) from stdin: any number of connections, the process being client and proxy; print a `SurgeReport`
    Surge,
    /// Make one connection, and tell its names when asked on stdin; end with it
    Hold {
        /// Destination
        to: SocketAddr,
    },
    /// Validate as Istio's init container does; the JSON is a `Validation`
    Validate {
        /// A `Validation` in JSON
        validation: String,
    },
    /// An HTTP proxy that only knows CONNECT; prints where it was asked to go
    ConnectProxy {
        /// Address to listen on
        listen: SocketAddr,
    },
    /// Live through a sequence, and tell what was seen
    Sequence {
        /// Which
        sequence: sequence::Sequence,
        /// Destination
        to: SocketAddr,
    },
    /// Become another program
    Exec {
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// The probe's `main`.
pub fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    enter::raise_limits()?;
    enter::enter(cli.cgroup.as_deref(), cli.netns.as_deref(), cli.uid, cli.gid)?;
    enter::bind_life(cli.outlive)?;
    match cli.action {
        Action::Connect => {
            for line in std::io::stdin().lock().lines() {
                let scenario: Scenario = serde_json::from_str(&line?).context("a scenario")?;
                print_line(&connect::observe(&scenario))?;
            }
            Ok(())
        }
        Action::Serve { service } => serve::serve(&serde_json::from_str(&service).context("a service")?),
        Action::Many => {
            let load = serde_json::from_reader(std::io::stdin().lock()).context("a load")?;
            print_line(&many::run(&load))
        }
        Action::Storm => {
            let storm = serde_json::from_reader(std::io::stdin().lock()).context("a storm")?;
            print_line(&storm::run(&storm)?)
        }
        Action::Surge => {
            let surge = serde_json::from_reader(std::io::stdin().lock()).context("a surge")?;
            print_line(&surge::run(&surge)?)
        }
        Action::Hold { to } => hold::hold(to),
        Action::Validate { validation } => {
            validate::run(serde_json::from_str(&validation).context("a validation")?)
        }
        Action::ConnectProxy { listen } => connect_proxy::serve(listen),
        Action::Sequence { sequence, to } => {
            sequence::tell(sequence, to)?.iter().for_each(|line| println!("{line}"));
            Ok(())
        }
        Action::Exec { command } => {
            let (program, arguments) = command.split_first().context("no program")?;
            let error = std::process::Command::new(program).args(arguments).exec();
            Err(error).with_context(|| program.to_string_lossy().into_owned())
        }
    }
}

/// Lets a program be its own probe, for those that are started without the probe having been built: calls [`main`]
/// and exits when the environment says so. To be called first in `main`.
pub fn run_if_asked() {
    if std::env::var_os(AS_PROBE).is_some() {
        let code = main().map_or_else(
            |error| {
                eprintln!("probe: {error:#}");
                1
            },
            |()| 0,
        );
        std::process::exit(code);
    }
}

/// Prints one JSON line, at once: somebody is waiting for it.
fn print_line<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.flush()?;
    Ok(())
}
