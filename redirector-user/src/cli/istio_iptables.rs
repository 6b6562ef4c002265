//! This program under the name `istio-iptables`: the original's command line, for the namespace it is called in.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, Command, FromArgMatches};

use super::attach;
use super::env::{Env, fail};
use super::output::Format;
use crate::base::error::{Kind, Result};
use crate::instance::{detach, find};
use crate::kernel;
use crate::pod::{Target, open_netns};
use crate::policy::options::{ENVOY_PORT, INBOUND_CAPTURE_PORT, NETWORK_NAMESPACE};
use crate::policy::{CaptureFlags, Ipv6, OwnFlags, Requests, TargetDetails};
use crate::verify::original;

/// The name.
const NAME: &str = "istio-iptables";

const ABOUT: &str = "\
Set up the redirection of the pod this is called in, as istio-iptables does, by redirector's eBPF programs.

Flags, variables and defaults are those of istio-iptables: without flags nothing is captured. The target is the network
namespace of this process and the cgroup of its pod or container; both must be a pod's. More can be said
with `redirector attach`.";

/// The original's logger has flags, which Istio's injector gives.
#[derive(Debug, clap::Args)]
struct Logging {
    /// No effect: belongs to the original's logger.
    #[arg(long = "log_output_level", hide = true, value_name = "LEVEL")]
    level: Option<String>,
    /// No effect: belongs to the original's logger.
    #[arg(long = "log_as_json", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    json: Option<String>,
}

/// Whether this process was called by that name.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|path| Path::new(path).file_name()) == Some(OsStr::new(NAME))
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| {
        refuse_own_flags(&matches)?;
        Ok((CaptureFlags::from_arg_matches(&matches)?, Logging::from_arg_matches(&matches)?))
    });
    let (mut flags, logging) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return super::usage::usage(&e),
    };
    let env = Env::new(Path::new(super::env::BPFFS), Format::Table);
    if logging.level.is_some() || logging.json.is_some() {
        env.note("--log_output_level and --log_as_json have no effect here");
    }
    flags.own.istio_defaults = true;
    match run(&env, flags) {
        Ok(code) => code,
        Err(e) if e.kind() == Kind::Validation => {
            fail(&e, env.format);
            ExitCode::from(original::FAILED)
        }
        Err(e) => fail(&e, env.format),
    }
}

fn command() -> Command {
    let command = Command::new(NAME).version(super::usage::VERSION.as_str()).args_override_self(true);
    let command = Logging::augment_args(CaptureFlags::augment_args(command)).about(ABOUT);
    own_flags().into_iter().fold(command, |command, id| command.mut_arg(id, |arg| arg.hide(true)))
}

/// Ids of redirector's own flags, which the original does not have.
fn own_flags() -> Vec<String> {
    let own = OwnFlags::augment_args(Command::new(NAME));
    own.get_arguments().map(|arg| arg.get_id().to_string()).collect()
}

fn refuse_own_flags(matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
    let given = |id: &&String| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
    match own_flags().iter().find(given) {
        Some(id) => {
            let flag = id.replace('_', "-");
            let text = format!("istio-iptables has no flag --{flag}; use `redirector attach` for it\n");
            Err(clap::Error::raw(clap::error::ErrorKind::UnknownArgument, text))
        }
        None => Ok(()),
    }
}

fn run(env: &Env, mut flags: CaptureFlags) -> Result<ExitCode> {
    let requests = flags.requests()?;
    if requests.run_validation && requests.skip_apply && !requests.dry_run && !requests.cleanup_only {
        return validate(env, &flags, &requests);
    }
    kernel::privileges::require()?;
    if requests.cleanup_only {
        return clean_up(env, &requests);
    }
    let target = match &requests.network_namespace {
        Some(path) => Target::of_netns(path)?,
        None => Target::own()?,
    };
    // It has been obeyed: nothing is to be said about it.
    flags.remove(&NETWORK_NAMESPACE);
    let resolved = attach::resolve(env, &flags, &target)?;
    attach::work(env, &target, &resolved, &attach::How::default())
}

/// As the init container `istio-validation` is called: by the proxy's user, without privileges.
fn validate(env: &Env, flags: &CaptureFlags, requests: &Requests) -> Result<ExitCode> {
    // Only the ports are of interest; nothing of the pod needs to be known for them.
    let facts =
        TargetDetails { root: Some("/".into()), nameservers: Some(Vec::new()), addresses: Some(Vec::new()) };
    let mut ports = CaptureFlags::default();
    ports.own.ipv6 = Some(Ipv6::On);
    for option in [&ENVOY_PORT, &INBOUND_CAPTURE_PORT] {
        if let Some(input) = flags.input(option) {
            ports.set(option, input.clone());
        }
    }
    let policy = crate::policy::resolve(&ports, &facts)?.policy;
    let ports = [policy.outbound_port, policy.inbound_port];
    let passed = original::validate(ports, requests.probe_port, requests.probe_timeout)?;
    for to in passed {
        env.note(&format!("validation passed: the proxy's connection to {to} is redirected"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `--cleanup-only`: no error if there is nothing, as in the original. The namespace alone says which instance: its cgroup may
/// be gone or out of sight, or its last process may have ended.
fn clean_up(env: &Env, requests: &Requests) -> Result<ExitCode> {
    let path = requests.network_namespace.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
    let shown = path.display();
    let netns = open_netns(path, || format!("{shown} does not exist"))?;
    match find::by_netns(&env.root, &netns)? {
        None => env.note(&format!("no instance is attached to {shown}")),
        Some(name) if requests.dry_run => env.note(&format!("would detach {name}")),
        Some(name) => {
            let report = detach::detach(&env.root, &name, None)?;
            for remark in &report.notes {
                env.note(remark);
            }
            super::output::print(&format!("detached {name}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &[&str]) -> bool {
        let matches = command().try_get_matches_from([&[NAME], args].concat()).expect("known flags");
        refuse_own_flags(&matches).is_err()
    }

    #[test]
    fn only_the_originals_flags() {
        command().debug_assert();
        for own in ["--istio-defaults", "--ipv6=on", "--policy=x", "--max-connections=7", "--proxy-cgroup=x"]
        {
            assert!(refused(&[own]), "{own}");
        }
        for shared in ["--dual-stack", "-n", "--dry-run=false", "-p=1", "--cleanup-only", "--log_as_json"] {
            assert!(!refused(&[shared]), "{shared}");
        }
    }

    #[test]
    fn the_name_decides() {
        for yes in ["istio-iptables", "/usr/local/bin/istio-iptables"] {
            assert!(is_called(Some(OsStr::new(yes))), "{yes}");
        }
        for no in ["redirector", "/istio-iptables/redirector", ""] {
            assert!(!is_called(Some(OsStr::new(no))), "{no}");
        }
        assert!(!is_called(None));
    }
}
