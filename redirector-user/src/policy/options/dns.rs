//! DNS capture.

use super::option::{CaptureOption, Group, Value, flag};
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::model::Dns;
use crate::policy::note::Note;

pub(super) static GROUP: Group =
    Group { heading: Some("DNS capture"), options: &[&REDIRECT_DNS, &CAPTURE_ALL_DNS], finish: set_dns };

/// `--redirect-dns`.
pub static REDIRECT_DNS: CaptureOption = flag("redirect-dns", "REDIRECT_DNS", Value::Switch)
    .second_variable("ISTIO_META_DNS_CAPTURE")
    .help("Send DNS to the agent on port 15053 (variable ISTIO_META_DNS_CAPTURE, too)")
    .row(
        "false | DNS (port 53, UDP and TCP) to 15053; only to the servers of the target's \
         resolv.conf, which takes `--pid`. No server there: off, with a note | `dns` \
         `resolvers_ask_the_proxy` (glibc, musl, dig)",
    );

/// `--capture-all-dns`.
pub static CAPTURE_ALL_DNS: CaptureOption = flag("capture-all-dns", "CAPTURE_ALL_DNS", Value::Switch)
    .help("With --redirect-dns: whatever the server, not only those in resolv.conf")
    .row(
        "false | with `--redirect-dns`: whatever the server | `dns` \
         `resolvers_that_ask_others_ask_the_proxy`, `parity_options` `options_one_by_one`",
    );

/// Redirection without "all" means the nameservers of resolv.conf; without one of them it is off.
fn set_dns(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    let redirect = draft.flags.switch(&REDIRECT_DNS);
    let all = draft.flags.switch(&CAPTURE_ALL_DNS);
    if redirect.is_none() && all.is_none() {
        return Ok(());
    }
    let on = redirect.map_or(draft.policy.dns != Dns::Off, |(_, on)| on);
    let any = all.map_or(draft.policy.dns == Dns::All, |(_, any)| any);
    draft.policy.dns = match (on, any) {
        (false, _) => {
            if let Some((name, true)) = all {
                draft.notes.push(Note::warning(name, "has no effect without --redirect-dns"));
            }
            Dns::Off
        }
        (true, true) => Dns::All,
        (true, false) => match &draft.policy.dns {
            Dns::Servers(servers) if redirect.is_none() => Dns::Servers(servers.clone()),
            _ => nameservers(draft, redirect.or(all).map_or("--redirect-dns", |(name, _)| name))?,
        },
    };
    Ok(())
}

fn nameservers(draft: &mut Draft<'_>, name: &str) -> Result<Dns, ConfigError> {
    let servers = draft.target.nameservers().map_err(|error| {
        let remedy = "name the target by --pid, capture every server (--capture-all-dns) or list them in a \
                      policy file (dns = [\"10.96.0.10\"])";
        ConfigError::unavailable(name, format!("needs the target's resolv.conf: {error}"), remedy)
    })?;
    if servers.is_empty() {
        let text =
            "the target's resolv.conf names no server: DNS is not captured; --capture-all-dns takes any";
        draft.notes.push(Note::warning(name, text));
        return Ok(Dns::Off);
    }
    Ok(Dns::Servers(servers))
}
