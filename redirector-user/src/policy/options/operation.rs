//! Flags of istio-iptables that say how it works rather than what is captured: accepted, and never silently.
//!
//! Source: `tools/istio-iptables/pkg/cmd/root.go` (`ProgramIptables`) and `pkg/capture/run.go`
//! (`executeCommands`).

use super::{CaptureOption, Group, OPTION, Row, Set, Value, nothing};
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::flag_input::FlagInput;
use crate::policy::note::Note;

pub(super) static GROUP: Group = Group {
    heading: Some("Accepted for istio-iptables' sake"),
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

static DROP_INVALID: CaptureOption = CaptureOption {
    long: Some("drop-invalid"),
    variable: Some("DROP_INVALID"),
    second_variable: Some("INVALID_DROP"),
    help: "Drop packets conntrack calls invalid: none exist here (variable INVALID_DROP, too)",
    row: Row {
        original: "false",
        here: "accepted, kept in the policy, without effect, with a note: there are no conntrack states here",
        tested: "nothing to see; parsing: `every_switch`",
    },
    set: Set::Switch(|draft, name, on| {
        draft.policy.drop_invalid = on;
        if on {
            let text = "kept and without effect: it drops packets that conntrack calls invalid, and captured connections \
                        need no conntrack here";
            draft.notes.push(Note::remark(name, text));
        }
    }),
    ..OPTION
};

/// `-n`.
pub static DRY_RUN: CaptureOption = CaptureOption {
    long: Some("dry-run"),
    short: Some('n'),
    variable: Some("DRY_RUN"),
    help: "Check everything and change nothing",
    row: Row {
        original: "false",
        here: "check everything, print the policy, change nothing",
        tested: "`lifecycle_faults` uses it; `requests`",
    },
    ..OPTION
};

/// `--skip-rule-apply`.
pub static SKIP_RULE_APPLY: CaptureOption = CaptureOption {
    long: Some("skip-rule-apply"),
    variable: Some("SKIP_RULE_APPLY"),
    help: "Attach nothing; with --run-validation: only validate",
    row: Row {
        original: "false",
        here: "attach nothing: as `--dry-run`, with `--run-validation` only that",
        tested: "`requests`, `verify` `run_validation`",
    },
    set: Set::Note("nothing is attached"),
    ..OPTION
};

/// `--run-validation`.
pub static RUN_VALIDATION: CaptureOption = CaptureOption {
    long: Some("run-validation"),
    variable: Some("RUN_VALIDATION"),
    help: "Verify afterwards; a new instance that fails is detached again",
    row: Row {
        original: "false",
        here: "[verify](cli.md#verify-name) the instance afterwards; if it fails exit code 1, and a new instance is detached \
               again",
        tested: "`verify` `run_validation`",
    },
    ..OPTION
};

/// `--iptables-probe-port`.
pub static PROBE_PORT: CaptureOption = CaptureOption {
    long: Some("iptables-probe-port"),
    variable: Some("IPTABLES_PROBE_PORT"),
    value: Value::Text("PORT"),
    help: "Port that --run-validation connects to (15002)",
    row: Row {
        original: "15002",
        here: "port of the validation",
        tested: "`requests`, `verify` `run_validation`",
    },
    set: Set::Text(note_without_validation),
    ..OPTION
};

/// `--probe-timeout`.
pub static PROBE_TIMEOUT: CaptureOption = CaptureOption {
    long: Some("probe-timeout"),
    variable: Some("PROBE_TIMEOUT"),
    value: Value::Text("DURATION"),
    help: "Patience of --run-validation (5s)",
    row: Row {
        original: "5s",
        here: "patience of the validation for each connection, at most 60s",
        tested: "`requests`, `verify` `run_validation`",
    },
    set: Set::Text(note_without_validation),
    ..OPTION
};

#[expect(clippy::unnecessary_wraps, reason = "one type for all options")]
fn note_without_validation(draft: &mut Draft<'_>, input: &FlagInput) -> Result<(), ConfigError> {
    if !input.text().is_empty() && !draft.flags.is_on(&RUN_VALIDATION) {
        draft.notes.push(Note::remark(input.name(), "no effect without --run-validation"));
    }
    Ok(())
}

/// `--network-namespace`.
pub static NETWORK_NAMESPACE: CaptureOption = CaptureOption {
    long: Some("network-namespace"),
    variable: Some("NETWORK_NAMESPACE"),
    value: Value::Text("FILE"),
    help: "See --netns",
    row: Row {
        original: "none",
        here: "exit code 2: it is `--netns`, and takes `--cgroup`",
        tested: "`requests`",
    },
    set: Set::Note("the namespace is part of the target here: --netns FILE or --pid PID"),
    ..OPTION
};

static CNI_MODE: CaptureOption = CaptureOption {
    long: Some("cni-mode"),
    variable: Some("CNI_MODE"),
    help: "No effect: there is no xtables lock to place",
    row: NO_EFFECT,
    set: Set::Note("no effect: it places the xtables lock, and redirector takes none"),
    ..OPTION
};

static RECONCILE: CaptureOption = CaptureOption {
    long: Some("reconcile"),
    variable: Some("RECONCILE"),
    help: "No effect: there are no rules that could drift",
    row: NO_EFFECT,
    set: Set::Note("no effect: an instance is replaced as a whole, no rule of it can drift"),
    ..OPTION
};

/// `--cleanup-only`.
pub static CLEANUP_ONLY: CaptureOption = CaptureOption {
    long: Some("cleanup-only"),
    variable: Some("CLEANUP_ONLY"),
    help: "Attach nothing; see `redirector detach`",
    row: Row { original: "false", here: "exit code 2: use `redirector detach`", tested: "`requests`" },
    set: Set::Note("nothing is attached; `redirector detach` removes an instance"),
    ..OPTION
};

static FORCE_APPLY: CaptureOption = CaptureOption {
    long: Some("force-apply"),
    variable: Some("FORCE_APPLY"),
    help: "No effect: there are no rules to apply twice",
    row: NO_EFFECT,
    set: Set::Note("no effect: there are no rule lists that could be applied twice"),
    ..OPTION
};

static NATIVE_NFTABLES: CaptureOption = CaptureOption {
    long: Some("native-nftables"),
    variable: Some("NATIVE_NFTABLES"),
    help: "No effect: neither nftables nor iptables is used",
    row: NO_EFFECT,
    set: Set::Note("no effect: redirector uses neither nftables nor iptables"),
    ..OPTION
};

/// `--force-iptables-binary`.
pub static FORCE_IPTABLES_BINARY: CaptureOption = CaptureOption {
    long: Some("force-iptables-binary"),
    variable: Some("FORCE_IPTABLES_BINARY"),
    value: Value::Text("NAME"),
    help: "No effect: no iptables binary is run",
    row: Row {
        original: "none",
        here: "no effect; another word than `legacy` or `nft` is exit code 2",
        tested: "`requests`",
    },
    set: Set::Note("no effect: redirector runs no iptables binary"),
    ..OPTION
};

const NO_EFFECT: Row =
    Row { original: "false", here: "no effect", tested: "`operational_flags_are_explained`" };
