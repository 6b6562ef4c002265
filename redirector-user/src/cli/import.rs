//! `redirector import`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, print};
use crate::base::error::{Error, Result};
use crate::base::input;
use crate::base::text::shortened;
use crate::import::{self, Import, ImportError};
use crate::rules::Family;

/// A rule may be as long as the file.
const MAX_NOTE_BYTES: usize = 2000;

const EXAMPLES: &str = "\
Examples:
  nsenter -t 4711 -n iptables-save | redirector import
      the flags for a pod whose istio-init has made rules
  (iptables-save; ip6tables-save) | redirector import
  redirector import rules.txt rules6.txt --output json
  redirector import rules.txt --output json | jq .policy > pod.json
  redirector attach --pid 4711 --policy pod.json

What it reads: iptables-save, iptables -S, iptables -vnL, iptables commands; of
one table or several, of IPv4 or IPv6 or both; at most 4 MiB. Without rules for
IPv6 the answer has --ipv6 off.

Exit codes: 0 the flags mean the same, 1 some rules cannot be expressed (all of
them are named), 2 no iptables rules, 3 none of istio.";

/// Print the flags that mean what the iptables rules of an Istio pod mean. Nothing is attached.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What iptables-save printed [default: -, standard input].
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    let mut text = String::new();
    let standard_input = [PathBuf::from("-")];
    for file in if args.files.is_empty() { &standard_input[..] } else { &args.files } {
        text.push_str(&read(file)?);
        text.push('\n');
    }
    let import = import::import(&text).map_err(|e| match e {
        ImportError::NotIstio => Error::nothing_matched(e.to_string()),
        _ => Error::input(e.to_string()),
    })?;
    match env.format {
        Format::Json => json(&import)?,
        Format::Table => {
            for remark in &import.notes {
                env.note(remark);
            }
            report(env, &import);
            print(&import.flags.to_string())?;
        }
    }
    Ok(if import.is_exact() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn read(file: &Path) -> Result<String> {
    let (bytes, from) = if file == Path::new("-") {
        (input::bytes(std::io::stdin()), "standard input".to_owned())
    } else {
        (File::open(file).and_then(input::bytes), file.display().to_string())
    };
    let remedy = "give the output of iptables-save, or name a file to read";
    let bytes = bytes.map_err(|e| Error::input(format!("{from}: {e}")).remedy(remedy))?;
    // What is no text is no rule either.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Names what the flags do not say.
fn report(env: &Env, import: &Import) {
    let program = |family| if family == Family::V4 { "iptables" } else { "ip6tables" };
    for rule in &import.inexpressible {
        let text = format!("line {} ({}): {}: {}", rule.line, program(rule.family), rule.rule, rule.why);
        env.note(&shortened(&format!("cannot be expressed: {text}"), MAX_NOTE_BYTES));
    }
    for rule in &import.missing {
        let place = format!("{} -t {}", program(rule.family), rule.table.name());
        env.note(&format!("is not in the input, but comes with the flags: {place} {}", rule.rule));
    }
}
