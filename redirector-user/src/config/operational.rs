//! Flags of istio-iptables that say how it works rather than what is captured: accepted, and never silently.
//!
//! Source: `tools/istio-iptables/pkg/cmd/root.go` (`ProgramIptables`) and `pkg/capture/run.go`
//! (`executeCommands`).

use std::path::PathBuf;

use super::error::ConfigError;
use super::flags::CaptureFlags;
use super::given::{Given, Origin};
use super::note::Note;

/// What the operational flags ask of the verb that was called. The verb has to obey them or to refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    /// `--dry-run`: change nothing.
    pub dry_run: bool,
    /// `--skip-rule-apply`: attach nothing.
    pub skip_apply: bool,
    /// `--cleanup-only`: attach nothing, remove what is there.
    pub cleanup_only: bool,
    /// `--run-validation`: prove the redirection afterwards; not built yet.
    pub run_validation: bool,
    /// `--network-namespace`: the namespace to work in; to be refused if another one is targeted.
    pub network_namespace: Option<PathBuf>,
}

type Field = fn(&CaptureFlags) -> Option<&Given>;

/// Booleans that ask for something when true, with what that means here.
const SWITCHES: [(Field, &str); 7] = [
    (|f| f.skip_rule_apply.as_ref(), "nothing is attached, as with --dry-run"),
    (|f| f.run_validation.as_ref(), "validation is not built yet"),
    (|f| f.cni_mode.as_ref(), "no effect: it places the xtables lock, and redirector takes none"),
    (|f| f.reconcile.as_ref(), "no effect: an instance is replaced as a whole, no rule of it can drift"),
    (|f| f.cleanup_only.as_ref(), "nothing is attached; `redirector detach` removes an instance"),
    (|f| f.force_apply.as_ref(), "no effect: there are no rule lists that could be applied twice"),
    (|f| f.native_nftables.as_ref(), "no effect: redirector uses neither nftables nor iptables"),
];

/// Other values, worth a note when they are not empty.
const VALUES: [(Field, &str); 4] = [
    (|f| f.iptables_probe_port.as_ref(), "no effect: it is a port of istio-iptables' own validation"),
    (|f| f.probe_timeout.as_ref(), "no effect: it is the patience of istio-iptables' own validation"),
    (|f| f.network_namespace.as_ref(), "the namespace is part of the target here: --netns FILE or --pid PID"),
    (|f| f.force_iptables_binary.as_ref(), "no effect: redirector runs no iptables binary"),
];

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
        Ok(Requests {
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
        let unreadable = BOOLEANS.iter().filter_map(|field| {
            let given = field(self).filter(|given| !given.text().is_empty() && given.switch().is_none())?;
            let text = format!("{:?} is not a boolean and is ignored, as by istio-iptables", given.text());
            Some(Note::warning(given.name(), text))
        });
        switches.chain(values).chain(unreadable).chain(self.variables.notes()).collect()
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
