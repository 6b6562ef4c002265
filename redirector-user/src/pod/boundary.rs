//! The cgroup that stands for a pod or service of which only processes are known.
//!
//! The innermost cgroup of all processes would do if nobody in it could make others beside it. A service with `Delegate=yes`
//! can, and a container with a writable cgroupfs. So the cgroup is the one that the kubelet, systemd or the runtime has
//! named: what is in it cannot leave it, because that takes the right to write to `cgroup.procs` of the cgroup above
//! (`cgroup_procs_write_permission`).

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::cgroup::{Cgroup, mount};
use super::process;
use crate::base::error::{Error, Result};

/// The cgroup to capture for these processes.
///
/// # Errors
///
/// [`Error::input`] if they have only the root or a slice in common, or a cgroup that others than root manage and that is
/// neither a pod's, a unit's nor a container's.
pub fn cgroup_of(pids: &[u32]) -> Result<Cgroup> {
    let mut common: Option<PathBuf> = None;
    for pid in pids {
        let Some(text) = process::cgroups(*pid) else { continue };
        let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
            return Err(Error::unsupported(format!("process {pid} is in no cgroup v2"))
                .remedy("boot with cgroup v2 (hybrid or unified layout)"));
        };
        let path = Path::new(path);
        common = Some(match common {
            None => path.to_owned(),
            Some(so_far) => common_ancestor(&so_far, path),
        });
    }
    let Some(common) = common else {
        return Err(Error::input("the process has ended"));
    };
    if common == Path::new("/") {
        return Err(Error::input(format!(
            "the processes of this network namespace ({}) have only the root cgroup in common, \
             which holds the whole machine",
            pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
        ))
        .usage("put them into a cgroup of their own, or give --netns and --cgroup"));
    }
    if common.components().any(|part| part == Component::ParentDir) {
        return Err(Error::unsupported(format!(
            "the cgroup of the processes ({}) is above the root of our cgroup namespace",
            common.display()
        ))
        .usage(
            "run in the host's (a container needs hostPID and the host's cgroup namespace), or \
             give --netns and --cgroup",
        ));
    }
    let mount = mount()?;
    Cgroup::open(&bounded(&mount, common.strip_prefix("/").unwrap_or(&common), is_delegated)?)
}

/// The cgroup of the pod, unit or container that `inner` is in or is; `inner` itself if it is in none, and root alone
/// manages it.
///
/// # Errors
///
/// [`Error::input`] if it is a slice, or others than root manage it.
pub fn bounded(mount: &Path, inner: &Path, is_delegated: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let refused = |path: &Path, why: &str| {
        Err(Error::input(format!("the processes have the cgroup {} in common, {why}", path.display()))
            .remedy("name the cgroup that is to be captured")
            .usage("give --netns FILE and --cgroup DIR"))
    };
    let mut path = mount.to_owned();
    let mut names = inner.iter().peekable();
    while let Some(name) = names.next() {
        path.push(name);
        let name = name.to_string_lossy();
        if is_of_a_pod(&name) || !has_pod(names.clone()) && is_of_one(&name) {
            return Ok(path);
        }
        if is_delegated(&path) {
            return refused(&path, "which others than root manage: processes could leave a cgroup in it");
        }
    }
    if inner.extension().is_some_and(|extension| extension == "slice") {
        return refused(&path, "a slice, which holds others, too");
    }
    Ok(path)
}

/// As the kubelet names it (pkg/kubelet/cm): `podUID`, or `kubepods-…podUID.slice` with `_` for `-`.
fn is_of_a_pod(name: &str) -> bool {
    let uid = name.strip_suffix(".slice").and_then(|name| name.rsplit_once("-pod")).map(|(_, uid)| uid);
    let uid = uid.or_else(|| name.strip_prefix("pod")).unwrap_or_default();
    // Of a static pod it is a hash.
    let is_hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_part = |(part, length): (&str, usize)| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = uid.split(['-', '_']).collect();
    is_hash || parts.len() == 5 && parts.into_iter().zip([8, 4, 4, 4, 12]).all(is_part)
}

fn has_pod<'a>(mut names: impl Iterator<Item = &'a std::ffi::OsStr>) -> bool {
    names.any(|name| is_of_a_pod(&name.to_string_lossy()))
}

/// A unit of systemd, or a container by its id, as runtimes name it with the cgroupfs driver.
fn is_of_one(name: &str) -> bool {
    let is_container = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.ends_with(".service") || name.ends_with(".scope") || is_container
}

/// Whether others than root may move processes into it, or make cgroups in it.
fn is_delegated(dir: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.threads"].iter().any(|file| {
        let file = std::fs::metadata(dir.join(file));
        file.is_ok_and(|file| file.uid() != 0 || file.mode() & 0o022 != 0)
    })
}

fn common_ancestor(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(x, y)| x == y).map(|(x, _)| x).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors() {
        let ancestor = |a: &str, b: &str| common_ancestor(Path::new(a), Path::new(b));
        assert_eq!(ancestor("/kube/pod1/app", "/kube/pod1/proxy"), Path::new("/kube/pod1"));
        assert_eq!(ancestor("/kube/pod1", "/kube/pod12"), Path::new("/kube"));
        assert_eq!(ancestor("/a", "/b"), Path::new("/"));
    }

    #[test]
    fn what_the_application_manages_is_not_taken() {
        let mount = Path::new("/m");
        let pod = "kubepods/burstable/pod0f8b7c1e-1c2d-4e3f-8a9b-0123456789ab";
        let slice = "kubepods.slice/kubepods-burstable.slice/\
                     kubepods-burstable-pod0f8b7c1e_1c2d_4e3f_8a9b_0123456789ab.slice";
        let container = "docker/".to_owned() + &"0a".repeat(32);
        for (inner, delegated, taken) in [
            ("shop/app", "", Some("shop/app")),
            ("shop/deleg/own", "shop/deleg", None),
            ("shop/deleg", "shop/deleg", None),
            // Named by whom it is managed.
            ("shop/deleg/own.service", "shop/deleg", None),
            ("system.slice/shop.service/own", "system.slice/shop.service", Some("system.slice/shop.service")),
            ("system.slice/docker-1.scope/init", "", Some("system.slice/docker-1.scope")),
            (
                "user.slice/user-1.slice/user@1.service/app.slice/x.scope",
                "",
                Some("user.slice/user-1.slice/user@1.service"),
            ),
            (&format!("{pod}/0a"), "", Some(pod)),
            (&format!("{slice}/cri-containerd-1.scope/own"), "", Some(slice)),
            (&format!("kubelet.service/{pod}/0a"), "", Some(&format!("kubelet.service/{pod}"))),
            (&format!("{container}/own"), "", Some(&container)),
            ("system.slice", "", None),
            ("system.slice/system-shop.slice", "", None),
        ] {
            let is_delegated = |path: &Path| !delegated.is_empty() && path == mount.join(delegated);
            let found = bounded(mount, Path::new(inner), is_delegated);
            assert_eq!(found.ok(), taken.map(|taken| mount.join(taken)), "{inner}");
        }
        assert!(
            !is_of_a_pod("podium")
                && !is_of_a_pod("kubepods")
                && is_of_a_pod(&format!("pod{}", "0a".repeat(16)))
        );
    }
}
