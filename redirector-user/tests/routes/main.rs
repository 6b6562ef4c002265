//! The mirror of a namespace's routes against real connects.
//!
//! Each test lays out a network namespace of its own and compares, for the destinations it names and for both
//! ends of every prefix of the mirror and their neighbours, what the mirror says with the errno and the
//! source address of a connect(2) nobody redirects.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Instant;

use ipnet::IpNet;
use namespace::{Namespace, run};
use oracle::{describe, look_up, try_bind};
use redirector_user::netdev::passthrough;
use redirector_user::routes::{Interface, Outcome};
use redirector_user::sys::netns::NetNs;

mod namespace;
mod oracle;

/// Stops the test where there are no privileges.
macro_rules! need {
    ($namespace:expr) => {
        match $namespace {
            Some(namespace) => namespace,
            None => return,
        }
    };
}

#[test]
fn a_pod_with_a_default_route() {
    let pod = need!(Namespace::pod());
    let mirror = pod.expect(&[
        ("8.8.8.8", "eth0 10.1.2.3"),
        ("240.0.0.1", "eth0 10.1.2.3"),
        ("0.0.0.1", "eth0 10.1.2.3"),
        ("10.1.2.9", "eth0 10.1.2.3"),
        ("10.1.2.3", "local itself"),
        ("0.0.0.0", "local 127.0.0.1"),
        ("127.0.0.1", "local itself"),
        ("127.9.9.9", "local 127.0.0.1"),
        ("10.1.2.255", "broadcast"),
        ("127.255.255.255", "ENETUNREACH"),
        ("255.255.255.255", "ENETUNREACH"),
        ("224.0.0.1", "ENETUNREACH"),
        ("239.255.255.255", "ENETUNREACH"),
        ("2001:db8::1", "eth0 fd00:1::3"),
        ("fd00:1::9", "eth0 fd00:1::3"),
        ("fd00:1::3", "local itself"),
        ("::", "local ::1"),
        ("::1", "local itself"),
        ("ff02::1", "ENETUNREACH"),
        ("ff0e::1", "ENETUNREACH"),
    ]);
    let [lo, eth0] = ["lo", "eth0"].map(|name| mirror.interfaces.iter().find(|it| it.name == name).unwrap());
    let addresses = |list: &[&str]| list.iter().map(|net| net.parse::<IpNet>().unwrap()).collect::<Vec<_>>();
    assert!(lo.loopback && !eth0.loopback);
    assert_eq!(lo.addresses, addresses(&["127.0.0.1/8", "::1/128"]));
    assert_eq!(eth0.addresses, addresses(&["10.1.2.3/24", "fd00:1::3/64"]));

    assert_eq!(pod.read(), mirror, "nothing changed");
    assert!(mirror.routes.is_sorted_by_key(|route| route.prefix));
    pod.ip("addr add 10.1.2.4/24 dev eth0");
    let second = pod.expect(&[("10.1.2.4", "local 10.1.2.3"), ("8.8.8.8", "eth0 10.1.2.3")]);
    let Interface { addresses: now, .. } = second.interfaces.iter().find(|it| it.name == "eth0").unwrap();
    assert_eq!(*now, addresses(&["10.1.2.3/24", "10.1.2.4/24", "fd00:1::3/64"]));
}

#[test]
fn two_interfaces_and_a_route_on_link() {
    let pod = need!(Namespace::with_interfaces(2));
    pod.ip("addr add 10.1.2.3/24 dev eth0");
    pod.ip("addr add 192.168.7.7/16 dev eth1");
    pod.ip("addr add fd00:1::3/64 dev eth0 nodad");
    pod.ip("addr add fd00:2::3/64 dev eth1 nodad");
    pod.ip("route add default via 10.1.2.1");
    pod.ip("route add 172.16.0.0/12 via 192.168.0.1");
    pod.ip("route add 10.8.0.0/16 via 203.0.113.1 dev eth1 onlink");
    pod.ip("route add 2001:db8::/32 via fd00:2::1");
    pod.expect(&[
        ("8.8.8.8", "eth0 10.1.2.3"),
        ("172.20.0.1", "eth1 192.168.7.7"),
        ("192.168.200.1", "eth1 192.168.7.7"),
        ("192.168.7.7", "local itself"),
        ("10.8.1.1", "eth1 192.168.7.7"),
        ("fd00:1::1", "eth0 fd00:1::3"),
        ("fd00:2::1", "eth1 fd00:2::3"),
        ("2001:db8::1", "eth1 fd00:2::3"),
        ("2001:db9::1", "ENETUNREACH"),
    ]);
    pod.ip("link set peer1 down");
    pod.ip("link set eth1 down");
    pod.expect(&[("172.20.0.1", "eth0 10.1.2.3"), ("2001:db8::1", "ENETUNREACH")]);
}

