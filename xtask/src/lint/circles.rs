//! Circles in a graph: places that need each other, directly or through others.

use std::collections::{BTreeMap, BTreeSet};

/// The strongly connected parts of two and more places.
pub fn circles<T: Ord + Clone>(edges: &BTreeSet<(T, T)>) -> Vec<Vec<T>> {
    let mut next: BTreeMap<&T, Vec<&T>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    let reach: BTreeMap<&T, BTreeSet<&T>> =
        next.keys().map(|&start| (start, reachable(start, &next))).collect();
    let mut found: Vec<Vec<T>> = Vec::new();
    for (place, reached) in &reach {
        let both: Vec<T> = reached
            .iter()
            .filter(|other| reach.get(*other).is_some_and(|back| back.contains(place)))
            .map(|other| (*other).clone())
            .collect();
        if both.len() > 1 && !found.contains(&both) {
            found.push(both);
        }
    }
    found
}

fn reachable<'a, T: Ord>(start: &'a T, next: &BTreeMap<&'a T, Vec<&'a T>>) -> BTreeSet<&'a T> {
    let mut found = BTreeSet::new();
    let mut open = vec![start];
    while let Some(place) = open.pop() {
        let new = next.get(place).into_iter().flatten().filter(|place| found.insert(**place));
        open.extend(new.copied().collect::<Vec<_>>());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(edges: &[(u8, u8)]) -> Vec<Vec<u8>> {
        circles(&edges.iter().copied().collect())
    }

    #[test]
    fn finds_what_leads_back() {
        assert!(of(&[(1, 2), (2, 3), (1, 3), (4, 4)]).is_empty());
        assert_eq!(of(&[(1, 2), (2, 1), (2, 3)]), [[1, 2]]);
        assert_eq!(of(&[(1, 2), (2, 3), (3, 1), (5, 6), (6, 5), (3, 5)]), [vec![1, 2, 3], vec![5, 6]]);
    }
}
