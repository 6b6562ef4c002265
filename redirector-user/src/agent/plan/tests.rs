use super::*;

const HERE: Location = Location::Present { netns: 7, cgroup: 9 };

fn want(location: Location) -> Desired {
    Desired { location, policy: Some(Policy::default()) }
}

fn active() -> ActiveInstance {
    ActiveInstance {
        netns_cookie: 7,
        cgroup_id: 9,
        netns_alive: true,
        cgroup_alive: true,
        policy: Some(Policy::default()),
        current: true,
        complete: true,
    }
}

fn steps(name: &str, want: Option<Desired>, state: Option<InstanceState>) -> Vec<Step> {
    let wants = want.map(|want| (name.to_owned(), want)).into_iter().collect();
    let there: Vec<InventoryItem> =
        state.map(|state| InventoryItem { name: name.to_owned(), identity: 7, state }).into_iter().collect();
    plan(&wants, &there)
}

fn attach(name: &str) -> Step {
    Step::Attach(name.into())
}

fn detach(name: &str, why: &'static str) -> Step {
    Step::Detach { name: name.into(), identity: 7, why }
}

#[test]
fn what_is_as_it_should_be_is_left_alone() {
    for name in ["file-a", "pod-a"] {
        assert_eq!(steps(name, Some(want(HERE)), Some(InstanceState::Active(active().into()))), []);
    }
}

#[test]
fn what_is_missing_is_attached_as_soon_as_it_can_be() {
    assert_eq!(steps("file-a", Some(want(HERE)), None), [attach("file-a")]);
    assert_eq!(steps("file-a", Some(want(Location::Unknown)), None), []);
    assert_eq!(steps("file-a", Some(Desired { location: HERE, policy: None }), None), []);
    assert_eq!(steps("file-a", Some(want(HERE)), Some(InstanceState::Inert)), [attach("file-a")]);
}

#[test]
fn a_policy_is_changed_and_a_lost_link_made_anew() {
    let other = Policy { outbound_port: 16001, ..Policy::default() };
    for active in [
        ActiveInstance { policy: Some(other), ..active() },
        ActiveInstance { policy: None, ..active() },
        ActiveInstance { complete: false, ..active() },
        ActiveInstance { complete: false, current: false, ..active() },
    ] {
        assert_eq!(
            steps("file-a", Some(want(HERE)), Some(InstanceState::Active(active.into()))),
            [attach("file-a")]
        );
    }
}

#[test]
fn programs_of_another_version_are_swapped_even_if_the_target_is_not_known_just_now() {
    for location in [HERE, Location::Unknown] {
        let old = ActiveInstance { current: false, ..active() };
        assert_eq!(
            steps("pod-a", Some(want(location)), Some(InstanceState::Active(old.into()))),
            [Step::Upgrade("pod-a".into())]
        );
    }
}

#[test]
fn what_is_gone_is_removed_whoever_made_it() {
    let gone = InstanceState::Active(ActiveInstance { netns_alive: false, ..active() }.into());
    for name in ["file-a", "pod-a", "n4711"] {
        assert_eq!(steps(name, None, Some(gone.clone())), [detach(name, "its network namespace is gone")]);
    }
    let gone = InstanceState::Active(ActiveInstance { cgroup_alive: false, ..active() }.into());
    assert_eq!(steps("pod-a", None, Some(gone.clone())), [detach("pod-a", "its cgroup is gone")]);
    // Somebody's own: inbound traffic of the namespace is still captured.
    assert_eq!(steps("n4711", None, Some(gone)), []);
}

#[test]
fn another_target_behind_the_same_name_is_attached_instead() {
    for location in [Location::Present { netns: 8, cgroup: 9 }, Location::Present { netns: 7, cgroup: 10 }] {
        assert_eq!(
            steps("file-a", Some(want(location)), Some(InstanceState::Active(active().into()))),
            [detach("file-a", "its target is another one now"), attach("file-a")]
        );
    }
}

#[test]
fn a_file_that_is_gone_ends_the_capture_and_one_that_is_wrong_does_not() {
    assert_eq!(
        steps("file-a", None, Some(InstanceState::Active(active().into()))),
        [detach("file-a", "its file is gone")]
    );
    let wrong = Desired { location: Location::Unknown, policy: None };
    assert_eq!(steps("file-a", Some(wrong), Some(InstanceState::Active(active().into()))), []);
    assert_eq!(
        steps("file-a", Some(want(Location::Unknown)), Some(InstanceState::Active(active().into()))),
        []
    );
}

#[test]
fn a_pod_that_nobody_mentions_stays_captured() {
    assert_eq!(steps("pod-a", None, Some(InstanceState::Active(active().into()))), []);
}

#[test]
fn instances_of_others_and_other_versions_are_left_alone() {
    let other = ActiveInstance { policy: None, current: false, complete: false, ..active() };
    assert_eq!(steps("n4711", None, Some(InstanceState::Active(other.into()))), []);
    let foreign = |ended| InstanceState::Foreign { abi: 99, netns: Some(0), ended };
    for state in [InstanceState::Draining, foreign(false)] {
        assert_eq!(steps("file-a", Some(want(HERE)), Some(state)), []);
    }
    assert_eq!(steps("n4711", None, Some(foreign(true))), []);
    assert_eq!(steps("pod-a", None, Some(foreign(true))), [detach("pod-a", "what it captured is gone")]);
}

#[test]
fn what_is_damaged_is_made_anew_if_it_can_be() {
    let damaged = || Some(InstanceState::Damaged("?".into()));
    assert_eq!(
        steps("file-a", Some(want(HERE)), damaged()),
        [detach("file-a", "it is damaged"), attach("file-a")]
    );
    assert_eq!(steps("file-a", Some(want(Location::Unknown)), damaged()), []);
    assert_eq!(steps("file-a", None, damaged()), [detach("file-a", "its file is gone")]);
    assert_eq!(steps("pod-a", None, damaged()), []);
    assert_eq!(steps("n4711", None, damaged()), []);
}

#[test]
fn what_cannot_be_read_is_left_alone() {
    let unreadable = || Some(InstanceState::Unreadable("Too many open files".into()));
    for desired in [Some(want(HERE)), Some(want(Location::Unknown)), None] {
        assert_eq!(steps("file-a", desired, unreadable()), []);
    }
    assert_eq!(steps("pod-a", Some(want(HERE)), unreadable()), []);
}

#[test]
fn names_and_namespaces_are_freed_before_they_are_used() {
    let wants = [
        ("file-a".to_owned(), want(HERE)),
        ("file-b".to_owned(), want(Location::Present { netns: 8, cgroup: 9 })),
    ];
    let there = [InventoryItem {
        name: "file-z".into(),
        identity: 7,
        state: InstanceState::Active(ActiveInstance { netns_cookie: 8, ..active() }.into()),
    }];
    let steps = plan(&wants.into(), &there);
    assert_eq!(steps, [detach("file-z", "its file is gone"), attach("file-a"), attach("file-b")]);
}
