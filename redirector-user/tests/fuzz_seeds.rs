//! The properties that fuzzing checks, of its seeds, of what it once found, and of some hundred inputs near them
//! (`cargo xtask fuzz` finds more).

#[path = "../../fuzz/src/lib.rs"]
mod properties;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace")
}

/// The files in a directory under the root of the repository.
fn files(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(directory)).expect(directory);
    let files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() >= 3, "{directory}");
    files
}

/// The words of a dictionary of libFuzzer.
fn words(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("fuzz/dictionaries").join(name)).expect(name);
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| word.replace("\\x0a", "\n").replace("\\x09", "\t").replace("\\\"", "\"")).collect()
}

fn each(name: &str, directory: &str, run: fn(&str)) {
    let mut seeds = Vec::new();
    for file in files(directory) {
        println!("{}", file.display());
        seeds.push(std::fs::read_to_string(&file).expect("text"));
        run(&seeds[seeds.len() - 1]);
    }
    let word = prop_oneof![3 => prop::sample::select(words(name)), 1 => "\\PC{0,3}|[\0-\x7f]{1,3}"];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..4_usize, word), 1..4);
    let config = Config { cases: 128, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(prop::sample::select(seeds), edits), |(seed, edits)| {
            run(&edits.into_iter().fold(seed, |text, (at, drop, word)| {
                let mut chars: Vec<char> = text.chars().collect();
                let at = at.index(chars.len() + 1);
                chars.splice(at..(at + drop).min(chars.len()), word.chars());
                chars.into_iter().collect()
            }));
            Ok(())
        })
        .expect("the property holds");
}

#[test]
fn flags() {
    each("flags", "fuzz/seeds/flags", properties::flags::run);
}

#[test]
fn policy() {
    each("policy", "fuzz/seeds/policy", properties::policy::run);
}

#[test]
fn import() {
    each("import", "redirector-user/src/import/testdata", properties::import::run);
}

#[test]
fn annotations() {
    each("annotations", "fuzz/seeds/annotations", properties::annotations::run);
}

#[test]
fn request() {
    each("request", "fuzz/seeds/request", |text| properties::request::run(text.as_bytes()));
}

#[test]
fn cni() {
    each("cni", "fuzz/seeds/cni", properties::cni::run);
}

#[test]
fn proc() {
    each("proc", "fuzz/seeds/proc", properties::proc::run);
}
