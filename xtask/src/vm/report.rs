//! What a guest's console says, and the table of all guests.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Name of the job that runs `redirector check`.
pub const CHECK: &str = "check";
/// Name of the job that tells what a node is made of.
pub const FACTS: &str = "facts";

/// One thing on one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It works.
    Pass,
    /// It does not.
    Fail,
    /// The kernel (or this machine) does not have it; nothing that is required.
    Absent,
}

impl State {
    /// As in the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::Absent => "absent",
        }
    }
}

/// What the verifier did with one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Instructions followed; None before 5.16.
    pub instructions: Option<u64>,
    /// Milliseconds to load it (of the guest: emulated ones are slow).
    pub load_ms: u64,
}

/// What was seen of one guest.
#[derive(Debug)]
pub struct Row {
    /// Kernel and variant.
    pub name: String,
    /// As the guest's uname says it.
    pub release: String,
    /// By capability or test program.
    pub states: BTreeMap<String, State>,
    /// By program.
    pub costs: BTreeMap<String, Cost>,
    /// What a node is made of.
    pub facts: BTreeMap<String, String>,
    /// Tests that passed, where they are few: a node's.
    pub tests: BTreeSet<String>,
    /// Seconds of each job.
    pub seconds: BTreeMap<String, f32>,
    /// Test programs that failed in the first boot.
    pub again: Vec<String>,
    order: Vec<String>,
    job: Option<String>,
    answer: String,
    success: bool,
    begun: f32,
}

/// What we read of a finding of `redirector check`.
#[derive(Deserialize)]
struct Finding {
    name: String,
    present: bool,
    required: bool,
    #[serde(default)]
    verified_instructions: Option<u64>,
    #[serde(default)]
    load_ms: Option<u64>,
}

impl Row {
    /// Of a guest that has said nothing yet.
    pub fn new(name: &str, release: &str) -> Self {
        Self {
            name: name.to_owned(),
            release: release.to_owned(),
            states: BTreeMap::new(),
            costs: BTreeMap::new(),
            facts: BTreeMap::new(),
            tests: BTreeSet::new(),
            seconds: BTreeMap::new(),
            again: Vec::new(),
            order: Vec::new(),
            job: None,
            answer: String::new(),
            success: false,
            begun: 0.0,
        }
    }

    /// Notes the state of something.
    pub fn set(&mut self, name: &str, state: State) {
        if self.states.insert(name.to_owned(), state).is_none() {
            self.order.push(name.to_owned());
        }
    }

    /// Whether its state is known.
    pub fn has(&self, name: &str) -> bool {
        self.states.contains_key(name)
    }

    /// Forgets that these have failed, if any has, and for the first time: they may be run once more.
    pub fn forgive<'a>(&mut self, tests: impl Iterator<Item = &'a str>) -> bool {
        if !self.again.is_empty() {
            return false;
        }
        let failed = tests.filter(|name| self.states.get(*name) == Some(&State::Fail));
        self.again = failed.map(str::to_owned).collect();
        for name in &self.again {
            self.states.remove(name);
        }
        !self.again.is_empty()
    }

    /// The guest has not come to its end.
    pub fn died(&mut self, why: &str) {
        eprintln!("vm: {}: {why}", self.name);
        self.set("comes to its end", State::Fail);
    }

    /// Things that do not work.
    pub fn failures(&self) -> usize {
        self.states.values().filter(|state| **state == State::Fail).count()
    }

    /// A line of the console.
    pub fn read(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("@@boot") => {
                self.release = words.next().unwrap_or_default().to_owned();
                self.set("boots", State::Pass);
                self.begun = 0.0;
            }
            Some("@@fact") => {
                let name = words.next().unwrap_or_default().to_owned();
                self.facts.insert(name, words.collect::<Vec<_>>().join(" "));
            }
            Some("@@note") => eprintln!("vm: {}: {line}", self.name),
            Some("@@begin") => {
                self.job = words.next().map(str::to_owned);
                self.success = false;
                // A guest that hung is booted again, and checks again.
                self.answer.clear();
            }
            Some("@@end") => self.end(words.next(), words.next(), words.next()),
            Some("test") if line.ends_with("... ok") && !self.facts.is_empty() => {
                self.tests.extend(words.next().map(str::to_owned));
            }
            // libtest's last line, and only if no test failed.
            Some("test") if line.starts_with("test result: ok.") => self.success = true,
            Some("test") if line.ends_with("FAILED") && !line.starts_with("test result") => {
                eprintln!("vm: {}: {}: {line}", self.name, self.job.as_deref().unwrap_or_default());
            }
            // The kernel's messages go to the same console, with the time in brackets.
            Some(first)
                if self.job.as_deref() == Some(CHECK) && !(first.starts_with('[') && line.contains(']')) =>
            {
                self.answer.push_str(line);
            }
            _ => {}
        }
    }

    fn end(&mut self, name: Option<&str>, status: Option<&str>, uptime: Option<&str>) {
        let now = uptime.and_then(|text| text.parse().ok()).unwrap_or(self.begun);
        let (name, took) = (name.unwrap_or_default(), now - std::mem::replace(&mut self.begun, now));
        self.job = None;
        self.seconds.insert(name.to_owned(), took);
        let good = status == Some("0") && self.success;
        match name {
            CHECK => return self.checked(),
            FACTS => return,
            _ => {}
        }
        self.set(name, if good { State::Pass } else { State::Fail });
        eprintln!("vm: {}: {name} {} in {took:.0} s", self.name, if good { "pass" } else { "FAIL" });
    }

    /// The output of `redirector check --output json`.
    fn checked(&mut self) {
        let Ok(findings) = serde_json::from_str::<Vec<Finding>>(&self.answer) else {
            return self.set("check answers", State::Fail);
        };
        for finding in findings {
            let state = match (finding.present, finding.required) {
                (true, _) => State::Pass,
                (false, true) => State::Fail,
                (false, false) => State::Absent,
            };
            if let Some(load_ms) = finding.load_ms {
                let cost = Cost { instructions: finding.verified_instructions, load_ms };
                self.costs.insert(finding.name.clone(), cost);
            }
            self.set(&finding.name, state);
        }
    }
}

