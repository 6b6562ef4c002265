//! `redirector explain`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Parser;

use super::env::Env;
use super::output::{Format, json, print};
use super::which::Which;
use crate::base::error::{Error, Result};
use crate::explain::{self, Arriving, Explanation, Offline, Outgoing};
use crate::health;
use crate::instance::{find, status};
use crate::policy::{self, CaptureFlags, Policy, TargetDetails, variables_help};
use crate::rules::Protocol;

const EXAMPLES: &str = "\
Examples:
  redirector explain --to 10.96.0.10:80
      what becomes of an application's connection under the sidecar default
  redirector explain --uid 1337 --src 127.0.0.1 --to 127.0.0.6:15002
      the connection by which istio-validation checks the rules
  redirector explain -o 5432 -x 10.0.0.0/8 --uid 1000 --to 10.1.2.3:443
  redirector explain --local-addr 10.1.2.3,fd00::3 --uid 1337 \\
      --to 10.1.2.3:8080
  redirector explain --redirect-dns --resolver 10.96.0.10 --proto udp \\
      --to 10.96.0.10:53
  redirector explain --inbound --iif eth0 --to 10.1.2.3:15020
  redirector explain n4097 --to 10.96.0.10:80
      under the policy of an instance, with the addresses and routes of its
      namespace (needs root)";

/// Say what becomes of a connection, and which rule decides. Nothing is attached, asked or sent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Destination, as the application gives it.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Protocol.
    #[arg(long, value_enum, default_value_t = Proto::Tcp, value_name = "PROTO")]
    proto: Proto,
    /// User of the socket [default: one that no rule names].
    #[arg(long)]
    uid: Option<u32>,
    /// Group of the socket [default: one that no rule names].
    #[arg(long)]
    gid: Option<u32>,
    /// The socket is of the proxy's cgroup (--proxy-cgroup).
    #[arg(long)]
    proxy: bool,
    /// Address the socket is bound to [default: none].
    #[arg(long, value_name = "ADDR")]
    src: Option<IpAddr>,
    /// Interface it leaves on [default: lo for loopback and the pod's own addresses, else none that has a rule].
    #[arg(long, value_name = "IF")]
    oif: Option<String>,
    /// The pod's own addresses, a comma list.
    #[arg(long, value_name = "ADDRS", value_delimiter = ',')]
    local_addr: Vec<IpAddr>,
    /// Nameservers of the pod's resolv.conf, a comma list (for --redirect-dns).
    #[arg(long, value_name = "ADDRS", value_delimiter = ',')]
    resolver: Option<Vec<IpAddr>>,
    /// It arrives from the network.
    #[arg(long, conflicts_with_all = ["uid", "gid", "proxy", "src", "oif"])]
    inbound: bool,
    /// Interface it arrives on.
    #[arg(long, value_name = "IF", requires = "inbound")]
    iif: Option<String>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    capture: CaptureFlags,
}

impl Args {
    /// Whether it is about an instance.
    pub fn is_live(&self) -> bool {
        self.which.is_some()
    }
}

/// The capture flags that this process gets from its environment alone.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct FromEnvironment {
    #[command(flatten)]
    capture: CaptureFlags,
}

/// A protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Proto {
    Tcp,
    Udp,
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    #[serde(flatten)]
    explanation: &'a Explanation,
    policy: &'a Policy,
}