#[test]
fn routes_that_refuse() {
    let pod = need!(Namespace::pod());
    for (kind, v4, v6) in [
        ("unreachable", "10.20.0.0/16", "fd20::/32"),
        ("prohibit", "10.21.0.0/16", "fd21::/32"),
        ("blackhole", "10.22.0.0/16", "fd22::/32"),
        ("throw", "10.23.0.0/16", "fd23::/32"),
    ] {
        pod.ip(&format!("route add {kind} {v4}"));
        pod.ip(&format!("route add {kind} {v6}"));
    }
    pod.ip("route add 10.20.5.0/24 via 10.1.2.1");
    let refused = [
        ("10.20.0.1", "EHOSTUNREACH"),
        ("10.20.5.1", "eth0 10.1.2.3"),
        ("10.21.0.1", "EACCES"),
        ("10.22.0.1", "EINVAL"),
        ("10.23.0.1", "ENETUNREACH"),
        ("fd20::1", "EHOSTUNREACH"),
        ("fd21::1", "EACCES"),
        ("fd22::1", "EINVAL"),
        ("fd23::1", "ENETUNREACH"),
    ];
    pod.expect(&refused);
    // The routing comes before the kind of address; in IPv6 it is the other way round.
    pod.ip("route replace prohibit default");
    pod.ip("route add prohibit ff00::/8 table local metric 1");
    pod.expect(&[("224.0.0.1", "EACCES"), ("255.255.255.255", "EACCES"), ("ff0e::1", "ENETUNREACH")]);
}

#[test]
fn routes_that_choose_the_source() {
    let pod = need!(Namespace::pod());
    pod.ip("addr add 10.7.7.7/32 dev lo");
    pod.ip("addr add fd07::7/128 dev lo");
    pod.ip("route add 10.30.0.0/16 via 10.1.2.1 src 10.7.7.7");
    pod.ip("route add fd30::/32 via fd00:1::1 src fd07::7");
    // A route over lo leaves on lo although its destinations are nobody's.
    pod.ip("route add 10.50.0.0/16 dev lo");
    pod.expect(&[
        ("10.30.0.1", "eth0 10.7.7.7"),
        ("fd30::1", "eth0 fd07::7"),
        ("10.7.7.7", "local itself"),
        ("fd07::7", "local itself"),
        ("10.50.0.1", "local 10.7.7.7"),
    ]);
}

#[test]
fn several_ipv6_sources_under_one_route() {
    let pod = need!(Namespace::pod());
    for address in ["2001:db8::3/64", "fd00:1:8000::3/48", "2002:a::3/64", "fe80::3/64"] {
        pod.ip(&format!("addr add {address} dev eth0 nodad"));
    }
    pod.expect(&[
        ("2600::1", "eth0 2001:db8::3"),
        ("2002:b::1", "eth0 2002:a::3"),
        ("fd77::1", "eth0 fd00:1:8000::3"),
        ("fd00:1:4000::1", "eth0 fd00:1::3"),
        ("fd00:1:c000::1", "eth0 fd00:1:8000::3"),
        ("fe80::99", "eth0 fe80::3"),
        ("fe80::3", "local itself"),
    ]);
}

