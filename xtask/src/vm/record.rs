//! What was seen, kept in the repository: `docs/kernels.json`, and the tables in docs/verifier.md and COMPATIBILITY.md
//! that are made from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::arch::Arch;
use super::report::{Cost, Row, State};
use crate::{project, sources};

/// The file, by row.
#[derive(Default, Serialize, Deserialize)]
struct Record {
    rows: BTreeMap<String, Seen>,
}

#[derive(Default, Serialize, Deserialize)]
struct Seen {
    release: String,
    /// The eBPF object that was run, by the beginning of its SHA-256.
    #[serde(default)]
    object: String,
    states: BTreeMap<String, State>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    costs: BTreeMap<String, Cost>,
    /// Of a node: what it is made of, and the tests that passed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tests: BTreeSet<String>,
}

const OBJECT: &str = "redirector-user/bpf/redirector.bpf.o";
/// How much dearer a program may become before somebody has to say so by recording it.
const BUDGET: u64 = 2;
const BEGIN: &str = "<!-- made by `cargo xtask vm --record` from docs/kernels.json: begin -->";
const NODES: &str = "<!-- made by `cargo xtask vm --node --record` from docs/kernels.json: begin -->";
const END: &str = "<!-- end -->";

fn file() -> PathBuf {
    project::root().join("docs/kernels.json")
}

/// What the repository's object is called in the file. To be asked when the guests' binary is built of it: they run for long.
pub fn object() -> Result<String> {
    Ok(sources::sha256(&object_file()?)[..8].to_owned())
}

/// Whether a program that was built some time ago has the repository's object in it: else a record would name another.
pub fn is_in(program: &Path) -> Result<bool> {
    let (object, bytes) = (object_file()?, fs::read(program)?);
    Ok(bytes.windows(object.len()).any(|window| window == object))
}

fn object_file() -> Result<Vec<u8>> {
    let path = project::root().join(OBJECT);
    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn read() -> Result<Record> {
    match fs::read_to_string(file()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
        text => {
            serde_json::from_str(&text.context("cannot read docs/kernels.json")?).context("docs/kernels.json")
        }
    }
}

/// Programs that cost the verifier more than twice what was recorded.
pub fn over_budget(row: &Row) -> Result<Vec<String>> {
    Ok(compare(&read()?, row))
}

fn compare(record: &Record, row: &Row) -> Vec<String> {
    let mut found = Vec::new();
    let Some(seen) = record.rows.get(&row.name) else { return found };
    for (program, cost) in &row.costs {
        let (Some(now), Some(then)) =
            (cost.instructions, seen.costs.get(program).and_then(|cost| cost.instructions))
        else {
            continue;
        };
        if now > then * BUDGET {
            found.push(format!(
                "{}: {program}: the verifier follows {now} instructions; recorded are {then}",
                row.name
            ));
        }
    }
    found
}

/// Puts a row into the file and makes the tables again. What an older row says of the same kernel and the same object
/// stays where this one says nothing: it may have run a part.
pub fn write(row: &Row, object: &str) -> Result<()> {
    let mut record = read()?;
    let (release, object) = (row.release.clone(), object.to_owned());
    let seen = record.rows.entry(row.name.clone()).or_default();
    if (&seen.release, &seen.object) != (&release, &object) {
        *seen = Seen { release, object, ..Seen::default() };
    }
    seen.states.extend(row.states.clone());
    seen.costs.extend(row.costs.clone());
    seen.facts.extend(row.facts.clone());
    seen.tests.extend(row.tests.clone());
    fs::write(file(), serde_json::to_string_pretty(&record)? + "\n")
        .context("cannot write docs/kernels.json")?;
    for (name, begin, table) in tables(&record) {
        let path = project::root().join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let new = replaced(&text, begin, &table)
            .with_context(|| format!("{name} has no place for its table: {begin}"))?;
        fs::write(&path, new).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn replaced(text: &str, begin: &str, table: &str) -> Option<String> {
    let (head, rest) = text.split_once(begin)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{begin}\n{table}{END}{tail}"))
}

fn tables(record: &Record) -> [(&'static str, &'static str, String); 3] {
    [
        ("COMPATIBILITY.md", BEGIN, kernels(record)),
        ("COMPATIBILITY.md", NODES, nodes(record)),
        ("docs/verifier.md", BEGIN, costs(record)),
    ]
}

/// Rows in the order of versions, not of letters.
fn ordered(record: &Record) -> Vec<(&String, &Seen)> {
    let mut rows: Vec<_> = record.rows.iter().collect();
    rows.sort_by_key(|(name, _)| {
        let (series, variant) = name.split_once(' ').unwrap_or((name, ""));
        (series.split('.').map(|word| word.parse().unwrap_or(0)).collect::<Vec<u32>>(), variant.to_owned())
    });
    rows
}

fn kernels(record: &Record) -> String {
    let mut text =
        "| Kernel | What was run | Object | Passed | Failed | Not there |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (name, seen) in ordered(record).into_iter().filter(|(_, seen)| seen.facts.is_empty()) {
        let names = |state: State| {
            let names =
                seen.states.iter().filter(|(_, other)| **other == state).map(|(name, _)| name.as_str());
            names.collect::<Vec<_>>()
        };
        let (failed, absent) = (names(State::Fail), names(State::Absent));
        let list = |names: &[&str]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        let passed = names(State::Pass).len();
        text += &format!(
            "| {name} | {} | `{}` | {passed} | {} | {} |\n",
            seen.release,
            seen.object,
            list(&failed),
            list(&absent)
        );
    }
    text
}

/// Nodes: what they are made of, and what was run there.
fn nodes(record: &Record) -> String {
    let mut text =
        "| Node | containerd | runc | systemd | CNI plugins | Cgroups, driver | Kernel | Object | Passed |\n\
                    |---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (_, seen) in ordered(record).into_iter().filter(|(_, seen)| !seen.facts.is_empty()) {
        let fact = |name: &str| seen.facts.get(name).map_or("?", String::as_str);
        let tests = seen.tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", ");
        text += &format!(
            "| Debian {}, {} | {} | {} | {} | {} | {}, {} | {} | `{}` | {tests} |\n",
            fact("debian"),
            fact("architecture"),
            fact("containerd"),
            fact("runc"),
            fact("systemd"),
            fact("containernetworking-plugins"),
            fact("cgroups"),
            fact("driver"),
            seen.release,
            seen.object
        );
    }
    text
}

