//! Every flag in every way it can be given or not.

use std::collections::BTreeSet;

use super::*;

/// What an empty value does.
pub(super) enum Empty {
    /// It changes the base in this way.
    Means(fn(&mut Policy)),
    /// It is refused.
    Refused,
}

/// A flag that takes a value.
pub(super) struct Case {
    pub long: &'static str,
    pub short: Option<char>,
    pub env: Option<&'static str>,
    pub value: &'static str,
    /// How the value changes the base, before normalisation.
    pub means: fn(&mut Policy),
    pub empty: Empty,
}

const fn case(
    names: (&'static str, char, &'static str),
    value: &'static str,
    means: fn(&mut Policy),
    empty: Empty,
) -> Case {
    let env = if names.2.is_empty() { None } else { Some(names.2) };
    Case { long: names.0, short: Some(names.1), env, value, means, empty }
}

fn both(policy: &mut Policy, ids: &[u32]) {
    policy.proxy_uids = ids.into();
    policy.proxy_gids = ids.into();
}

pub(super) fn nets<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

/// reference.md c.1, the flags with a letter.
pub(super) const CASES: [Case; 16] = [
    case(("envoy-port", 'p', ""), "1", |p| p.outbound_port = 1, Empty::Refused),
    case(("inbound-capture-port", 'z', "INBOUND_CAPTURE_PORT"), "2", |p| p.inbound_port = 2, Empty::Refused),
    case(("inbound-tunnel-port", 'e', "INBOUND_TUNNEL_PORT"), "3", |p| p.tunnel_port = 3, Empty::Refused),
    case(("proxy-uid", 'u', "PROXY_UID"), "7,0", |p| both(p, &[7, 0]), Empty::Means(|p| both(p, &[1337]))),
    case(("proxy-gid", 'g', "PROXY_GID"), "8,1", |p| p.proxy_gids = vec![8, 1], Empty::Means(|_| ())),
    case(
        ("istio-inbound-interception-mode", 'm', "ISTIO_INBOUND_INTERCEPTION_MODE"),
        "TPROXY",
        |p| p.mode = Mode::Tproxy,
        Empty::Means(|p| p.mode = Mode::Redirect),
    ),
    case(
        ("istio-inbound-ports", 'b', "ISTIO_INBOUND_PORTS"),
        "6000,7000,",
        |p| p.inbound_ports = Selection::List(vec![6000, 7000]),
        Empty::Means(|p| p.inbound_ports = Selection::None),
    ),
    case(
        ("istio-local-exclude-ports", 'd', "ISTIO_LOCAL_EXCLUDE_PORTS"),
        "22,21",
        |p| p.inbound_exclude_ports = vec![21, 22],
        Empty::Means(|p| p.inbound_exclude_ports.clear()),
    ),
    case(
        ("istio-exclude-interfaces", 'c', "ISTIO_EXCLUDE_INTERFACES"),
        "net1,eth1",
        |p| p.exclude_interfaces = vec!["eth1".into(), "net1".into()],
        Empty::Means(|p| p.exclude_interfaces.clear()),
    ),
    case(
        ("istio-service-cidr", 'i', "ISTIO_SERVICE_CIDR"),
        "10.1.2.3/8,fd00::/8",
        |p| p.outbound_cidrs = Selection::List(nets(&["10.0.0.0/8", "fd00::/8"])),
        Empty::Means(|p| p.outbound_cidrs = Selection::None),
    ),
    case(
        ("istio-service-exclude-cidr", 'x', "ISTIO_SERVICE_EXCLUDE_CIDR"),
        "10.9.9.9/16",
        |p| p.outbound_exclude_cidrs = nets(&["10.9.0.0/16"]),
        Empty::Means(|p| p.outbound_exclude_cidrs.clear()),
    ),
    case(
        ("istio-outbound-ports", 'q', "ISTIO_OUTBOUND_PORTS"),
        "443,80",
        |p| p.outbound_ports = vec![80, 443],
        Empty::Means(|p| p.outbound_ports.clear()),
    ),
    case(
        ("istio-local-outbound-ports-exclude", 'o', "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"),
        "53",
        |p| p.outbound_exclude_ports = vec![53],
        Empty::Means(|p| p.outbound_exclude_ports.clear()),
    ),
    case(
        ("kube-virt-interfaces", 'k', "KUBE_VIRT_INTERFACES"),
        "vm0",
        |p| p.virtual_interfaces = vec!["vm0".into()],
        Empty::Means(|p| p.virtual_interfaces.clear()),
    ),
    case(
        ("istio-inbound-tproxy-mark", 't', "ISTIO_INBOUND_TPROXY_MARK"),
        "5",
        |p| p.tproxy_mark = 5,
        Empty::Means(|_| ()),
    ),
    case(
        ("istio-inbound-tproxy-route-table", 'r', "ISTIO_INBOUND_TPROXY_ROUTE_TABLE"),
        "6",
        |p| p.tproxy_table = 6,
        Empty::Means(|_| ()),
    ),
];

