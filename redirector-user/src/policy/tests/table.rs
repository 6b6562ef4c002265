//! Every flag in every way it can be given or not.

use super::super::options::{self, CaptureOption, Empty, Example};
use super::*;

/// The flags that take a value and say what is captured, with their examples.
pub(super) fn cases() -> impl Iterator<Item = (&'static CaptureOption, &'static Example)> {
    options::all().filter_map(|option| Some((option, option.example.as_ref()?)))
}

pub(super) fn nets<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

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
fn every_option_is_tested() {
    for option in options::all().filter(|option| option.long.is_some()) {
        let name = option.name();
        let listed =
            SWITCHES.iter().any(|switch| switch.0 == name) || VALUES.iter().any(|value| value.0 == name);
        assert_ne!(listed, option.example.is_some(), "{name}: one of them");
        assert!(option.variable.is_none_or(|own| own == variable(name)), "{name}");
    }
}

#[test]
fn every_value_long_and_short() {
    for (option, example) in cases() {
        for (base, policy) in expectations(example.means) {
            let long = format!("--{}", option.name());
            let short = format!("-{}", option.short.expect("a letter"));
            let ways: [Vec<String>; 4] = [
                vec![long.clone(), example.value.into()],
                vec![format!("{long}={}", example.value)],
                vec![short.clone(), example.value.into()],
                vec![format!("{short}{}", example.value)],
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
    for (option, example) in cases() {
        let long = format!("--{}", option.name());
        for base in [&[][..], &["--istio-defaults"][..]] {
            let args: Vec<&str> = [&[long.as_str(), ""][..], base].concat();
            match example.empty {
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
fn the_last_of_several_counts_under_the_originals_name() {
    let args = ["-p", "1", "-p", "2", "--redirect-dns", "--redirect-dns=false", "-b", "80", "-b", ""];
    assert!(try_flags(&args[..4]).is_err(), "else it is refused");
    let matches = command().args_override_self(true).try_get_matches_from(args).expect("flags");
    let policy = resolved(&CaptureFlags::of_matches(&matches).expect("flags")).policy;
    assert_eq!((policy.outbound_port, policy.dns, policy.inbound_ports), (2, Dns::Off, Selection::None));
}
