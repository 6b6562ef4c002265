//! A policy with the kernel's numbers of its users, groups and proxy cgroup, ready to be compiled.

use std::path::Path;

use super::id_map::as_the_kernel_counts;
use super::tables::Compiled;
use crate::base::error::{Error, Result};
use crate::pod::Target;
use crate::pod::cgroup::Cgroup;
use crate::policy::Policy;
use crate::routes::RouteSnapshot;

/// A policy for a target, and the same with the kernel's numbers of its users, groups and cgroup.
#[derive(Debug)]
pub struct IdMappedPolicy {
    /// As the user has given it.
    pub policy: Policy,
    mapped: Policy,
    proxy_cgroup: u64,
}

impl IdMappedPolicy {
    /// Of a policy for a target.
    ///
    /// # Errors
    ///
    /// [`Error::input`] for a user or group that is not mapped (`xt_owner` refuses such a rule), and
    /// for a cgroup of the proxy that is not below the target's.
    pub fn new(policy: Policy, target: &Target) -> Result<Self> {
        let proxy_cgroup = match &policy.proxy_cgroup {
            Some(path) => proxy_cgroup(path, target)?,
            None => 0,
        };
        Ok(Self { mapped: as_the_kernel_counts(&policy, &target.netns)?, proxy_cgroup, policy })
    }

    /// Id of the proxy's cgroup, 0 for none.
    pub fn proxy_cgroup(&self) -> u64 {
        self.proxy_cgroup
    }

    /// In the form of the maps.
    pub fn compile(&self, snapshot: &RouteSnapshot) -> Compiled {
        let mut compiled = Compiled::new(&self.mapped, snapshot);
        compiled.policy.proxy_cgroup = self.proxy_cgroup;
        compiled
    }
}

/// The id of the proxy's cgroup. In the target's own everything would be the proxy's, and elsewhere nothing.
fn proxy_cgroup(path: &Path, target: &Target) -> Result<u64> {
    let cgroup = Cgroup::open(path).map_err(|e| e.within("--proxy-cgroup"))?;
    if cgroup.id == target.cgroup.id || !cgroup.path.starts_with(&target.cgroup.path) {
        return Err(Error::input(format!(
            "--proxy-cgroup {}: not below the cgroup that is captured, {}",
            path.display(),
            target.cgroup.path.display()
        ))
        .usage(
            "give the cgroup of the proxy's container, and with --netns and --cgroup that of the whole pod",
        ));
    }
    Ok(cgroup.id)
}

/// What is wrong if the path of the proxy's cgroup leads to another one than `recorded`, which the programs
/// use, or nowhere: its container or unit was started again.
pub fn problem_of_proxy_cgroup(policy: &Policy, recorded: u64) -> Option<String> {
    let path = policy.proxy_cgroup.as_ref()?;
    let same = Cgroup::open(path).is_ok_and(|cgroup| cgroup.id == recorded);
    (!same).then(|| {
        format!(
            "the proxy's cgroup {} is gone or another one than at the attach, so the proxy's own connections are \
             captured as anybody's; run attach with --proxy-cgroup again",
            path.display()
        )
    })
}
