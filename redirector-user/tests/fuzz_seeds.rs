//! The properties that fuzzing checks, of its seeds and of what it once found (`cargo xtask fuzz` finds more).

#[path = "../../fuzz/src/lib.rs"]
mod properties;

use std::path::{Path, PathBuf};

/// The files in directories under the root of the repository.
fn files(directories: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut files = Vec::new();
    for directory in directories {
        let entries = std::fs::read_dir(root.join(directory)).expect(directory);
        files.extend(entries.map(|entry| entry.expect("an entry").path()));
    }
    assert!(files.len() >= 3, "{directories:?}");
    files
}

fn each(directories: &[&str], run: fn(&str)) {
    for file in files(directories) {
        println!("{}", file.display());
        run(&std::fs::read_to_string(&file).expect("text"));
    }
}

#[test]
fn flags() {
    each(&["fuzz/seeds/flags"], properties::flags::run);
}

#[test]
fn policy() {
    each(&["fuzz/seeds/policy"], properties::policy::run);
}

#[test]
fn import() {
    each(&["redirector-user/src/import/testdata"], properties::import::run);
}

#[test]
fn annotations() {
    each(&["fuzz/seeds/annotations"], properties::annotations::run);
}
