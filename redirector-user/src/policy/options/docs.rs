//! The tables of docs/options.md.

use std::fmt::Write as _;

use super::{CaptureOption, GROUPS, all};

/// Rows of the options that say what is captured.
pub fn capture_table() -> String {
    let mut text =
        "| Flag | Variable | Original's default | Here | On the kernel |\n|---|---|---|---|---|\n".to_owned();
    let is_capture = |option: &&CaptureOption| !operational().any(|other| std::ptr::eq(*option, other));
    for option in all().filter(is_capture) {
        let variable = match (option.variable, option.second_variable) {
            (Some(own), Some(second)) => format!("{own}, {second} (wins)"),
            (own, _) => own.unwrap_or("none").to_owned(),
        };
        row(&mut text, &[&flag(option), &variable, option.row]);
    }
    text
}

/// Rows of the options that say how istio-iptables works.
pub fn operation_table() -> String {
    let heading = "| Flag (its variable: upper case, `_` for `-`) | Original's default | Here | Tested |";
    let mut text = format!("{heading}\n|---|---|---|---|\n");
    for option in operational() {
        row(&mut text, &[&flag(option), option.row]);
    }
    text
}

/// Rows of the annotations.
pub fn annotation_table() -> String {
    let mut text =
        "| Annotation | Flag | Without it | Allowed | Beside iptables: `annotations` |\n|---|---|---|---|---|\n"
            .to_owned();
    for option in all() {
        let letter = option.short.map(|short| format!("`-{short}`")).unwrap_or_default();
        for annotation in option.annotations {
            let key = format!("`{}`", annotation.key);
            row(&mut text, &[&key, &letter, annotation.row]);
        }
    }
    text
}

/// Those with a bearing on the policy stand among what is captured.
fn operational() -> impl Iterator<Item = &'static CaptureOption> {
    let of_group =
        GROUPS[GROUPS.len() - 1].options.iter().copied().filter(|option| option.second_variable.is_none());
    std::iter::once(&super::DRY_RUN).chain(of_group)
}

fn flag(option: &CaptureOption) -> String {
    match (option.short, option.long) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}`"),
        (None, Some(long)) => format!("`--{long}`"),
        (_, None) => "none".into(),
    }
}

fn row(text: &mut String, cells: &[&str]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
