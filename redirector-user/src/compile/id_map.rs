//! Users and groups of a policy as the kernel counts them.
//!
//! A policy counts them as its pod does, and `xt_owner` reads them in the user namespace that owns
//! the network namespace (`owner_check` and `owner_mt` in net/netfilter/xt_owner.c); the programs
//! read the kernel's own numbers. They differ in pods with `hostUsers: false`.

use std::os::fd::AsFd;

use crate::base::error::{Context, Error, Result};
use crate::policy::{Policy, Selection};
use crate::sys::netns::NetNs;
use crate::sys::userns;

/// The policy with the kernel's numbers of its users and groups.
///
/// # Errors
///
/// [`Error::input`] for one that is not mapped: `xt_owner` refuses such a rule.
pub fn as_the_kernel_counts(policy: &Policy, netns: &NetNs) -> Result<Policy> {
    let what = || "find the user namespace that owns the network namespace".to_owned();
    let Some(owner) = userns::owner_of(netns.as_fd()).context(what)? else { return Ok(policy.clone()) };
    let [uids, gids] = userns::maps(owner.as_fd())
        .context(|| "read the id maps of the user namespace that owns the network namespace".into())?;
    translate(policy, &IdMap::parse("user", "uid_map", &uids), &IdMap::parse("group", "gid_map", &gids))
}

fn translate(policy: &Policy, uids: &IdMap, gids: &IdMap) -> Result<Policy> {
    let groups = match &policy.owner_groups {
        Selection::List(list) => Selection::List(gids.all("ISTIO_OUTBOUND_OWNER_GROUPS", list)?),
        other => other.clone(),
    };
    Ok(Policy {
        proxy_uids: uids.all("-u", &policy.proxy_uids)?,
        proxy_gids: gids.all("-g", &policy.proxy_gids)?,
        owner_groups: groups,
        owner_groups_exclude: gids
            .all("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", &policy.owner_groups_exclude)?,
        ..policy.clone()
    })
}

/// A `uid_map` or `gid_map`: first number inside, first number outside, how many.
struct IdMap {
    kind: &'static str,
    file: &'static str,
    ranges: Vec<[u32; 3]>,
}

impl IdMap {
    fn parse(kind: &'static str, file: &'static str, text: &str) -> Self {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
        };
        Self { kind, file, ranges: text.lines().filter_map(range).collect() }
    }

    fn find(&self, id: u32) -> Option<u32> {
        let within = |[inside, outside, count]: &[u32; 3]| {
            let offset = id.checked_sub(*inside).filter(|offset| offset < count)?;
            outside.checked_add(offset)
        };
        self.ranges.iter().find_map(within)
    }

    fn all(&self, option: &str, ids: &[u32]) -> Result<Vec<u32>> {
        let one = |id: &u32| {
            self.find(*id).ok_or_else(|| {
                let has: Vec<String> =
                    self.ranges.iter().map(|[from, _, count]| format!("{count} from {from}")).collect();
                let has = if has.is_empty() { "nothing".into() } else { has.join(", ") };
                Error::input(format!(
                    "{option}: the {} {id} does not exist in the user namespace that owns the network \
                     namespace ({} maps {has}), and iptables refuses it, too",
                    self.kind, self.file
                ))
                .remedy("give one as the pod's own processes see it")
            })
        };
        ids.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_as_make_kuid_does() {
        let map = IdMap::parse("user", "uid_map", "         0     200000       1000\n      1337 5 2\n");
        for (id, kernel) in [
            (0, Some(200_000)),
            (999, Some(200_999)),
            (1000, None),
            (1337, Some(5)),
            (1338, Some(6)),
            (1339, None),
        ] {
            assert_eq!(map.find(id), kernel, "{id}");
        }
        assert_eq!(IdMap::parse("user", "uid_map", "").find(0), None);
        // The initial namespace's.
        let all = IdMap::parse("user", "uid_map", "0 0 4294967295");
        assert_eq!(all.find(u32::MAX - 1), Some(u32::MAX - 1));
    }

    #[test]
    fn every_list_is_translated_by_its_own_map() {
        let (uids, gids) = ("0 100 2000", "0 5000 2000");
        let (uids, gids) = (IdMap::parse("user", "uid_map", uids), IdMap::parse("group", "gid_map", gids));
        let policy = Policy {
            proxy_uids: vec![1337, 1],
            proxy_gids: vec![7],
            owner_groups: Selection::List(vec![8, 9]),
            ..Policy::default()
        };
        let seen = translate(&policy, &uids, &gids).unwrap();
        assert_eq!((seen.proxy_uids, seen.proxy_gids), (vec![1437, 101], vec![5007]));
        assert_eq!(seen.owner_groups, Selection::List(vec![5008, 5009]));
        let policy = Policy { owner_groups_exclude: vec![3, 2000], ..Policy::default() };
        let error = translate(&policy, &uids, &gids).unwrap_err().to_string();
        assert!(
            error.contains("OWNER_GROUPS_EXCLUDE: the group 2000") && error.contains("2000 from 0"),
            "{error}"
        );
    }
}
