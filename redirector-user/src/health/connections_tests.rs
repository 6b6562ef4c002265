//! Connections of a pod, and what is said of them.

use super::*;

fn socket(local: &str, remote: &str) -> Socket {
    let local: SocketAddr = local.parse().unwrap();
    Socket {
        v6: local.is_ipv6(),
        local,
        remote: remote.parse().unwrap(),
        uid: 1000,
        inode: 5,
        device: Some(0),
        cookie: Some(1),
        cgroup: Some(42),
        v6_only: None,
        mptcp: Some(false),
        queue: None,
        storage: None,
    }
}

fn noted(kind: SockKind) -> SockState {
    SockState {
        kind,
        bound_by_us: 0,
        pending: 0,
        verdict: 1,
        orig: Addr::from(std::net::IpAddr::from([10, 96, 0, 10])),
        proxy: Addr::UNSPECIFIED,
        orig_port: 80,
        proxy_port: 15001,
        rule: Counter::OutAll as u32,
        instance: 1,
    }
}

fn address_of(ip: &str) -> Addr {
    Addr::from(ip.parse::<std::net::IpAddr>().unwrap())
}

fn stands_for_10_96_0_10() -> OriginalDst {
    OriginalDst {
        addr: address_of("10.96.0.10"),
        port: 80,
        verdict: 1,
        rule: Counter::OutAll as u32,
        proxy_port: 15001,
        source_bound: 1,
    }
}

/// What is said of these sockets in a pod that listens on 8080, whose cgroup is 42.
fn said(sockets: &[Socket], told: bool) -> Vec<Connection> {
    said_of(&Policy { outbound_exclude_ports: vec![22], ..Policy::default() }, sockets, told)
}

/// The same with another policy; the cgroup 43 is below the pod's.
fn said_of(policy: &Policy, sockets: &[Socket], told: bool) -> Vec<Connection> {
    let address = "10.77.0.2".parse().unwrap();
    let offline = Offline::new(policy, &[address], &[]);
    let pod = Pod {
        policy,
        in_force: &offline,
        cgroups: HashMap::from([(42, "/c".into()), (43, "/c/proxy".into())]),
        destinations: HashMap::from([(address_of("127.130.0.7"), stands_for_10_96_0_10())]),
        listening: HashSet::from([8080]),
        owners: HashMap::from([(5, (77, "app".into(), 1000))]),
    };
    list(&pod, sockets, told)
}

fn fate(socket: Socket) -> (Fate, Option<String>) {
    let of = said(&[socket], true).remove(0);
    (of.fate, of.why)
}

#[test]
fn what_the_kernel_holds_of_a_socket_decides() {
    for (kind, expected) in [
        (SockKind::REDIRECTED, Fate::Captured),
        (SockKind::PASSED, Fate::Passed),
        (SockKind::LOCAL, Fate::Passed),
        (SockKind::ACCEPTED, Fate::AtProxy),
        (SockKind::LISTENER, Fate::AtProxy),
    ] {
        let state = noted(kind);
        let mut one = socket("10.77.0.2:4000", "127.0.0.1:15001");
        one.storage = Some(bytemuck::bytes_of(&state).to_vec());
        let told = said(&[one], true).remove(0);
        assert_eq!(told.fate, expected);
        let original = (expected != Fate::Passed).then(|| "10.96.0.10:80".parse().unwrap());
        assert_eq!((told.original, told.pid), (original, Some(77)));
    }
}

#[test]
fn an_address_that_stands_for_a_destination_decides() {
    let given = "127.130.0.7:15001";
    for (local, remote, expected) in
        [("10.77.0.2:4000", given, Fate::Captured), (given, "10.77.0.2:4000", Fate::AtProxy)]
    {
        let told = said(&[socket(local, remote)], false).remove(0);
        assert_eq!((told.fate, told.original), (expected, "10.96.0.10:80".parse().ok()));
    }
    assert_eq!(fate(socket("10.77.0.2:4000", "127.130.0.7:80")).0, Fate::NotAsked);
}

#[test]
fn what_no_program_has_seen() {
    let out = |remote| socket("10.77.0.2:4000", remote);
    let (missed, why) = fate(out("10.96.0.10:80"));
    assert_eq!((missed, why.as_deref()), (Fate::Missed, Some("it is older than the attach")));
    assert_eq!(fate(out("10.96.0.10:22")).0, Fate::NotAsked);
    assert_eq!(fate(Socket { uid: 1337, ..out("10.96.0.10:80") }).0, Fate::NotAsked);
    let (missed, why) = fate(Socket { cgroup: Some(7), ..out("10.96.0.10:80") });
    assert!(missed == Fate::Missed && why.unwrap().contains("outside the cgroup"));
    // The proxy's own, of a pod that tells it by its cgroup, and one that the proxy has closed before the other end.
    assert_eq!(fate(Socket { uid: 0, inode: 0, ..out("10.96.0.10:80") }).0, Fate::Unknown);
    let policy =
        Policy { proxy_cgroup: Some("/c/proxy".into()), proxy_uids: Vec::new(), ..Policy::default() };
    let of = |cgroup| said_of(&policy, &[Socket { cgroup: Some(cgroup), ..out("10.96.0.10:80") }], true);
    assert_eq!([of(43)[0].fate.clone(), of(42)[0].fate.clone()], [Fate::NotAsked, Fate::Missed]);
    // Nobody told the cgroup.
    assert!(fate(Socket { cgroup: None, ..out("10.96.0.10:80") }).1.unwrap().contains("older"));
    // Storage of a kind that says nothing.
    let none = bytemuck::bytes_of(&noted(SockKind::NONE)).to_vec();
    assert_eq!(fate(Socket { storage: Some(none), ..out("10.96.0.10:80") }).0, Fate::Missed);
    assert_eq!(said(&[out("10.96.0.10:80")], false)[0].fate, Fate::Unknown);
}

#[test]
fn what_was_accepted() {
    let accepted = socket("10.77.0.2:8080", "10.88.0.1:999");
    assert_eq!(fate(accepted.clone()).0, Fate::Missed);
    // From within the pod, where the client's socket decides.
    let pair = [accepted.clone(), Socket { local: accepted.remote, remote: accepted.local, ..accepted }];
    assert_eq!(said(&pair, true)[0].fate, Fate::NotAsked);
}

#[test]
fn findings() {
    let older = said(&[socket("10.77.0.2:4000", "10.96.0.10:80")], true);
    let found = judge_missed(&older, &HashSet::new());
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].what,
        "1 connection is older than the attach: 10.77.0.2:4000 -> 10.96.0.10:80 (pid 77 app)"
    );
    // That of a process which is outside itself is told with the process.
    assert!(judge_missed(&older, &HashSet::from([77])).is_empty());
    let elsewhere = said(&[Socket { cgroup: Some(7), ..socket("10.77.0.2:4000", "10.96.0.10:80") }], true);
    assert_eq!(judge_missed(&elsewhere, &HashSet::new())[0].kind, "socket_made_outside");
}