/// reference.md c.1, the booleans: name, letter, second variable, and what true and false mean.
type Switch = (&'static str, Option<char>, Option<&'static str>, fn(&mut Policy), fn(&mut Policy));

pub(super) const SWITCHES: [Switch; 12] = [
    (
        "redirect-dns",
        None,
        Some("ISTIO_META_DNS_CAPTURE"),
        |p| p.dns = Dns::Servers(ips(&["10.96.0.10"])),
        |p| p.dns = Dns::Off,
    ),
    ("capture-all-dns", None, None, |_| (), |_| ()),
    ("drop-invalid", None, Some("INVALID_DROP"), |p| p.drop_invalid = true, |p| p.drop_invalid = false),
    ("dual-stack", None, Some("ISTIO_DUAL_STACK"), |_| (), |_| ()),
    ("dry-run", Some('n'), None, |_| (), |_| ()),
    ("skip-rule-apply", None, None, |_| (), |_| ()),
    ("run-validation", None, None, |_| (), |_| ()),
    ("cni-mode", None, None, |_| (), |_| ()),
    ("reconcile", None, None, |_| (), |_| ()),
    ("cleanup-only", None, None, |_| (), |_| ()),
    ("force-apply", None, None, |_| (), |_| ()),
    ("native-nftables", None, None, |_| (), |_| ()),
];

/// Operational flags with a value, each with a value the original accepts.
pub(super) const VALUES: [(&str, &str); 4] = [
    ("iptables-probe-port", "15002"),
    ("probe-timeout", "5s"),
    ("network-namespace", "/proc/7/ns/net"),
    ("force-iptables-binary", "nft"),
];

const OWN: [&str; 6] = ["istio-defaults", "ipv6", "policy", "annotations", "max-connections", "proxy-cgroup"];

pub(super) fn variable(long: &str) -> String {
    long.to_uppercase().replace('-', "_")
}

/// Both bases with a change applied, in normal form, with the arguments that select them.
pub(super) fn expectations(change: fn(&mut Policy)) -> [(&'static [&'static str], Policy); 2] {
    let changed = |mut policy: Policy| {
        change(&mut policy);
        policy.normalise();
        policy
    };
    [(&[], changed(Policy::default())), (&["--istio-defaults"], changed(istio()))]
}

#[test]
fn the_table_is_complete() {
    let mut expected: BTreeSet<(String, Option<char>, Option<String>)> = BTreeSet::new();
    for case in &CASES {
        let env = case.env.map(str::to_owned);
        assert!(env.is_none() || env == Some(variable(case.long)), "{}", case.long);
        expected.insert((case.long.into(), case.short, env));
    }
    expected.extend(SWITCHES.iter().map(|s| (s.0.into(), s.1, Some(variable(s.0)))));
    expected.extend(VALUES.iter().map(|v| (v.0.into(), None, Some(variable(v.0)))));
    expected.extend(OWN.iter().map(|own| ((*own).into(), None, None)));
    let actual = command()
        .get_arguments()
        .map(|arg| {
            let env = arg.get_env().map(|env| env.to_str().expect("UTF-8").to_owned());
            (arg.get_long().expect("a long name").to_owned(), arg.get_short(), env)
        })
        .collect();
    assert_eq!(expected, actual);
}

