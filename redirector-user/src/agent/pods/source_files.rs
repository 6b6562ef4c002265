//! `--pods`: a directory with a Pod object in JSON for each pod.

use std::path::{Path, PathBuf};

use super::model::NodePod;
use crate::base::error::{Context, Error, Result};
use crate::base::input;

/// What a directory holds.
#[derive(Default)]
pub struct PodFiles {
    pub pods: Vec<NodePod>,
    /// Files that cannot be read or understood.
    pub wrong: Vec<(PathBuf, Error)>,
}

/// Reads every pod. A wrong file concerns no other.
///
/// # Errors
///
/// If the directory cannot be read.
pub fn read(dir: &Path) -> Result<PodFiles> {
    let mut files = PodFiles::default();
    let what = || format!("read the directory of pods {}", dir.display());
    for entry in std::fs::read_dir(dir).context(what)? {
        let path = entry.context(what)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match read_file(&path) {
            Ok(pod) => files.pods.push(pod),
            Err(e) => files.wrong.push((path, e)),
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<NodePod> {
    let text = input::file(path).context(|| format!("read {}", path.display()))?;
    let pod = input::json(&text).and_then(|value| NodePod::parse(&value));
    pod.map_err(|why| Error::input(format!("{}: {}", path.display(), input::brief(&why))))
}
