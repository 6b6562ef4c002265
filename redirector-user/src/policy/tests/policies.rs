//! The policy by itself: its files, its normal form and what it refuses.

use proptest::prelude::*;

use super::*;

fn policy(text: &str) -> Policy {
    file::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn an_empty_file_is_the_sidecar_default() {
    for text in ["{}", " \n{ }\n"] {
        assert_eq!(policy(text), Policy::default(), "{text:?}");
    }
    let mut default = Policy::default();
    default.normalise();
    assert_eq!(default, Policy::default(), "the default is in normal form");
}

#[test]
fn a_file_is_read_into_normal_form() {
    let json = r#"{"outbound_port": 16001, "proxy_uids": [7, 5, 7], "mode": "tproxy",
        "inbound_ports": [443, 80, 443], "exclude_interfaces": ["net1", "eth1"],
        "outbound_cidrs": ["10.1.2.3/8", "10.0.0.0/8", "fd00::1/8"],
        "outbound_ports": [2, 1], "dns": ["10.96.0.10"], "owner_groups": "*", "owner_groups_exclude": [3],
        "loopback_cidr": "127.0.0.1/8", "ipv6": false}"#;
    let expected = Policy {
        outbound_port: 16001,
        proxy_uids: vec![7, 5],
        proxy_gids: vec![7, 5],
        mode: Mode::Tproxy,
        inbound_ports: Selection::List(vec![80, 443]),
        inbound_exclude_ports: vec![],
        exclude_interfaces: vec!["eth1".into(), "net1".into()],
        outbound_cidrs: Selection::List(vec![
            "10.0.0.0/8".parse().expect("a network"),
            "fd00::/8".parse().expect("a network"),
        ]),
        outbound_ports: vec![1, 2],
        dns: Dns::Servers(ips(&["10.96.0.10"])),
        owner_groups_exclude: vec![3],
        loopback_cidr: "127.0.0.0/8".parse().expect("a network"),
        ipv6: false,
        ..Policy::default()
    };
    assert_eq!(policy(json), expected);
}