#[test]
fn every_value_long_and_short() {
    for case in &CASES {
        for (base, policy) in expectations(case.means) {
            let long = format!("--{}", case.long);
            let short = format!("-{}", case.short.expect("a letter"));
            let ways: [Vec<String>; 4] = [
                vec![long.clone(), case.value.into()],
                vec![format!("{long}={}", case.value)],
                vec![short.clone(), case.value.into()],
                vec![format!("{short}{}", case.value)],
            ];
            for way in ways {
                let args: Vec<&str> = way.iter().map(String::as_str).chain(base.iter().copied()).collect();
                assert_eq!(resolved(&flags(&args)).policy, policy, "{args:?}");
            }
        }
    }
}

#[test]
fn every_value_empty() {
    for case in &CASES {
        let long = format!("--{}", case.long);
        for base in [&[][..], &["--istio-defaults"][..]] {
            let args: Vec<&str> = [&[long.as_str(), ""][..], base].concat();
            match case.empty {
                Empty::Means(change) => {
                    let expected =
                        expectations(change).into_iter().find(|(b, _)| *b == base).expect("base").1;
                    assert_eq!(resolved(&flags(&args)).policy, expected, "{args:?}");
                }
                Empty::Refused => {
                    let error = resolve(&flags(&args), &pod()).expect_err(&long);
                    assert!(error.to_string().starts_with(&format!("{long}: \"\" ")), "{error}");
                }
            }
        }
    }
}

#[test]
fn nothing_given() {
    for (base, policy) in expectations(|_| ()) {
        let resolved = resolved(&flags(base));
        assert_eq!(resolved, Resolved { policy, notes: Vec::new(), requests: Requests::default() });
    }
}

#[test]
fn every_switch() {
    for (long, short, _, on, off) in SWITCHES {
        let mut ways = vec![
            (format!("--{long}"), on),
            (format!("--{long}=true"), on),
            (format!("--{long}=T"), on),
            (format!("--{long}=false"), off),
            (format!("--{long}=0"), off),
        ];
        ways.extend(short.map(|short| (format!("-{short}"), on)));
        for (way, change) in ways {
            for (base, policy) in expectations(change) {
                let args: Vec<&str> = [&[way.as_str()][..], base].concat();
                assert_eq!(resolved(&flags(&args)).policy, policy, "{args:?}");
            }
        }
        for bad in ["", "yes", "TrUe", "2"] {
            let way = format!("--{long}={bad}");
            let error = try_flags(&[&way]).expect_err(&way).to_string();
            assert!(
                error.contains(&format!("--{long}: {bad:?} is not a boolean; write --{long}=true")),
                "{error}"
            );
        }
        assert!(try_flags(&[&format!("--{long}"), "true"]).is_err(), "a value needs its `=`, as in pflag");
    }
}

#[test]
fn operational_flags_are_explained() {
    for (long, value) in VALUES {
        let way = format!("--{long}={value}");
        let resolved = resolved(&flags(&[&way]));
        assert_eq!(resolved.policy, Policy::default(), "{way}");
        assert_eq!(abouts(&resolved.notes), [format!("--{long}")], "{way}");
        assert!(
            self::resolved(&flags(&[&format!("--{long}=")])).notes.is_empty(),
            "{long}: empty asks for nothing"
        );
    }
    let with_a_note = |long: &&str| *long != "run-validation";
    for long in SWITCHES.iter().skip(5).map(|switch| &switch.0).filter(|long| with_a_note(long)) {
        let way = format!("--{long}");
        assert_eq!(abouts(&resolved(&flags(&[&way])).notes), [way.as_str()]);
        assert!(
            resolved(&flags(&[&format!("{way}=false")])).notes.is_empty(),
            "{way}: false asks for nothing"
        );
    }
}

#[test]
fn the_last_of_several_counts() {
    let args = ["-p", "1", "-p", "2", "--redirect-dns", "--redirect-dns=false", "-b", "80", "-b", ""];
    let policy = resolved(&flags(&args)).policy;
    assert_eq!((policy.outbound_port, policy.dns, policy.inbound_ports), (2, Dns::Off, Selection::None));
}
