//! `--config`: a directory with a TOML file for each target.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::path::TargetPath;
use crate::agent::plan::FILE_PREFIX;
use crate::base::error::{Context, Error, Kind, Result};
use crate::base::input;
use crate::instance::directory::check_name;
use crate::policy::Policy;

/// What a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: TargetPath,
    pub policy: Policy,
    /// Capture although processes of the namespace are outside the cgroup.
    pub allow_partial: bool,
}

/// The keys of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    cgroup: Option<PathBuf>,
    unit: Option<String>,
    pid_file: Option<PathBuf>,
    netns: Option<PathBuf>,
    #[serde(default)]
    allow_partial: bool,
    #[serde(default)]
    policy: Policy,
}

/// Reads the files of a directory, by the name of their instance. A wrong file concerns no other.
///
/// # Errors
///
/// If the directory cannot be read: then nothing is known of the files in it.
pub fn read(dir: &Path) -> Result<BTreeMap<String, Result<Entry>>> {
    let mut entries = BTreeMap::new();
    let list =
        std::fs::read_dir(dir).context(|| format!("read the configuration directory {}", dir.display()))?;
    for file in list {
        let path = file.context(|| format!("read {}", dir.display()))?.path();
        let Some(stem) = stem(&path) else { continue };
        let name = format!("{FILE_PREFIX}{stem}");
        let entry = check_name(&name)
            .map_err(|_| {
                Error::input(format!("{}: the name of the file becomes that of the instance", path.display()))
                    .remedy("use up to 58 of a-z, 0-9, _ and -")
            })
            .and_then(|()| read_file(&path));
        match entry {
            // It was removed meanwhile.
            Err(e) if e.kind() == Kind::NothingMatched => {}
            entry => drop(entries.insert(name, entry)),
        }
    }
    Ok(entries)
}

/// The name of a file that counts: `NAME.toml`, not hidden.
fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".toml").filter(|stem| !stem.is_empty() && !stem.starts_with('.'))
}

fn read_file(path: &Path) -> Result<Entry> {
    let text = match input::file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::nothing_matched(format!("{} is gone", path.display())));
        }
        other => other.context(|| format!("read {}", path.display()))?,
    };
    parse(&text).map_err(|why| Error::input(format!("{}: {why}", path.display())))
}

fn parse(text: &str) -> Result<Entry, String> {
    let keys: Keys = input::toml(text)?;
    let Keys { cgroup, unit, pid_file, netns, allow_partial, policy } = keys;
    if pid_file.is_some() && netns.is_some() {
        return Err("netns is told by the process; leave it out with pid_file".into());
    }
    let cgroup = match (cgroup, unit) {
        (Some(dir), None) => Some(TargetPath::Cgroup { dir: absolute("cgroup", dir)?, netns }),
        (None, Some(name)) => Some(TargetPath::Unit { name: unit_name(name)?, netns }),
        (None, None) => None,
        (Some(_), Some(_)) => return Err("give one of cgroup and unit".into()),
    };
    let target = match (pid_file, cgroup) {
        (Some(file), within) => {
            TargetPath::PidFile { file: absolute("pid_file", file)?, within: within.map(Box::new) }
        }
        (None, Some(cgroup)) => cgroup,
        (None, None) => return Err("give exactly one of cgroup and unit, or pid_file".into()),
    };
    if let TargetPath::Cgroup { netns: Some(netns), .. } | TargetPath::Unit { netns: Some(netns), .. } =
        &target
    {
        absolute("netns", netns.clone())?;
    }
    Ok(Entry { path: target, policy, allow_partial })
}

fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() { Ok(path) } else { Err(format!("{key} = {path:?} is not an absolute path")) }
}

fn unit_name(name: String) -> Result<String, String> {
    let bad = name.contains('/') || !name.contains('.') || name.starts_with('.');
    if bad {
        return Err(format!(
            "unit = {name:?} is not the full name of a systemd unit, such as \"shop.service\""
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_full() {
        let text = "unit = \"shop.service\"\nnetns = \"/run/netns/shop\"\nallow_partial = true\n\
                    [policy]\noutbound_exclude_ports = [5432]\n";
        let entry = parse(text).unwrap();
        assert_eq!(
            entry.path,
            TargetPath::Unit { name: "shop.service".into(), netns: Some("/run/netns/shop".into()) }
        );
        assert!(entry.allow_partial);
        assert_eq!(entry.policy, Policy { outbound_exclude_ports: vec![5432], ..Policy::default() });
    }

    #[test]
    fn wrong_files_say_why() {
        for (text, word) in [
            ("", "exactly one"),
            ("cgroup = \"/a\"\nunit = \"b.service\"", "one of cgroup and unit"),
            ("cgroup = \"a\"", "absolute"),
            ("cgroup = \"/a\"\nnetns = \"b\"", "absolute"),
            ("pid_file = \"/a\"\nnetns = \"/b\"", "told by the process"),
            ("unit = \"shop\"", "full name"),
            ("unit = \"a/b.service\"", "full name"),
            ("cgroup = \"/a\"\nports = 1", "unknown field"),
            ("cgroup = \"/a\"\n[policy]\noutbound_port = 0", "outbound_port"),
            ("cgroup = \"/a\"\n[policy]\nwrong = 0", "unknown field"),
            ("cgroup", "TOML"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(word), "{text:?}: {why}");
        }
    }

    #[test]
    fn only_files_with_a_name_count() {
        assert_eq!(stem(Path::new("/x/shop.toml")), Some("shop"));
        for other in ["/x/shop.toml~", "/x/.shop.toml", "/x/.toml", "/x/shop.toml.new", "/x/README"] {
            assert_eq!(stem(Path::new(other)), None, "{other}");
        }
    }
}
