//! What the operational flags ask of the verb.

use std::path::PathBuf;
use std::time::Duration;

use super::error::ConfigError;
use super::flags::CaptureFlags;
use super::options::{
    CLEANUP_ONLY, CaptureOption, DRY_RUN, FORCE_IPTABLES_BINARY, NETWORK_NAMESPACE, PROBE_PORT,
    PROBE_TIMEOUT, RUN_VALIDATION, SKIP_RULE_APPLY,
};
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

impl CaptureFlags {
    /// What the operational flags ask of the verb.
    pub fn requests(&self) -> Result<Requests, ConfigError> {
        let filled = |option: &CaptureOption| self.input(option).filter(|input| !input.text().is_empty());
        if let Some(input) = filled(&FORCE_IPTABLES_BINARY).filter(|i| !matches!(i.text(), "legacy" | "nft"))
        {
            let remedy =
                "leave it out, redirector runs no iptables binary (istio-iptables knows legacy and nft)";
            let why = "is not an iptables variant";
            return Err(ConfigError::invalid(input.name(), input.text(), why, remedy));
        }
        let mut requests = Requests {
            dry_run: self.is_on(&DRY_RUN),
            skip_apply: self.is_on(&SKIP_RULE_APPLY),
            cleanup_only: self.is_on(&CLEANUP_ONLY),
            run_validation: self.is_on(&RUN_VALIDATION),
            network_namespace: filled(&NETWORK_NAMESPACE).map(|input| input.text().into()),
            ..Requests::default()
        };
        if let Some(input) = filled(&PROBE_PORT) {
            input.store(&mut requests.probe_port, parse::port)?;
        }
        if let Some(input) = filled(&PROBE_TIMEOUT) {
            input.store(&mut requests.probe_timeout, parse::duration)?;
        }
        Ok(requests)
    }
}
