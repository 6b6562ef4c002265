//! Set-ups of listeners, and what is said of them.

use super::*;
use crate::policy::Policy;

fn listener(at: &str) -> Listener {
    let local: std::net::SocketAddr = at.parse().unwrap();
    Listener {
        socket: Socket {
            v6: local.is_ipv6(),
            local,
            remote: "0.0.0.0:0".parse().unwrap(),
            uid: 1337,
            inode: 1,
            device: Some(0),
            cookie: Some(1),
            cgroup: Some(1),
            v6_only: local.is_ipv6().then_some(true),
            mptcp: Some(false),
            queue: Some((0, 128)),
            storage: None,
        },
        owner: Some("pid 7 envoy".into()),
        inside: Some(true),
        registered: Some(true),
    }
}

fn around() -> Surroundings {
    Surroundings {
        instance: "n1".into(),
        interfaces: vec![(1, "lo".into()), (10, "eth0".into())],
        has_ipv6: false,
        young: false,
    }
}

fn said(policy: &Policy, listeners: &[Listener], around: &Surroundings) -> Vec<String> {
    let line = |finding: Finding| format!("{:?} {}: {}", finding.level, finding.kind, finding.what);
    judge(policy, listeners, around).into_iter().map(line).collect()
}

fn good() -> Vec<Listener> {
    vec![listener("0.0.0.0:15001"), listener("0.0.0.0:15006")]
}

#[test]
fn a_proxy_that_listens_is_no_finding() {
    assert_eq!(said(&Policy::default(), &good(), &around()), Vec::<String>::new());
    let mut dual = listener("[::]:15006");
    dual.socket.v6_only = Some(false);
    let six = Surroundings { has_ipv6: true, ..around() };
    let mut both = good();
    both.push(listener("[::1]:15001"));
    both.push(dual);
    assert_eq!(said(&Policy::default(), &both, &six), Vec::<String>::new());
    // Nothing is sent there.
    assert_eq!(said(&Policy::istio_default(), &[], &around()), Vec::<String>::new());
}

#[test]
fn nobody_listens() {
    let told = said(&Policy::default(), &[], &around());
    assert_eq!(
        told,
        [
            "Fault no_listener: nobody listens on port 15001",
            "Fault no_listener: nobody listens on port 15006"
        ]
    );
    let young = Surroundings { young: true, ..around() };
    assert!(said(&Policy::default(), &[], &young).iter().all(|line| line.starts_with("Starting")));
    let six = Surroundings { has_ipv6: true, ..around() };
    let told = said(&Policy::default(), &good(), &six);
    assert_eq!(told[0], "Fault no_listener_of_family: no listener on port 15001 takes IPv6");
    assert_eq!(said(&Policy { ipv6: false, ..Policy::default() }, &good(), &six), Vec::<String>::new());
}

/// Each of them at both ports: (role whose port it has, finding).
#[test]
fn listeners_that_get_nothing() {
    let on = |change: &dyn Fn(&mut Listener)| {
        let mut all = good();
        all.iter_mut().for_each(change);
        said(&Policy::default(), &all, &around())
    };
    let address = |ip: &str| {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        on(&move |l: &mut Listener| l.socket.local.set_ip(ip))
    };
    assert_eq!(
        address("127.0.0.1"),
        ["Fault listener_on_loopback: the listener on port 15006 (pid 7 envoy) listens on 127.0.0.1 only"]
    );
    let own = address("10.77.0.2");
    assert!(
        own.len() == 1 && own[0].contains("15001") && own[0].contains("listener_on_one_address"),
        "{own:?}"
    );
    let outside = on(&|l| l.inside = Some(false));
    assert!(outside.len() == 2 && outside[0].contains("outside the cgroup"), "{outside:?}");
    let mptcp = on(&|l| {
        l.socket.mptcp = Some(true);
        l.registered = Some(false);
    });
    assert!(mptcp.len() == 1 && mptcp[0].contains("15006") && mptcp[0].contains("MPTCP"), "{mptcp:?}");
    let unknown = on(&|l| l.registered = Some(false));
    assert!(unknown.len() == 1 && unknown[0].contains("listener_not_registered"), "{unknown:?}");
    for (device, port, name) in [(10, "15001", "eth0"), (1, "15006", "lo")] {
        let bound = on(&move |l| l.socket.device = Some(device));
        assert!(bound.len() == 1 && bound[0].contains(port) && bound[0].contains(name), "{bound:?}");
    }
    // What nobody tells is no fault.
    let untold = on(&|l| {
        l.inside = None;
        l.registered = None;
        l.socket.device = None;
        l.socket.mptcp = None;
    });
    assert_eq!(untold, Vec::<String>::new());
}