/// Capability by kernel.
pub fn table(rows: &[Row]) -> String {
    let mut seen = BTreeSet::new();
    let names: Vec<&String> =
        rows.iter().flat_map(|row| &row.order).filter(|name| seen.insert(*name)).collect();
    let first = names.iter().map(|name| name.len()).max().unwrap_or_default();
    let widths: Vec<usize> = rows.iter().map(|row| row.name.len().max("absent".len())).collect();
    let line = |name: &str, cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{name:<first$}  {}", cells.join("  ")).trim_end().to_owned() + "\n"
    };
    let mut text = line("", &mut rows.iter().map(|row| row.name.clone()));
    for name in names {
        // A row that did not run it: a variant with fewer tests.
        let state = |row: &Row| row.states.get(name).map_or("-", |state| state.word()).to_owned();
        text += &line(name, &mut rows.iter().map(state));
    }
    for row in rows.iter().filter(|row| !row.again.is_empty()) {
        text += &format!(
            "{}: run twice, because of a failure the first time: {}\n",
            row.name,
            row.again.join(" ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lines: &[&str]) -> Row {
        let mut row = Row::new("6.1", "?");
        for line in lines {
            row.read(line);
        }
        row
    }

    #[test]
    fn a_test_program_passes_only_by_its_own_words() {
        let good = row(&["@@begin a", "test result: ok. 3 passed; 0 failed", "@@end a 0 5.5"]);
        assert_eq!((good.states["a"], good.seconds["a"]), (State::Pass, 5.5));
        for lines in [
            &["@@begin a", "@@end a 0 5.5"][..],
            &["@@begin a", "test result: FAILED. 1 passed", "@@end a 101 5.5"],
            &["@@begin a", "test result: ok. 3 passed", "@@end a 137 5.5"],
            &["@@begin b", "test result: ok.", "@@end b 0 1", "@@begin a", "@@end a 0 2"],
        ] {
            assert_eq!(row(lines).states["a"], State::Fail, "{lines:?}");
        }
    }

    #[test]
    fn check_becomes_capabilities_and_costs() {
        let row = row(&[
            "@@boot 6.1.0-56",
            "@@begin check",
            "[",
            r#"  {"name":"x","present":false,"required":false},"#,
            "[    4.2] the kernel says something",
            r#"  {"name":"program p","present":true,"required":true,"verified_instructions":7,"load_ms":3},"#,
            r#"  {"name":"z","present":false,"required":true}"#,
            "]",
            "@@end check 4 3.0",
        ]);
        assert_eq!(row.release, "6.1.0-56");
        assert_eq!(
            (row.states["x"], row.states["program p"], row.states["z"]),
            (State::Absent, State::Pass, State::Fail)
        );
        assert_eq!(row.costs["program p"], Cost { instructions: Some(7), load_ms: 3 });
        assert_eq!(row.failures(), 1);
        let table = table(&[row]);
        assert!(table.contains("6.1") && table.contains("z          FAIL"), "{table}");
    }

    #[test]
    fn a_node_tells_what_it_is_and_which_tests_passed() {
        let lines = ["@@begin facts", "@@fact runc 1.1.15+ds1-2", "@@end facts 0 1.0", "@@begin cri"];
        let said =
            ["test a::b ... ok", "test c ... FAILED", "test result: FAILED. 1 passed", "@@end cri 101 2.0"];
        let row = row(&[&lines[..], &said].concat());
        assert_eq!(row.facts["runc"], "1.1.15+ds1-2");
        assert!(row.tests.iter().eq(["a::b"]) && row.failures() == 1 && !row.has("facts"));
    }

    #[test]
    fn a_guest_that_is_booted_again_answers_again() {
        let check = ["@@boot 6.1", "@@begin check", "[", "]", "@@end check 0 1"];
        assert_eq!(row(&[check, check].concat()).failures(), 0);
    }

    #[test]
    fn a_failure_is_forgiven_once_and_told() {
        let mut row = row(&["@@begin a", "@@end a 101 1", "@@begin b", "test result: ok.", "@@end b 0 2"]);
        assert!(row.forgive(["a", "b"].into_iter()));
        assert!(!row.has("a") && row.has("b"));
        ["@@begin a", "test result: ok.", "@@end a 0 1"].iter().for_each(|line| row.read(line));
        assert!(!row.forgive(["a", "b"].into_iter()) && row.failures() == 0);
        let text = table(std::slice::from_ref(&row));
        assert!(text.contains("6.1: run twice, because of a failure the first time: a"), "{text}");
        ["@@begin a", "@@end a 101 1"].iter().for_each(|line| row.read(line));
        assert!(!row.forgive(["a"].into_iter()) && row.failures() == 1);
    }

    #[test]
    fn a_check_without_an_answer_fails() {
        assert_eq!(row(&["@@begin check", "Segmentation fault", "@@end check 139 3.0"]).failures(), 1);
    }
}