fn costs(record: &Record) -> String {
    // Of each kernel as it is; a variant has the same programs, another architecture other code.
    let plain = |name: &str| !name.contains(' ') || name.ends_with(Arch::Aarch64.rust());
    let rows: Vec<_> = ordered(record).into_iter().filter(|(name, _)| plain(name)).collect();
    let mut programs: Vec<&String> = rows.iter().flat_map(|(_, seen)| seen.costs.keys()).collect();
    programs.sort();
    programs.dedup();
    let mut text = "| Program |".to_owned();
    for (name, _) in &rows {
        text += &format!(" {name} |");
    }
    text += &format!("\n|---|{}\n", "---|".repeat(rows.len()));
    for program in programs {
        text += &format!("| {} |", program.trim_start_matches("program "));
        for (_, seen) in &rows {
            text += &match seen.costs.get(program) {
                Some(Cost { instructions: Some(count), load_ms }) => format!(" {count} ({load_ms} ms) |"),
                Some(Cost { instructions: None, load_ms }) => format!(" ? ({load_ms} ms) |"),
                None => " - |".to_owned(),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(instructions: u64) -> Row {
        let mut row = Row::new("6.1", "6.1.0");
        row.set("boots", State::Pass);
        row.costs.insert("program p".to_owned(), Cost { instructions: Some(instructions), load_ms: 1 });
        row
    }

    fn record() -> Record {
        serde_json::from_str(
            r#"{"rows":{"6.1":{"release":"6.1.0","object":"0a1b","states":{"boots":"pass","x":"absent"},
                "costs":{"program p":{"instructions":100,"load_ms":1}}},
                "5.10":{"release":"5.10.0","states":{"boots":"fail"}}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn twice_the_cost_is_over_budget() {
        assert!(compare(&record(), &row(200)).is_empty());
        assert_eq!(compare(&record(), &row(201)).len(), 1);
    }

    #[test]
    fn a_program_is_told_by_the_object_in_it() {
        assert!(is_in(&project::root().join(OBJECT)).unwrap());
        assert!(!is_in(&std::env::current_exe().unwrap()).unwrap());
    }

    #[test]
    fn older_kernels_come_first() {
        let text = kernels(&record());
        assert!(text.find("| 5.10 |").unwrap() < text.find("| 6.1 |").unwrap(), "{text}");
        assert!(text.contains("| 6.1 | 6.1.0 | `0a1b` | 1 | nothing | x |"), "{text}");
    }

    /// COMPATIBILITY.md and docs/verifier.md say what docs/kernels.json says.
    #[test]
    fn the_tables_are_those_of_the_record() {
        for (name, begin, table) in tables(&read().unwrap()) {
            let text = fs::read_to_string(project::root().join(name)).unwrap();
            assert_eq!(
                replaced(&text, begin, &table).as_deref(),
                Some(text.as_str()),
                "{name}: run `cargo xtask vm --record`"
            );
        }
    }
}