#[test]
fn no_ipv6_route_and_no_ipv6_address() {
    let pod = need!(Namespace::with_interfaces(1));
    pod.ip("addr add 10.1.2.3/24 dev eth0");
    let nothing =
        pod.expect(&[("2001:db8::1", "ENETUNREACH"), ("8.8.8.8", "ENETUNREACH"), ("fe80::1", "EINVAL")]);
    pod.ip("addr add fd00:1::3/64 dev eth0 nodad");
    pod.expect(&[("2001:db8::1", "ENETUNREACH"), ("fd00:1::1", "eth0 fd00:1::3")]);
    pod.ip("addr del fd00:1::3/64 dev eth0");
    assert_eq!(pod.read(), nothing);
    pod.sysctl("ipv6/conf/all/disable_ipv6", "1");
    pod.expect(&[("2001:db8::1", "EADDRNOTAVAIL"), ("::1", "EADDRNOTAVAIL"), ("10.1.2.9", "eth0 10.1.2.3")]);
}

#[test]
fn nothing_is_up() {
    let pod = need!(Namespace::new());
    let mirror =
        pod.expect(&[("127.0.0.1", "ENETUNREACH"), ("::1", "EADDRNOTAVAIL"), ("0.0.0.0", "ENETUNREACH")]);
    assert_eq!(mirror.interfaces.len(), 1);
}

#[test]
fn interfaces_without_addresses() {
    let pod = need!(Namespace::with_interfaces(2));
    pod.ip("route add default dev eth0");
    pod.ip("route add ::/0 dev eth0");
    pod.expect(&[("8.8.8.8", "eth0 none"), ("2001:db8::1", "eth0 ::1")]);
    pod.ip("addr del ::1/128 dev lo");
    pod.expect(&[("2001:db8::1", "EADDRNOTAVAIL")]);
    // A source of narrower scope or of another interface is better than none.
    pod.ip("addr add fe80::3/64 dev eth0 nodad");
    pod.ip("addr add 10.1.2.3/24 dev eth1");
    pod.expect(&[("8.8.8.8", "eth0 10.1.2.3"), ("2001:db8::1", "eth0 fe80::3"), ("fe80::1", "eth0 fe80::3")]);
}

#[test]
fn policy_rules_count() {
    let pod = need!(Namespace::pod());
    pod.ip("link add eth9 type veth peer name peer9");
    pod.ip("link set peer9 up");
    pod.ip("link set eth9 up");
    pod.ip("addr add 10.99.0.1/24 dev eth9");
    pod.ip("addr add 10.1.2.77/32 dev eth0");
    pod.ip("route add default via 10.99.0.2 table 100");
    pod.ip("route add prohibit default table 101");
    pod.ip("route add local default dev lo table 102");
    // A selector on the destination is a point where the answer changes though no route begins there.
    pod.ip("rule add to 10.60.0.0/16 lookup 100");
    // The source is chosen before the second lookup, so that rules on it count for sockets without one.
    pod.ip("route add 10.61.0.0/16 via 10.1.2.1 src 10.1.2.77");
    pod.ip("rule add from 10.1.2.77 to 10.61.128.0/17 lookup 101");
    pod.ip("rule add to 10.62.0.0/16 ipproto 6 prohibit");
    pod.ip("rule add to 10.63.0.0/16 ipproto 17 prohibit");
    pod.ip("rule add to 10.64.0.0/16 unreachable");
    // A local route that is not in the table "local" gives a source that is no address: EINVAL.
    pod.ip("rule add to 10.65.0.0/16 lookup 102");
    pod.ip("rule add fwmark 1337 lookup 102");
    pod.ip("rule add to fd62::/32 ipproto 6 prohibit");
    pod.ip("rule add to fd63::/32 unreachable");
    // Rules on the source count for IPv6 where there is no route without one.
    pod.ip("rule add to fd64::/32 prohibit pref 500");
    pod.ip("rule add from fd00:1::3 to fd64::/33 ipproto 6 lookup main pref 499");
    pod.ip("rule add from fd00:1::3 to fd64::/34 ipproto 17 blackhole pref 498");
    // The first lookup of 0.0.0.0 asks no rule, the second one is for 127.0.0.1.
    pod.ip("rule del pref 0");
    pod.ip("rule add lookup local pref 500");
    pod.ip("rule add to 127.0.0.0/8 prohibit pref 499");
    pod.expect(&[
        ("10.60.1.1", "eth9 10.99.0.1"),
        ("10.61.1.1", "eth0 10.1.2.77"),
        ("10.61.128.1", "EACCES"),
        ("10.62.1.1", "EACCES"),
        ("10.63.1.1", "eth0 10.1.2.3"),
        ("10.64.1.1", "ENETUNREACH"),
        ("10.65.1.1", "ENETUNREACH"),
        ("8.8.8.8", "eth0 10.1.2.3"),
        ("fd62::1", "EACCES"),
        ("fd63::1", "ENETUNREACH"),
        ("fd64::1", "eth0 fd00:1::3"),
        ("fd64:0:8000::1", "EACCES"),
        ("0.0.0.0", "EACCES"),
    ]);
}

