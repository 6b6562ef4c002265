//! The command line: a verb a file. Nouns read, verbs write.

#[cfg(feature = "agent")]
mod agent;
mod attach;
mod check;
mod cni;
mod connections;
mod detach;
mod env;
mod explain;
mod generate;
mod import;
mod istio_iptables;
mod list;
mod original_dst;
mod output;
mod refresh;
mod rules;
mod show;
mod status;
mod trace;
mod upgrade;
mod usage;
mod verify;
mod watch;
mod which;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use env::{BPFFS, Env, fail};
use output::Format;
use usage::usage;

const EXAMPLES: &str = "\
Examples:
  redirector attach --pid 4711            capture a pod, by any of its processes
  redirector attach --netns /run/netns/pod1 --cgroup /sys/fs/cgroup/pod1 \\
      -o 22
  redirector status                       what is wrong, and what to do
  redirector list
  redirector show n4097
  redirector original-dst n4097           original destinations of connections
  redirector verify n4097                 real connections through it
  redirector detach --pid 4711

Exit codes:
  0  done (also: attach of an equal policy)
  1  failed
  2  wrong usage or input
  3  nothing matched
  4  this kernel, node or set of privileges cannot do it";

/// Redirects a pod's TCP traffic to its sidecar proxy with eBPF, as istio-init does with iptables.
#[derive(Debug, Parser)]
#[command(name = "redirector", version = usage::VERSION.as_str(), after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// How to print results; JSON is stable, see docs/cli.md.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Mount point of the bpffs that holds the instances; attach mounts one on an empty directory.
    #[arg(long, global = true, default_value = BPFFS, value_name = "DIR")]
    bpffs: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(after_long_help = attach::long_help())]
    Attach(Box<attach::Args>),
    Detach(detach::Args),
    Refresh(refresh::Args),
    Upgrade(upgrade::Args),
    List(list::Args),
    Show(show::Args),
    Status(status::Args),
    Connections(connections::Args),
    OriginalDst(original_dst::Args),
    Trace(trace::Args),
    Check(check::Args),
    #[command(after_long_help = explain::long_help())]
    Explain(Box<explain::Args>),
    Import(import::Args),
    #[cfg(feature = "agent")]
    Agent(Box<agent::Args>),
    Cni(cni::Args),
    Verify(verify::Args),
    Completions(generate::Completions),
    #[command(hide = true)]
    Generate(generate::Args),
}

impl Verb {
    /// Whether it is about instances that are there already.
    fn looks_for_instances(&self) -> bool {
        match self {
            Self::Detach(_)
            | Self::Refresh(_)
            | Self::Upgrade(_)
            | Self::List(_)
            | Self::Show(_)
            | Self::Status(_)
            | Self::Connections(_)
            | Self::OriginalDst(_)
            | Self::Trace(_)
            | Self::Verify(_) => true,
            Self::Explain(args) => args.is_live(),
            #[cfg(feature = "agent")]
            Self::Agent(_) => false,
            Self::Attach(_)
            | Self::Check(_)
            | Self::Import(_)
            | Self::Cni(_)
            | Self::Completions(_)
            | Self::Generate(_) => false,
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    crate::sys::arenas::share_one();
    if istio_iptables::is_called(std::env::args_os().next().as_deref()) {
        return istio_iptables::main();
    }
    // Runtimes pass no arguments; `redirector cni` is for whoever tries it by hand.
    let mut arguments = std::env::args().skip(1);
    if crate::cni::plugin::is_called()
        && matches!((arguments.next().as_deref(), arguments.next()), (None | Some("cni"), None))
    {
        return crate::cni::plugin::main();
    }
    // No verb of `Cli`: whoever mistypes `verify` would be told of it.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == crate::verify::helper::VERB) {
        return verify::helper();
    }
    generate::complete(Cli::command);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let env = Env::new(&cli.bpffs, cli.output);
    // Where nothing is mounted nothing is attached, but whoever names a place means one that is there.
    if cli.bpffs != Path::new(BPFFS)
        && cli.verb.looks_for_instances()
        && let Err(e) = env.root.require()
    {
        return fail(&e, env.format);
    }
    let result = match cli.verb {
        Verb::Attach(args) => attach::run(&env, *args),
        Verb::Detach(args) => detach::run(&env, args),
        Verb::Refresh(args) => refresh::run(&env, &args),
        Verb::Upgrade(args) => upgrade::run(&env, &args),
        Verb::List(args) => list::run(&env, &args),
        Verb::Show(args) => show::run(&env, &args),
        Verb::Status(args) => status::run(&env, &args),
        Verb::Connections(args) => connections::run(&env, &args),
        Verb::OriginalDst(args) => original_dst::run(&env, &args),
        Verb::Trace(args) => trace::run(&env, &args),
        Verb::Check(args) => check::run(&env, &args),
        Verb::Explain(args) => explain::run(&env, &args),
        Verb::Import(args) => import::run(&env, &args),
        #[cfg(feature = "agent")]
        Verb::Agent(args) => agent::run(&env, *args),
        Verb::Cni(args) => cni::run(&env, args),
        Verb::Verify(args) => verify::run(&env, &args),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Generate(args) => generate::run(Cli::command(), &args),
    };
    match result {
        Ok(code) => code,
        Err(e) => fail(&e, env.format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Help is wrapped to the terminal, which would cut a command in two.
    #[test]
    fn examples_fit_every_terminal() {
        let cli = Cli::command();
        for verb in std::iter::once(&cli).chain(cli.get_subcommands()) {
            for help in [verb.get_after_help(), verb.get_after_long_help()].into_iter().flatten() {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", verb.get_name());
                }
            }
        }
    }
}