#[test]
fn one_good_listener_is_enough() {
    let mut all = good();
    all.push(listener("127.0.0.1:15006"));
    assert_eq!(said(&Policy::default(), &all, &around()), Vec::<String>::new());
}

#[test]
fn more_than_the_registry_holds() {
    let mut all = good();
    all.extend(
        (0..LISTENER_SLOTS).map(|_| Listener { registered: Some(false), ..listener("0.0.0.0:15006") }),
    );
    let told = said(&Policy::default(), &all, &around());
    assert!(told.len() == 1 && told[0].starts_with("Notice listeners_beyond_registry"), "{told:?}");
}

#[test]
fn dns_over_udp() {
    let policy = Policy { dns: Dns::All, ..Policy::default() };
    let server = |at: &str| vec![listener(at).socket];
    let judge_udp = |policy: &Policy, servers: &[Socket], young| {
        super::judge_udp(policy, servers, &Surroundings { young, has_ipv6: true, ..around() })
    };
    let level = |dns: Dns, servers: &[Socket]| {
        judge_udp(&Policy { dns, ..Policy::default() }, servers, false).map(|finding| finding.level)
    };
    let (v4, v6) = ("10.96.0.10".parse().unwrap(), "fd00::10".parse().unwrap());
    assert_eq!(level(Dns::Servers(vec![v4]), &server("127.0.0.1:15053")), None);
    assert_eq!(level(Dns::Servers(vec![v4, v6]), &server("127.0.0.1:15053")), Some(Level::Fault));
    assert_eq!(level(Dns::All, &server("127.0.0.1:15053")), Some(Level::Notice));
    assert_eq!(level(Dns::All, &[server("127.0.0.1:15053"), server("[::1]:15053")].concat()), None);
    assert_eq!(judge_udp(&Policy::default(), &[], false), None);
    let nobody = judge_udp(&policy, &[], false).unwrap();
    assert_eq!((nobody.level, nobody.kind), (Level::Fault, "no_dns_server"));
    assert_eq!(judge_udp(&policy, &[], true).unwrap().level, Level::Starting);
    assert!(judge_udp(&policy, &server("10.0.0.1:15053"), false).unwrap().what.contains("10.0.0.1 only"));
    // Over TCP nobody needs to listen.
    let told = said(&policy, &good(), &around());
    assert_eq!(told, ["Notice no_listener: nobody listens on port 15053 (TCP)"]);
}

/// The kernel gives some connections to each of a group, also to one that no program knows.
#[test]
fn one_of_a_group_was_made_elsewhere() {
    let mut group = good();
    group.push(Listener { inside: Some(false), ..listener("0.0.0.0:15001") });
    let told = said(&Policy::default(), &group, &around());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("Fault listener_outside: the listener on port 15001"), "{told:?}");
    // Of the network's address nothing is captured: the application may listen there.
    let mut with_app = good();
    with_app.push(listener("10.0.0.2:15001"));
    assert_eq!(said(&Policy::default(), &with_app, &around()), Vec::<String>::new());
    let may_be = |at: &str| may_be_the_proxys(&Policy::default(), &listener(at));
    assert_eq!(["10.0.0.2:15001", "127.0.0.1:15001", "10.0.0.2:15006"].map(may_be), [false, true, true]);
}