/// The end of `--help`.
pub fn long_help() -> String {
    format!("{EXAMPLES}\n\n{}", variables_help())
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    let name = args.which.resolve(env)?;
    let (policy, offline) = match &name {
        Some(name) => live(env, args, name)?,
        None => imagined(env, args)?,
    };
    if args.proxy && policy.proxy_cgroup.is_none() {
        return Err(Error::input("--proxy: the policy knows no cgroup of the proxy")
            .usage("give --proxy-cgroup, or --uid"));
    }
    let protocol = if args.proto == Proto::Tcp { Protocol::Tcp } else { Protocol::Udp };
    let mut explanation = if args.inbound {
        let interface = args.iif.clone();
        explain::incoming(&policy, &offline, &Arriving { protocol, to: args.to, interface })
    } else {
        let query = Outgoing {
            protocol,
            uid: args.uid,
            gid: args.gid,
            proxy: args.proxy,
            source: args.src,
            to: args.to,
        };
        explain::outgoing(&policy, &offline, &query)
    };
    refuse_contradictions(args, explanation.lo)?;
    explanation.notes.extend(strange(name.as_deref(), args, &policy, &offline));
    for remark in &explanation.notes {
        env.note(remark);
    }
    match env.format {
        Format::Json => {
            json(&Answer { explanation: &explanation, policy: &policy })?;
        }
        Format::Table => {
            let lines = explanation.lines().into_iter().map(|(name, text)| format!("{name:<11} {text}"));
            print(&lines.collect::<Vec<_>>().join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The policy of the flags, and what they say of the pod.
fn imagined(env: &Env, args: &Args) -> Result<(Policy, Offline)> {
    let facts = TargetDetails {
        root: None,
        nameservers: args.resolver.clone(),
        addresses: (!args.local_addr.is_empty()).then(|| args.local_addr.clone()),
    };
    let resolved = policy::resolve(&args.capture, &facts).map_err(|e| match e {
        // The general remedy names a target, which there is none of here.
        policy::ConfigError::Unavailable { name, why, .. } => {
            let flag = if name.contains("ipv6") { "--local-addr" } else { "--resolver" };
            Error::input(format!("{name}: {why}"))
                .usage(format!("say it by {flag}, or see `redirector explain --help`"))
        }
        e => e.into(),
    })?;
    for remark in &resolved.notes {
        env.note(&format!("{}: {}", remark.about, remark.text));
    }
    let policy = resolved.policy;
    crate::netdev::check_virtual_interfaces(&policy)?;
    let offline = match (&args.oif, &args.iif) {
        (Some(output), _) => Offline::leaving_on(&policy, &args.local_addr, output),
        (None, input) => {
            let named: Vec<&str> = input.iter().map(String::as_str).collect();
            Offline::new(&policy, &args.local_addr, &named)
        }
    };
    Ok((policy, offline))
}

/// The policy of an instance, and what its namespace is like.
fn live(env: &Env, args: &Args, name: &str) -> Result<(Policy, Offline)> {
    if args.oif.is_some() || !args.local_addr.is_empty() || args.resolver.is_some() {
        let text = "--oif, --local-addr and --resolver are those of the instance's namespace; leave them out";
        return Err(Error::input(text));
    }
    let bare = FromEnvironment::try_parse_from(None::<&str>).map_err(|e| Error::input(e.to_string()))?;
    if args.capture != bare.capture {
        let text = "the policy is that of the instance; leave the capture flags out, or the instance";
        return Err(Error::input(text));
    }
    let record = status::status(&env.root, name)?.record;
    // Not by its file alone: that may lead to another namespace by now.
    let gone = || Error::input(format!("the namespace of {name} ({}) is gone", record.netns.display()));
    find::netns(&env.root, name).ok_or_else(gone)?;
    // The programs answer by their copy of the namespace, not by what it is now.
    let (policy, offline, difference) = health::known_to_programs(&env.root, name)?;
    if !difference.is_empty() {
        env.note(&format!(
            "the answer is that of the programs, whose copy of addresses and routes is stale: {}; `redirector refresh {name}` \
             renews it",
            difference.told()
        ));
    }
    if let Some(interface) = args.iif.as_deref().filter(|interface| offline.index(interface) == 0) {
        return Err(Error::input(format!(
            "--iif {interface}: the namespace of {name} has no such interface"
        )));
    }
    Ok((policy, offline))
}

/// A remark on what the namespace of an instance would not take for its own, so that no rule is asked. What a guest sends
/// (-k) is for others.
fn strange(name: Option<&str>, args: &Args, policy: &Policy, offline: &Offline) -> Option<String> {
    let guest = args.iif.as_ref().is_some_and(|name| policy.virtual_interfaces.contains(name));
    let (name, to) = (name?, args.to.ip().to_canonical());
    let own = offline.route(to).local != 0 || to.is_loopback();
    (args.inbound && !guest && !own).then(|| {
        format!(
            "the namespace of {name} has no address {to}: nothing for it is delivered there, and \
             no rule is asked"
        )
    })
}

/// What the flags say must be possible.
fn refuse_contradictions(args: &Args, lo: bool) -> Result<()> {
    if let Some(source) = args.src.filter(|source| !source.is_unspecified()) {
        let (source, to) = (source.to_canonical(), args.to.ip().to_canonical());
        if source.is_ipv4() != to.is_ipv4() && !to.is_unspecified() {
            return Err(Error::input(format!("--src {source}: not of the family of {to}"))
                .remedy("give an address of one family"));
        }
    }
    match &args.oif {
        Some(output) if lo && output != "lo" => Err(Error::input(format!(
            "--oif {output}: {} is an address of the pod, so it leaves on lo",
            args.to.ip()
        ))
        .usage("leave --oif out")),
        _ => Ok(()),
    }
}
