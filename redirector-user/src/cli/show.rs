//! `redirector show`.

use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print, table};
use super::rules;
use super::which::Which;
use crate::base::error::Result;
use crate::health::{self, Finding, Health, NodeProcesses};
use crate::instance::status::{self, Status};
use crate::instance::sweep;
use crate::rules::{Entry, Rules};

/// Show one instance: what was asked for, and what the kernel does.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  redirector show n4097\n  redirector show n4097 -v\n  redirector show n4097 --output json"
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Every rule in order with its connections, and every hook.
    #[arg(short, long)]
    verbose: bool,
}

/// What `--output json` prints.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    status: &'a Status,
    rules: Vec<Entry>,
    captures: Option<String>,
    findings: &'a [Finding],
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    for swept in sweep::sweep_if_idle(&env.root)? {
        env.note(&swept);
    }
    let name = args.which.require(env)?;
    let status = status::status(&env.root, &name)?;
    let health = health::instance(&env.root, &name, &NodeProcesses::read()?)?;
    match env.format {
        Format::Json => json(&Shown {
            status: &status,
            rules: Rules::entries(&status.record.policy),
            captures: health.captures.clone(),
            findings: &health.findings,
        })?,
        Format::Table => text(&status, &health, args.verbose)?,
    }
    Ok(if health.has_fault() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(s: &Status, health: &Health, verbose: bool) -> Result<()> {
    let mut lines = vec![
        format!("name         {}", s.name),
        format!("state        {}", s.state),
        format!(
            "netns        {} (inode {}, cookie {})",
            s.record.netns.display(),
            s.netns_inode,
            s.netns_cookie
        ),
        format!("cgroup       {} (id {})", s.record.cgroup.display(), s.cgroup_id),
        format!("connections  {} redirected and alive", s.connections),
        format!("destinations {}", destinations(s)),
        format!("effective    {}", effective(s)),
    ];
    if let Some(pod) = &s.record.pod {
        lines.insert(1, format!("pod          {pod}"));
    }
    lines.extend(s.problem.iter().map(|problem| format!("problem      {problem}")));
    for l in &s.listeners {
        let problem = l.problem.as_ref().map(|problem| format!("  <- {problem}")).unwrap_or_default();
        lines.push(format!(
            "{:<12} port {}: {} IPv4, {} IPv6 listeners{problem}",
            l.traffic, l.port, l.ipv4, l.ipv6
        ));
    }
    lines.extend(health.captures.iter().map(|captures| format!("captures     {captures}")));
    lines.extend(super::status::findings(&health.findings));
    print(&lines.join("\n"))?;
    if verbose {
        print("\npolicy")?;
        print(super::attach::toml_of(&s.record.policy)?.trim_end())?;
        print("")?;
        table(
            ["HOOK", "PROGRAM", "EFFECTIVE", "BEFORE IT", "PROBLEM"],
            s.hooks.iter().map(|h| {
                [
                    h.hook.to_owned(),
                    h.program.map_or("-".into(), |id| id.to_string()),
                    if h.effective { "yes" } else { "NO" }.to_owned(),
                    h.before.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
                    h.problem.clone().unwrap_or_default(),
                ]
            }),
        )?;
    }
    print("")?;
    if verbose {
        return rules::print_all(s);
    }
    let shown = s.counters.iter().filter(|c| c.connections > 0);
    table(["CONNECTIONS", "RULE"], shown.map(|c| [c.connections.to_string(), c.rule.to_owned()]))
}

fn destinations(s: &Status) -> String {
    match s.virtual_destinations {
        Some(range) => {
            format!("{} of {} have an address in {range}", s.destinations, s.record.policy.max_destinations)
        }
        None => "none has an address of its own".to_owned(),
    }
}

fn effective(s: &Status) -> String {
    let broken: Vec<&str> = s.hooks.iter().filter(|h| !h.effective).map(|h| h.hook).collect();
    if broken.is_empty() {
        "yes: the kernel runs our programs at every hook".into()
    } else {
        format!("NO: {} (see -v)", broken.join(", "))
    }
}
