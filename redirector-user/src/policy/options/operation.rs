//! Flags of istio-iptables that say how it works rather than what is captured: accepted, and never silently.
//!
//! Source: `tools/istio-iptables/pkg/cmd/root.go` (`ProgramIptables`) and `pkg/capture/run.go`
//! (`executeCommands`).

use super::option::{CaptureOption, Group, Value, flag, nothing};
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::flag_input::FlagInput;
use crate::policy::note::Note;

/// Heading of these flags, of which `-h` says nothing.
pub const OPERATION: &str = "Accepted for istio-iptables' sake";

pub(super) static GROUP: Group = Group {
    heading: Some(OPERATION),
    options: &[
        &DROP_INVALID,
        &SKIP_RULE_APPLY,
        &RUN_VALIDATION,
        &PROBE_PORT,
        &PROBE_TIMEOUT,
        &NETWORK_NAMESPACE,
        &CNI_MODE,
        &RECONCILE,
        &CLEANUP_ONLY,
        &FORCE_APPLY,
        &NATIVE_NFTABLES,
        &FORCE_IPTABLES_BINARY,
    ],
    finish: nothing,
};

static DROP_INVALID: CaptureOption = flag("drop-invalid", "DROP_INVALID", Value::Switch)
    .second_variable("INVALID_DROP")
    .help("Drop packets conntrack calls invalid: none exist here (variable INVALID_DROP, too)")
    .row(
        "false | accepted, kept in the policy, without effect, with a note: there are no \
         conntrack states here | nothing to see; parsing: `every_switch`",
    )
    .switch(|draft, name, on| {
        draft.policy.drop_invalid = on;
        if on {
            let text = "kept and without effect: it drops packets that conntrack calls invalid, and captured \
                        connections need no conntrack here";
            draft.notes.push(Note::remark(name, text));
        }
    });

/// `-n`.
pub static DRY_RUN: CaptureOption =
    flag("dry-run", "DRY_RUN", Value::Switch).letter('n').help("Check everything and change nothing").row(
        "false | check everything, print the policy, change nothing | `lifecycle_faults` uses \
         it; `requests`",
    );

/// `--skip-rule-apply`.
pub static SKIP_RULE_APPLY: CaptureOption = flag("skip-rule-apply", "SKIP_RULE_APPLY", Value::Switch)
    .help("Attach nothing; with --run-validation: only validate")
    .row(
        "false | attach nothing: as `--dry-run`, with `--run-validation` only that | \
         `requests`, `verify` `run_validation`",
    )
    .note("nothing is attached");

/// `--run-validation`.
pub static RUN_VALIDATION: CaptureOption = flag("run-validation", "RUN_VALIDATION", Value::Switch)
    .help("Verify afterwards; a new instance that fails is detached again")
    .row(
        "false | [verify](cli.md#verify-name) the instance afterwards; if it fails exit code \
         1, and a new instance is detached again | `verify` `run_validation`",
    );

/// `--iptables-probe-port`.
pub static PROBE_PORT: CaptureOption =
    flag("iptables-probe-port", "IPTABLES_PROBE_PORT", Value::Text("PORT"))
        .help("Port that --run-validation connects to (15002)")
        .row("15002 | port of the validation | `requests`, `verify` `run_validation`")
        .text(note_without_validation);

/// `--probe-timeout`.
pub static PROBE_TIMEOUT: CaptureOption = flag("probe-timeout", "PROBE_TIMEOUT", Value::Text("DURATION"))
    .help("Patience of --run-validation (5s)")
    .row("5s | patience of the validation for each connection, at most 60s | `requests`, `verify` `run_validation`")
    .text(note_without_validation);

#[expect(clippy::unnecessary_wraps, reason = "one type for all options")]
fn note_without_validation(draft: &mut Draft<'_>, input: &FlagInput) -> Result<(), ConfigError> {
    if !input.text().is_empty() && !draft.flags.is_on(&RUN_VALIDATION) {
        draft.notes.push(Note::remark(input.name(), "no effect without --run-validation"));
    }
    Ok(())
}

/// `--network-namespace`.
pub static NETWORK_NAMESPACE: CaptureOption =
    flag("network-namespace", "NETWORK_NAMESPACE", Value::Text("FILE"))
        .help("See --netns")
        .row("none | exit code 2: it is `--netns`, and takes `--cgroup` | `requests`")
        .note("the namespace is part of the target here: --netns FILE or --pid PID");

static CNI_MODE: CaptureOption = flag("cni-mode", "CNI_MODE", Value::Switch)
    .help("No effect: there is no xtables lock to place")
    .row("false | no effect | `operational_flags_are_explained`")
    .note("no effect: it places the xtables lock, and redirector takes none");

static RECONCILE: CaptureOption = flag("reconcile", "RECONCILE", Value::Switch)
    .help("No effect: there are no rules that could drift")
    .row("false | no effect | `operational_flags_are_explained`")
    .note("no effect: an instance is replaced as a whole, no rule of it can drift");

/// `--cleanup-only`.
pub static CLEANUP_ONLY: CaptureOption = flag("cleanup-only", "CLEANUP_ONLY", Value::Switch)
    .help("Attach nothing; see `redirector detach`")
    .row("false | exit code 2: use `redirector detach` | `requests`")
    .note("nothing is attached; `redirector detach` removes an instance");

static FORCE_APPLY: CaptureOption = flag("force-apply", "FORCE_APPLY", Value::Switch)
    .help("No effect: there are no rules to apply twice")
    .row("false | no effect | `operational_flags_are_explained`")
    .note("no effect: there are no rule lists that could be applied twice");

static NATIVE_NFTABLES: CaptureOption = flag("native-nftables", "NATIVE_NFTABLES", Value::Switch)
    .help("No effect: neither nftables nor iptables is used")
    .row("false | no effect | `operational_flags_are_explained`")
    .note("no effect: redirector uses neither nftables nor iptables");

/// `--force-iptables-binary`.
pub static FORCE_IPTABLES_BINARY: CaptureOption =
    flag("force-iptables-binary", "FORCE_IPTABLES_BINARY", Value::Text("NAME"))
        .help("No effect: no iptables binary is run")
        .row("none | no effect; another word than `legacy` or `nft` is exit code 2 | `requests`")
        .note("no effect: redirector runs no iptables binary");
