//! Files that name a target that is not there: for `redirector status`.

use std::path::Path;

use super::files::{self, Entry};
use super::path::TargetPath;
use crate::base::error::Result;
use crate::health::{Finding, Health, Level};
use crate::instance::directory::Directory;
use crate::instance::find;

/// Where systemd looks for units (systemd.unit(5)), the generated ones included.
const UNIT_DIRS: [&str; 9] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/run/systemd/generator",
    "/run/systemd/generator.early",
    "/run/systemd/generator.late",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The files of which nothing is captured.
pub fn findings(root: &Directory, dir: &Path, instances: &[Health]) -> Vec<Finding> {
    if !dir.exists() {
        return Vec::new();
    }
    let files = match files::read(dir) {
        Ok(files) => files,
        Err(e) => return vec![Finding::unknown("the agent's targets", &e)],
    };
    let is_captured = |name: &str| instances.iter().any(|one| one.name == name);
    let judge = |(name, entry): (String, Result<Entry>)| {
        if is_captured(&name) {
            return None;
        }
        let (why, is_wrong) = why_uncaptured(root, entry)?;
        let file = format!("{}.toml", name.trim_start_matches("file-"));
        let what = format!("{name} is awaited: {why}");
        let remedy = format!("start it, or correct {}", dir.join(file).display());
        let level = if is_wrong { Level::Fault } else { Level::Notice };
        Some(Finding::new(level, "target_awaited", what, "nothing of it is captured", remedy))
    };
    files.into_iter().filter_map(judge).collect()
}

/// What is missing or wrong; true if it will not come by itself: the file is wrong, or names a unit that systemd does not
/// know.
fn why_uncaptured(root: &Directory, entry: Result<Entry>) -> Option<(String, bool)> {
    match entry.and_then(|entry| Ok((entry.path.find()?, entry.path))) {
        // The agent may be about to capture it, unless another file has it already.
        Ok((Some(target), _)) => {
            let other = find::by_netns(root, &target.netns).ok()??;
            Some((format!("its network namespace is captured by {other} already"), true))
        }
        Ok((None, path)) => {
            let is_unknown = matches!(&path, TargetPath::Unit { name, .. } if !is_known(name, &UNIT_DIRS));
            let hint = if is_unknown { ", and systemd has no such unit" } else { "" };
            Some((format!("{}{hint}", path.missing()), is_unknown))
        }
        Err(e) => Some((e.to_string(), true)),
    }
}

/// Whether systemd can know a unit: of services there is a file, or one of their template.
fn is_known(name: &str, dirs: &[&str]) -> bool {
    let Some(stem) = name.strip_suffix(".service") else { return true };
    let template = stem.split_once('@').map(|(prefix, _)| format!("{prefix}@.service"));
    let files = [Some(name.to_owned()), template];
    let mut all = dirs.iter().flat_map(|dir| files.iter().flatten().map(|file| Path::new(dir).join(file)));
    // A symbolic link to nowhere is a masked unit.
    all.any(|path| path.symlink_metadata().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_systemd_knows() {
        let dir = std::env::temp_dir().join(format!("redirector-units-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for unit in ["shop.service", "till@.service"] {
            std::fs::write(dir.join(unit), "").unwrap();
        }
        let dirs = ["/nowhere", dir.to_str().unwrap()];
        for (name, known) in [
            ("shop.service", true),
            ("till@1.service", true),
            ("run-r1.scope", true),
            ("shp.service", false),
            ("shop@1.service", false),
        ] {
            assert_eq!(is_known(name, &dirs), known, "{name}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
