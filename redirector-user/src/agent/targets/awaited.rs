//! Files that name a target that is not there: for `redirector status`.

use super::files::{self, Entry};
use super::path::TargetPath;
use crate::base::error::Result;
use std::path::Path;

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

/// A file of which nothing is captured.
#[derive(Debug)]
pub struct Uncaptured {
    /// Name that its instance would have.
    pub name: String,
    /// What is missing, or wrong.
    pub why: String,
    /// It will not come by itself: the file is wrong, or names a unit that systemd does not know.
    pub is_wrong: bool,
}

/// Files of which nothing is captured.
///
/// # Errors
///
/// If the directory cannot be read.
pub fn uncaptured(dir: &Path) -> Result<Vec<Uncaptured>> {
    let files = files::read(dir)?.into_iter();
    Ok(files
        .filter_map(|(name, entry)| judge(entry).map(|(why, is_wrong)| Uncaptured { name, why, is_wrong }))
        .collect())
}

fn judge(entry: Result<Entry>) -> Option<(String, bool)> {
    match entry.and_then(|entry| Ok((entry.path.find()?, entry.path))) {
        Ok((Some(_), _)) => None,
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