#[test]
fn the_groups_of_a_file_follow_its_users_unless_it_names_them() {
    assert_eq!(policy(r#"{"proxy_uids": [5]}"#).proxy_gids, [5]);
    assert_eq!(policy(r#"{"proxy_uids": [5], "proxy_gids": [6]}"#).proxy_gids, [6]);
    assert_eq!(policy(r#"{"proxy_uids": [5], "proxy_gids": []}"#).proxy_gids, Vec::<u32>::new());
}

#[test]
fn bad_files_are_refused_with_a_reason() {
    for (text, why) in [
        (r#"{"outbond_port": 1}"#, "unknown field `outbond_port`"),
        (r#"{"outbound_port": 0}"#, "outbound_port: \"0\" is not a port"),
        (r#"{"outbound_port": 65536}"#, "65536"),
        (r#"{"inbound_ports": [80, 0]}"#, "inbound_ports: \"0\""),
        (r#"{"inbound_ports": "80"}"#, "expected \"all\", \"none\" or a list"),
        (r#"{"dns": "none"}"#, "expected \"all\", \"off\" or a list"),
        (r#"{"dns": ["name"]}"#, "IP"),
        (r#"{"outbound_cidrs": ["10.0.0.0"]}"#, "invalid IP"),
        (r#"{"mode": "TPROXY"}"#, "unknown variant `TPROXY`"),
        (r#"{"proxy_uids": [4294967295]}"#, "proxy_uids: \"4294967295\""),
        (r#"{"proxy_gids": [4294967295]}"#, "proxy_gids: \"4294967295\""),
        (r#"{"tproxy_mark": 0}"#, "tproxy_mark"),
        (r#"{"tproxy_table": 254}"#, "tproxy_table"),
        (r#"{"loopback_cidr": "10.0.0.0/8"}"#, "loopback_cidr"),
        (r#"{"exclude_interfaces": ["a b"]}"#, "exclude_interfaces"),
        (r#"{"exclude_interfaces": ["eth,1"]}"#, "exclude_interfaces: \"eth,1\" has a comma"),
        (r#"{"virtual_interfaces": ["*"]}"#, "virtual_interfaces: \"*\""),
        (r#"{"max_connections": 0}"#, "max_connections"),
        (r#"{"max_destinations": 1048577}"#, "max_destinations"),
        (r#"{"ipv6": 1}"#, "boolean"),
        ("{", "EOF"),
    ] {
        let error = file::parse(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
    let groups = format!("{{\"owner_groups\": {:?}}}", (0..65).collect::<Vec<u32>>());
    assert!(file::parse(&groups).expect_err("65").contains("more than the 64"));
}

#[test]
fn a_policy_file_is_the_base_of_the_flags() {
    let path = std::env::temp_dir().join(format!("redirector-policy-{}", std::process::id()));
    let text = r#"{"proxy_uids": [5], "proxy_gids": [6], "inbound_ports": "none", "ipv6": false,
        "dns": ["9.9.9.9"]}"#;
    std::fs::write(&path, text).expect("a file");
    let name = path.to_str().expect("UTF-8").to_owned();
    let with = |args: &[&str]| resolved(&flags(&[&["--policy", name.as_str()], args].concat())).policy;
    let results = (
        with(&[]),
        with(&["-u", "7", "-b", "80", "--ipv6", "on"]),
        with(&["-g", ""]),
        with(&["--capture-all-dns"]),
        with(&["--redirect-dns"]),
        with(&["--redirect-dns=false"]),
        with(&["--capture-all-dns=false"]),
    );
    std::fs::remove_file(&path).expect("removal");
    let base = policy(text);
    assert_eq!(results.0, base);
    let changed =
        Policy { proxy_uids: vec![7], inbound_ports: Selection::List(vec![80]), ipv6: true, ..base.clone() };
    assert_eq!(results.1, changed, "its groups stay");
    assert_eq!(results.2, Policy { proxy_gids: vec![5], ..base.clone() });
    assert_eq!(results.3.dns, Dns::All);
    assert_eq!(results.4.dns, Dns::Servers(ips(&["10.96.0.10"])), "the flag means resolv.conf");
    assert_eq!(results.5.dns, Dns::Off);
    assert_eq!(results.6, base);

    let error = shown(resolve(&flags(&["--policy", &name]), &pod()).expect_err("no file"));
    assert!(error.starts_with(&format!("policy file {name}: ")), "{error}");
}

#[test]
fn loopback_prefixes_survive_masking() {
    let captures = |text: &str| {
        let policy = resolved(&flags(&["-i", text])).policy;
        let mut again = policy.clone();
        again.normalise();
        assert_eq!(again, policy, "{text}");
        policy.captures_loopback()
    };
    for text in [
        "127.0.0.1/8",
        "127.0.0.1/7",
        "127.1.1.1/1",
        "127.0.0.1/0",
        "::1/128",
        "::1/64",
        "10.0.0.0/8,::1/0",
        "::ffff:127.0.0.1/128",
        "::ffff:127.0.0.1/100",
    ] {
        assert!(captures(text), "{text}");
    }
    for text in ["*", "", "126.0.0.0/7", "0.0.0.0/0", "::/0", "::2/127", "10.0.0.0/8", "::ffff:10.0.0.1/128"]
    {
        assert!(!captures(text), "{text}");
    }
    let nets = resolved(&flags(&["-i", "127.0.0.1/7"])).policy.outbound_cidrs;
    let listed: Vec<String> = nets.items().iter().map(ToString::to_string).collect();
    assert_eq!(listed, ["126.0.0.0/7", "127.0.0.0/8"], "the same addresses");
}

fn selection<T: std::fmt::Debug + Clone>(
    item: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Selection<T>> {
    let list = proptest::collection::vec(item, 0..6).prop_map(Selection::List);
    prop_oneof![Just(Selection::None), Just(Selection::All), list]
}

fn net() -> impl Strategy<Value = ipnet::IpNet> {
    let any =
        (any::<IpAddr>(), 0u8..=128).prop_filter_map("too long", |(a, bits)| ipnet::IpNet::new(a, bits).ok());
    let mapped = "::ffff:127.0.0.1".parse().expect("an address");
    let v4 = (0u8..=32).prop_map(|bits| ipnet::IpNet::new_assert(IpAddr::from([127, 0, 0, 1]), bits));
    prop_oneof![any, v4, (0u8..=128).prop_map(move |bits| ipnet::IpNet::new_assert(mapped, bits))]
}

prop_compose! {
    pub(super) fn any_policy()(
        ports in (1u16.., 1u16.., 1u16.., 1u16..),
        proxy_uids in proptest::collection::vec(0u32..9, 0..5),
        proxy_gids in proptest::collection::vec(0u32..9, 0..5),
        inbound_ports in selection(1u16..20),
        lists in proptest::collection::vec(proptest::collection::vec(1u16..20, 0..6), 3),
        outbound_cidrs in selection(net()),
        outbound_exclude_cidrs in proptest::collection::vec(net(), 0..6),
        names in proptest::collection::vec("[a-z]{1,15}", 0..4),
        owner_groups in selection(0u32..9),
        owner_groups_exclude in proptest::collection::vec(0u32..9, 0..5),
        servers in proptest::option::of(proptest::collection::vec(any::<IpAddr>(), 0..4)),
        (tproxy, ipv6, drop_invalid, all) in any::<(bool, bool, bool, bool)>(),
        tproxy_mark in 1u32..,
        (max_connections, max_destinations) in (1..=MAX_CONNECTIONS, 0..=MAX_DESTINATIONS),
    ) -> Policy {
        Policy {
            outbound_port: ports.0, inbound_port: ports.1, tunnel_port: ports.2, dns_port: ports.3,
            proxy_uids, proxy_gids, inbound_ports, outbound_cidrs, outbound_exclude_cidrs, owner_groups,
            owner_groups_exclude, tproxy_mark, max_connections, max_destinations, ipv6, drop_invalid,
            mode: if tproxy { Mode::Tproxy } else { Mode::Redirect },
            inbound_exclude_ports: lists[0].clone(),
            outbound_ports: lists[1].clone(),
            outbound_exclude_ports: lists[2].clone(),
            exclude_interfaces: names.clone(), virtual_interfaces: names,
            dns: servers.map_or(if all { Dns::All } else { Dns::Off }, Dns::Servers),
            ..Policy::default()
        }
    }
}

proptest! {
    #[test]
    fn policies_survive_json(policy in any_policy()) {
        prop_assert_eq!(policy.validate(), Ok(()));
        let mut normal = policy.clone();
        normal.normalise();
        let json = serde_json::to_string(&policy).expect("JSON");
        prop_assert_eq!(&file::parse(&json).expect("JSON"), &normal);
    }

    #[test]
    fn the_normal_form_matches_the_same(policy in any_policy(), addr: IpAddr) {
        let mut normal = policy.clone();
        normal.normalise();
        let mut again = normal.clone();
        again.normalise();
        prop_assert_eq!(&again, &normal);
        let hit = |policy: &Policy| policy.outbound_cidrs.items().iter().any(|net| net.contains(&addr));
        prop_assert_eq!(hit(&policy), hit(&normal));
        prop_assert_eq!(policy.captures_loopback(), normal.captures_loopback());
    }
}
