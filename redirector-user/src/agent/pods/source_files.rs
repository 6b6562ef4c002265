//! `--pods`: a directory with a Pod object in JSON for each pod.

use super::model::NodePod;
use crate::base::error::{Context, Error, Result};
use crate::base::input;
use std::path::Path;

/// Reads every pod.
///
/// # Errors
///
/// If the directory or one of its files cannot be read or understood.
pub fn read(dir: &Path) -> Result<Vec<NodePod>> {
    let mut pods = Vec::new();
    let entries =
        std::fs::read_dir(dir).context(|| format!("read the directory of pods {}", dir.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = input::file(&path).context(|| format!("read {}", path.display()))?;
        let pod =
            serde_json::from_str(&text).map_err(|e| e.to_string()).and_then(|value| NodePod::parse(&value));
        pods.push(pod.map_err(|why| Error::input(format!("{}: {why}", path.display())))?);
    }
    Ok(pods)
}
