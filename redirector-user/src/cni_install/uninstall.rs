//! Taking the plugin off a node: the lists come back as they were, then the binary goes.

use std::path::{Path, PathBuf};

use super::list::List;
use super::network::{self, has_ours};
use super::{cache, files};
use crate::base::error::Result;
use crate::cni::protocol::PLUGIN_TYPE;

/// What was done to take the plugin off.
#[derive(Debug, Default)]
pub struct Removal {
    /// A line each.
    pub done: Vec<String>,
    /// A list that could not be understood, and may have an entry.
    pub left: Option<PathBuf>,
}

/// Takes the plugin off the node; says what was done. The binary stays while pods of a runtime that ends them with the
/// list of their set-up need it.
///
/// # Errors
///
/// If a file cannot be read or written.
pub fn uninstall(bin_dir: &Path, conf_dir: &Path, cache_dir: &Path) -> Result<Removal> {
    let (mut done, mut left) = (Vec::new(), None);
    for path in network::configurations(conf_dir)?.into_iter().filter(|path| network::is_list(path)) {
        let why = match files::read(&path) {
            Ok(text) => match List::parse(&text, true) {
                Ok(list) if list.has_ours() => {
                    done.push(take_out(&path, &list)?);
                    continue;
                }
                Err(why) if text.contains(&format!("\"{PLUGIN_TYPE}\"")) => why,
                _ => continue,
            },
            // What a link led to is gone.
            Err(_) if !path.exists() => continue,
            Err(e) => e.to_string(),
        };
        done.push(format!("left {} as it is, which may have an entry: {why}", path.display()));
        left = Some(path);
    }
    for original in files::all_saved(conf_dir) {
        if !has_ours(&original.with_extension("conflist")) {
            files::remove(&files::saved(&original))?;
        }
    }
    files::sweep([bin_dir, conf_dir])?;
    // Last: an entry without its binary fails every ADD.
    let binary = bin_dir.join(PLUGIN_TYPE);
    match (cache::pods_set_up(cache_dir), &left) {
        (_, Some(list)) if binary.exists() => done.push(format!(
            "left {}: without it no pod would start, if {} has an entry; mend or remove that file, and uninstall again",
            binary.display(),
            list.display()
        )),
        (0, _) if files::remove(&binary)? => done.push(format!("removed {}", binary.display())),
        (pods, _) if pods > 0 && binary.exists() => done.push(format!(
            "left {}: CRI-O needs it to end {pods} pods that were set up with it; uninstall again when they have ended",
            binary.display()
        )),
        _ => {}
    }
    Ok(Removal { done, left })
}

/// Takes our entry out of a list: the original file comes back if the list has not been changed since.
pub(super) fn take_out(path: &Path, list: &List) -> Result<String> {
    let without = list.without();
    for original in files::originals(path) {
        let saved = files::saved(&original);
        let Ok(kind) = std::fs::symlink_metadata(&saved) else { continue };
        // It comes back unless the list has been changed since. What is behind a link was changed there.
        let is_list = network::is_list(&original);
        let is_same = |text: String| List::parse(&text, is_list).is_ok_and(|saved| saved.same(&without));
        if kind.is_symlink() || files::read(&saved).is_ok_and(is_same) {
            files::restore(&original)?;
            if original != *path {
                files::remove(path)?;
            }
            return Ok(format!("restored {}", original.display()));
        }
        files::remove(&saved)?;
    }
    files::write(path, without.text()?.as_bytes(), 0o600, std::fs::metadata(path).ok().as_ref())?;
    Ok(format!("took redirector out of {}", path.display()))
}
