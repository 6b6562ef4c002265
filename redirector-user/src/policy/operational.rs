//! Flags of istio-iptables that say how it works rather than what is captured: accepted, and never silently.
//!
//! Source: `tools/istio-iptables/pkg/cmd/root.go` (`ProgramIptables`) and `pkg/capture/run.go`
//! (`executeCommands`).

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::flags::CaptureFlags;
use super::given::{Given, Origin};
use super::note::Note;
use super::parse;

/// What the operational flags ask of the verb that was called. The verb has to obey them or to refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    /// `--dry-run`: change nothing.
    pub dry_run: bool,
    /// `--skip-rule-apply`: attach nothing.
    pub skip_apply: bool,
    /// `--cleanup-only`: attach nothing, remove what is there.
    pub cleanup_only: bool,
    /// `--run-validation`: prove the redirection afterwards.
    pub run_validation: bool,
    /// `--iptables-probe-port`: the port that the validation connects to.
    pub probe_port: u16,
    /// `--probe-timeout`: its patience.
    pub probe_timeout: Duration,
    /// `--network-namespace`: the namespace to work in; to be refused if another one is targeted.
    pub network_namespace: Option<PathBuf>,
}

impl Default for Requests {
    /// `DefaultIptablesProbePortUint` and `DefaultProbeTimeout` of the original, and nothing asked for.
    fn default() -> Self {
        Self {
            dry_run: false,
            skip_apply: false,
            cleanup_only: false,
            run_validation: false,
            probe_port: 15_002,
            probe_timeout: Duration::from_secs(5),
            network_namespace: None,
        }
    }
}

type Field = fn(&CaptureFlags) -> Option<&Given>;

/// Booleans that ask for something when true, with what that means here.
const SWITCHES: [(Field, &str); 6] = [
    (|f| f.skip_rule_apply.as_ref(), "nothing is attached"),
    (|f| f.cni_mode.as_ref(), "no effect: it places the xtables lock, and redirector takes none"),
    (|f| f.reconcile.as_ref(), "no effect: an instance is replaced as a whole, no rule of it can drift"),
    (|f| f.cleanup_only.as_ref(), "nothing is attached; `redirector detach` removes an instance"),
    (|f| f.force_apply.as_ref(), "no effect: there are no rule lists that could be applied twice"),
    (|f| f.native_nftables.as_ref(), "no effect: redirector uses neither nftables nor iptables"),
];

/// Other values, worth a note when they are not empty.
const VALUES: [(Field, &str); 2] = [
    (|f| f.network_namespace.as_ref(), "the namespace is part of the target here: --netns FILE or --pid PID"),
    (|f| f.force_iptables_binary.as_ref(), "no effect: redirector runs no iptables binary"),
];

/// Values that only the validation uses.
const OF_VALIDATION: [Field; 2] = [|f| f.iptables_probe_port.as_ref(), |f| f.probe_timeout.as_ref()];

/// Second names of booleans and the booleans themselves, for the complaint about unreadable variables.
const BOOLEANS: [Field; 15] = [
    |f| f.redirect_dns.as_ref(),
    |f| f.variables.meta_dns_capture.as_ref(),
    |f| f.capture_all_dns.as_ref(),
    |f| f.dual_stack.as_ref(),
    |f| f.variables.istio_dual_stack.as_ref(),
    |f| f.drop_invalid.as_ref(),
    |f| f.variables.invalid_drop.as_ref(),
    |f| f.dry_run.as_ref(),
    |f| f.skip_rule_apply.as_ref(),
    |f| f.run_validation.as_ref(),
    |f| f.cni_mode.as_ref(),
    |f| f.reconcile.as_ref(),
    |f| f.cleanup_only.as_ref(),
    |f| f.force_apply.as_ref(),
    |f| f.native_nftables.as_ref(),
];

impl CaptureFlags {
    /// What the operational flags ask of the verb.
    pub fn requests(&self) -> Result<Requests, ConfigError> {
        if let Some(given) = &self.force_iptables_binary
            && !matches!(given.text(), "" | "legacy" | "nft")
        {
            let remedy =
                "leave it out, redirector runs no iptables binary (istio-iptables knows legacy and nft)";
            return Err(ConfigError::invalid(
                given.name(),
                given.text(),
                "is not an iptables variant",
                remedy,
            ));
        }
        let on = |given: &Option<Given>| given.as_ref().and_then(Given::switch).unwrap_or(false);
        let filled = |given: &'_ Option<Given>| given.clone().filter(|given| !given.text().is_empty());
        let port = filled(&self.iptables_probe_port).map(|given| parse::port(given.name(), given.text()));
        let timeout = filled(&self.probe_timeout).map(|given| parse::duration(given.name(), given.text()));
        let default = Requests::default();
        Ok(Requests {
            probe_port: port.transpose()?.unwrap_or(default.probe_port),
            probe_timeout: timeout.transpose()?.unwrap_or(default.probe_timeout),
            dry_run: on(&self.dry_run),
            skip_apply: on(&self.skip_rule_apply),
            cleanup_only: on(&self.cleanup_only),
            run_validation: on(&self.run_validation),
            network_namespace: match &self.network_namespace {
                Some(given) if !given.text().is_empty() => Some(given.text().into()),
                _ => None,
            },
        })
    }

    /// What the accepted operational flags and unreadable variables mean here, in a stable order.
    pub fn operational_notes(&self) -> Vec<Note> {
        let switches = SWITCHES.iter().filter_map(|(field, text)| {
            let given = field(self).filter(|given| given.switch() == Some(true))?;
            Some(Note::remark(given.name(), *text))
        });
        let values = VALUES.iter().filter_map(|(field, text)| {
            let given = field(self).filter(|given| !given.text().is_empty())?;
            Some(Note::remark(given.name(), *text))
        });
        let validates = self.run_validation.as_ref().and_then(Given::switch) == Some(true);
        let of_validation = OF_VALIDATION.iter().filter_map(|field| {
            let given = field(self).filter(|given| !validates && !given.text().is_empty())?;
            Some(Note::remark(given.name(), "no effect without --run-validation"))
        });
        let unreadable = BOOLEANS.iter().filter_map(|field| {
            let given = field(self).filter(|given| !given.text().is_empty() && given.switch().is_none())?;
            let text = format!("{:?} is not a boolean and is ignored, as by istio-iptables", given.text());
            Some(Note::warning(given.name(), text))
        });
        switches.chain(of_validation).chain(values).chain(unreadable).chain(self.variables.notes()).collect()
    }
}

/// A boolean with a second variable: the flag wins, then the second variable, then the flag's own. A variable
/// that is no boolean counts as not set (`AdditionalEnv` in `pkg/flag/flag.go` runs after `BindEnv` and drops
/// errors).
pub(super) fn switch<'a>(own: &'a Option<Given>, second: &'a Option<Given>) -> Option<(&'a str, bool)> {
    let read = |given: &'a Given| Some((given.name(), given.switch()?));
    match own {
        Some(given) if given.origin() == Origin::Explicit => read(given),
        _ => second.as_ref().and_then(read).or_else(|| own.as_ref().and_then(read)),
    }
}
