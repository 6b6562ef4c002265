//! The cgroup of a Kubernetes pod, by its uid.
//!
//! The kubelet makes it before the pod's sandbox (`syncPod`, pkg/kubelet/kubelet.go), as
//! `kubepods/[QOS/]podUID` with the cgroupfs driver and `kubepods-[QOS-]podUID.slice`, with `_` for `-`,
//! with the systemd driver (pkg/kubelet/cm). In a hybrid layout its cgroupfs driver makes it in the v1
//! trees only, and the runtime the v2 one with the first container: then it is made here, where the
//! runtime will look.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cgroup::{self, Cgroup};
use crate::base::error::{Context, Error, Result};

/// How deep below the root a pod's cgroup can be: `kubelet.slice/kubelet-kubepods.slice/…-burstable.slice/…`.
const DEEPEST: u32 = 6;
const AGAIN: Duration = Duration::from_millis(20);

/// Finds the cgroup of a pod, waiting for it if need be.
///
/// # Errors
///
/// If it does not appear in time.
pub fn cgroup_of(uid: &str, below: Option<&Path>, patience: Duration) -> Result<Cgroup> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = find_or_make(uid, below)? {
            return Cgroup::open(&found);
        }
        if Instant::now() >= end {
            return Err(Error::failed(format!(
                "there is no cgroup of pod {uid} (pod{uid} or *pod{}.slice) below {}; the kubelet \
                 makes it before the pod's sandbox, unless it runs with --cgroups-per-qos=false",
                uid.replace('-', "_"),
                root(below)?.display()
            ))
            .usage("another root is named with --cgroup-root"));
        }
        std::thread::sleep(AGAIN);
    }
}

/// The cgroup of a pod in the v2 tree, if it is there.
///
/// # Errors
///
/// If there is no v2 tree.
pub fn find(uid: &str, below: Option<&Path>) -> Result<Option<PathBuf>> {
    Ok(Names::of(uid).search(&root(below)?))
}

/// The directories in which pods' cgroups appear.
///
/// # Errors
///
/// If there is no v2 tree.
pub fn directories(below: Option<&Path>) -> Result<Vec<PathBuf>> {
    let mut all = vec![root(below)?];
    let mut next = 0;
    while let Some(dir) = all.get(next) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let leading = entries.filter(|entry| entry.file_name().to_str().is_some_and(leads_to_pods));
        let leading: Vec<PathBuf> = leading.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        all.extend(leading);
        next += 1;
    }
    Ok(all)
}

/// The same; made there if it is in a v1 tree only. Only for a pod that begins: of one that ends it would stay for ever.
fn find_or_make(uid: &str, below: Option<&Path>) -> Result<Option<PathBuf>> {
    let names = Names::of(uid);
    if let Some(found) = names.search(&root(below)?) {
        return Ok(Some(found));
    }
    let unified = cgroup::mount()?;
    let relative = below.and_then(|below| below.strip_prefix(&unified).ok()).unwrap_or(Path::new(""));
    for tree in cgroup::v1_mounts() {
        let Some(found) = names.search(&tree.join(relative)) else { continue };
        let Ok(path) = found.strip_prefix(&tree) else { continue };
        let path = unified.join(path);
        std::fs::create_dir_all(&path).context(|| format!("make the pod's cgroup {}", path.display()))?;
        return Ok(Some(path));
    }
    Ok(None)
}

/// Removes a pod's cgroup of the v2 tree in a hybrid layout, where the kubelet does not, unless something
/// is in it. The next sandbox of the pod makes it again.
pub fn leave(cgroup: &Path) {
    if !cgroup::v1_mounts().is_empty() {
        let _ = std::fs::remove_dir(cgroup);
    }
}

fn root(below: Option<&Path>) -> Result<PathBuf> {
    below.map_or_else(cgroup::mount, |below| Ok(below.to_owned()))
}

struct Names {
    cgroupfs: String,
    systemd: String,
}

impl Names {
    fn of(uid: &str) -> Self {
        Self { cgroupfs: format!("pod{uid}"), systemd: format!("-pod{}.slice", uid.replace('-', "_")) }
    }

    /// The slice, if there is one: with unified cgroups and systemd as its driver the kubelet (1.20 was seen to) makes an
    /// empty directory by the other driver's name beside it.
    fn search(&self, root: &Path) -> Option<PathBuf> {
        let mut other = None;
        self.below(root, 0, &mut other).or(other)
    }

    fn below(&self, dir: &Path, depth: u32, other: &mut Option<PathBuf>) -> Option<PathBuf> {
        let mut next = Vec::new();
        for entry in std::fs::read_dir(dir).ok()?.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(&self.systemd) {
                return Some(entry.path());
            }
            if name == self.cgroupfs {
                other.get_or_insert_with(|| entry.path());
            } else if leads_to_pods(name) {
                next.push(entry.path());
            }
        }
        if depth == DEEPEST {
            return None;
        }
        next.iter().find_map(|dir| self.below(dir, depth + 1, other))
    }
}

/// Not into other pods: there are hundreds.
fn leads_to_pods(name: &str) -> bool {
    (name.contains("kube") && !name.contains("-pod"))
        || matches!(name, "besteffort" | "burstable" | "guaranteed")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const UID: &str = "0a1b-22";
    /// Tests run side by side.
    static TREES: AtomicU32 = AtomicU32::new(0);

    fn found(path: &str) -> Option<PathBuf> {
        found_of(&[path])
    }

    fn found_of(paths: &[&str]) -> Option<PathBuf> {
        let tree = TREES.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("redirector-pods-{}-{tree}", std::process::id()));
        paths.iter().for_each(|path| std::fs::create_dir_all(root.join(path)).unwrap());
        let found = Names::of(UID).search(&root).map(|path| path.strip_prefix(&root).unwrap().to_owned());
        std::fs::remove_dir_all(&root).unwrap();
        found
    }

    #[test]
    fn both_drivers_and_all_classes() {
        for path in [
            "kubepods/pod0a1b-22",
            "kubepods/burstable/pod0a1b-22",
            "kubelet/kubepods/besteffort/pod0a1b-22",
            "kubepods.slice/kubepods-pod0a1b_22.slice",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b_22.slice",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0a1b_22.slice",
        ] {
            assert_eq!(found(path), Some(path.into()), "{path}");
        }
    }

    /// What a kubelet of 1.20 makes where cgroups are unified and systemd is its driver.
    #[test]
    fn the_slice_of_both() {
        let slice = "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0a1b_22.slice";
        for empty in
            ["a-kubepods/besteffort/pod0a1b-22", "kubepods/besteffort/pod0a1b-22", "z-kubepods/pod0a1b-22"]
        {
            assert_eq!(found_of(&[empty, slice]), Some(slice.into()), "{empty}");
        }
    }

    #[test]
    fn others_are_not_looked_into() {
        for path in [
            "kubepods/pod0a1b-23",
            "kubepods/podother/pod0a1b-22",
            "system.slice/pod0a1b-22",
            "kubepods.slice/kubepods-poda_b.slice/kubepods-pod0a1b_22.slice",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }
}