#[test]
fn any_address_is_local() {
    let pod = need!(Namespace::pod());
    pod.ip("route add local 10.9.0.0/16 dev lo");
    pod.ip("route add local fd09::/32 dev lo");
    // The first address of the prefix is the source of all of it.
    pod.ip("route add local 10.11.0.0/16 dev lo src 10.11.0.0");
    let mirror = pod.expect(&[
        ("10.9.0.1", "local itself"),
        ("10.9.255.254", "local itself"),
        ("10.11.7.7", "local 10.11.0.0"),
        ("fd09::1", "local fd00:1::3"),
        ("10.10.0.1", "eth0 10.1.2.3"),
    ]);
    let inside: IpNet = "10.9.0.0/16".parse().unwrap();
    assert_eq!(mirror.routes.iter().filter(|route| inside.contains(&route.prefix)).count(), 1);
}

#[test]
fn loopback_addresses_come_and_go() {
    let pod = need!(Namespace::pod());
    let (netns, six) = (&pod.netns, Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));
    let change = |add: bool| match add {
        true => passthrough::add(netns).unwrap(),
        false => passthrough::remove(netns).unwrap(),
    };
    let before = pod.expect(&[("::6", "eth0 fd00:1::3")]);
    assert!(!change(false), "it is not there yet");
    assert!(change(true));
    assert!(!change(true), "it is there already");
    pod.expect(&[("::6", "local itself"), ("2001:db8::1", "eth0 fd00:1::3")]);
    let bound = pod.inside(|| try_bind(six.into()));
    assert_eq!(bound, Ok(()), "usable at once");
    assert!(change(false));
    assert_eq!(pod.read(), before);

    pod.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    let error = passthrough::add(netns).unwrap_err();
    assert_eq!(error.why().and_then(|why| why.raw_os_error()), Some(libc::EACCES), "{error}");
    assert!(error.to_string().contains("disable_ipv6"), "{error}");
}

#[test]
fn ten_thousand_routes() {
    let pod = need!(Namespace::pod());
    let batch: String = (0..10_000)
        .map(|i| {
            let kind = if i % 2 == 0 { "unreachable " } else { "" };
            let via = if i % 2 == 0 { "" } else { " via 10.1.2.1" };
            format!("route add {kind}11.{}.{}.0/24{via}\n", i / 256, i % 256)
        })
        .collect();
    let file = std::env::temp_dir().join(&pod.name);
    fs::write(&file, batch).unwrap();
    run("ip", &["-n", &pod.name, "-batch", file.to_str().unwrap()]);
    fs::remove_file(file).unwrap();
    let start = Instant::now();
    let mirror = pod.read();
    eprintln!("10,000 routes are mirrored in {:?}", start.elapsed());
    // Those that go the way of the default route are merged into it.
    assert_eq!(
        mirror
            .routes
            .iter()
            .filter(|it| it.outcome == Outcome::Refused { errno: libc::EHOSTUNREACH })
            .count(),
        5000
    );
    assert_eq!(describe(look_up(&mirror, [11, 39, 14, 1].into()), &mirror), "EHOSTUNREACH");
    assert_eq!(describe(look_up(&mirror, [11, 39, 15, 1].into()), &mirror), "eth0 10.1.2.3");
}

#[test]
fn another_file_is_refused() {
    need!(Namespace::new());
    let error = NetNs::open(Path::new("/dev/null")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
}
