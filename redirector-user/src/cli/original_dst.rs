//! `redirector original-dst`.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::env::Env;
use super::output::{Format, json, table};
use super::which::Which;
use crate::base::error::{Error, Result};
use crate::instance::connections;

const EXAMPLES: &str = "\
Examples:
  redirector original-dst n4097
  redirector original-dst n4097 --client 10.1.2.3:41240
  redirector original-dst n4097 --output json";

/// Original destinations of the redirected connections that are alive (the exposed map).
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Only the connection of this client, as the proxy's accept() shows it; exit code 3 if there is none.
    #[arg(long, value_name = "ADDR:PORT")]
    client: Option<SocketAddr>,
}

pub fn run(env: &Env, args: &Args) -> Result<ExitCode> {
    let name = args.which.require(env)?;
    let mut flows = connections::original_dst(&env.root, &name)?;
    if let Some(client) = args.client {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        flows.retain(|f| f.client == client);
        if flows.is_empty() {
            return Err(Error::nothing_matched(format!("no redirected connection of {client} is alive")));
        }
    }
    match env.format {
        Format::Json => json(&flows)?,
        Format::Table => table(
            ["CLIENT", "PROXY", "ORIGINAL", "TRAFFIC", "RULE"],
            flows.into_iter().map(|f| {
                [
                    f.client.to_string(),
                    f.proxy.to_string(),
                    f.original.to_string(),
                    f.traffic.to_owned(),
                    f.rule.to_owned(),
                ]
            }),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
