//! Printed rules give the expected policy, and the rules of a policy give that policy.

mod robust;
mod round_trip;

use super::{Import, ImportError, import};
use crate::policy::{Dns, Mode, Policy, Selection};
use crate::rules::Family;
use crate::rules::Rules;

/// Printouts: by iptables 1.8.9 of the sidecar's rules and of istio's `tproxy` test case, and of istio 1.0 and 1.9 as
/// found in articles.
pub(crate) const PRINTED: [(&str, &str); 8] = [
    ("sidecar.save", include_str!("testdata/sidecar.save")),
    ("sidecar.S", include_str!("testdata/sidecar.S")),
    ("sidecar.vnL", include_str!("testdata/sidecar.vnL")),
    ("tproxy.save", include_str!("testdata/tproxy.save")),
    ("tproxy.vnL", include_str!("testdata/tproxy.vnL")),
    ("old.S", include_str!("testdata/old.S")),
    ("older.vnL", include_str!("testdata/older.vnL")),
    ("commands.txt", include_str!("testdata/commands.txt")),
];

fn printed(name: &str) -> &'static str {
    PRINTED.iter().find(|(known, _)| *known == name).expect("printout").1
}

#[track_caller]
fn imported(text: &str) -> Import {
    import(text).expect("rules")
}

#[track_caller]
fn exactly(text: &str, policy: &Policy) {
    let import = imported(text);
    assert!(import.is_exact(), "{import:#?}");
    assert_eq!(&import.policy, policy);
}

#[test]
fn the_sidecar_default_in_every_layout() {
    let v4 = Policy { ipv6: false, ..Policy::default() };
    exactly(printed("sidecar.save"), &Policy::default());
    exactly(printed("sidecar.vnL"), &Policy::default());
    exactly(printed("sidecar.S"), &v4);
    assert_eq!(
        imported(printed("sidecar.save")).flags.to_string(),
        "redirector attach --pid PID -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15020,15021,15090 --ipv6 on"
    );
    let notes = imported(printed("sidecar.S")).notes;
    assert!(notes.iter().any(|note| note.contains("ip6tables-save")), "{notes:?}");
}

#[test]
fn tproxy_with_dns() {
    let mut policy = Policy {
        mode: Mode::Tproxy,
        inbound_exclude_ports: Vec::new(),
        outbound_cidrs: Selection::List(vec!["9.9.0.0/16".parse().expect("network")]),
        outbound_exclude_cidrs: vec!["1.1.0.0/16".parse().expect("network")],
        exclude_interfaces: vec!["not-istio-nic".into()],
        dns: Dns::Servers(vec!["127.0.0.53".parse().expect("address")]),
        ..Policy::default()
    };
    policy.normalise();
    exactly(printed("tproxy.save"), &policy);
    exactly(printed("tproxy.vnL"), &policy);
}

/// The rules of TPROXY mode come in pairs, for each port in the order given.
#[test]
fn tproxy_ports_in_any_order() {
    let ports = Selection::List(vec![80, 443]);
    let policy = Policy {
        mode: Mode::Tproxy,
        inbound_ports: ports,
        inbound_exclude_ports: Vec::new(),
        ..Policy::default()
    };
    let text = Rules::of(&policy).save();
    let swapped = text
        .replace("--dport 80 ", "--dport 1 ")
        .replace("--dport 443 ", "--dport 80 ")
        .replace("--dport 1 ", "--dport 443 ");
    assert_ne!(text, swapped);
    exactly(&text, &policy);
    exactly(&swapped, &policy);
}

/// Until istio 1.15 the proxy's calls to port 15008 of its own pod went inbound like any other.
#[test]
fn rules_of_before_the_tunnel() {
    let import = imported(printed("commands.txt"));
    assert_eq!(import.policy, Policy { ipv6: false, ..Policy::default() });
    let lines: Vec<usize> = import.inexpressible.iter().map(|rule| rule.line).collect();
    assert_eq!(lines, [25, 28], "{:#?}", import.inexpressible);
    assert!(import.missing.is_empty(), "{:#?}", import.missing);
    let why = &import.inexpressible[0].why;
    assert!(why.contains("! --dport 15008 -m owner --uid-owner 1337"), "{why}");

    let import = imported(printed("older.vnL"));
    let policy =
        Policy { inbound_exclude_ports: vec![22, 15020, 15021, 15090], ipv6: false, ..Policy::default() };
    assert_eq!(import.policy, policy);
    assert_eq!((import.inexpressible.len(), import.missing.len()), (2, 0));
}

/// istio 1.0: one port for both directions, and calls to the own pod go out.
#[test]
fn rules_of_the_first_istio() {
    let import = imported(printed("old.S"));
    assert_eq!((import.policy.outbound_port, import.policy.inbound_port), (15001, 15001));
    assert_eq!(import.policy.inbound_ports, Selection::List(vec![80]));
    assert_eq!((&*import.policy.proxy_uids, &*import.policy.proxy_gids), (&[1337][..], &[1337][..]));
    let lines: Vec<usize> = import.inexpressible.iter().map(|rule| rule.line).collect();
    assert_eq!(lines, [11]);
    assert!(!import.is_exact());
}

#[test]
fn every_rule_that_differs_is_named() {
    let save = printed("sidecar.save");
    let edited = |from: &str, to: &str| {
        assert!(save.contains(from), "{from}");
        imported(&save.replacen(from, to, 1))
    };
    let named = |import: &Import| {
        import
            .inexpressible
            .iter()
            .map(|rule| format!("{} {}", rule.rule, rule.why))
            .collect::<Vec<_>>()
            .join("\n")
    };

    let extra = edited(
        "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n",
        "-A ISTIO_OUTPUT -s 10.0.0.1/32 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n",
    );
    assert!(
        named(&extra).starts_with("-A ISTIO_OUTPUT -s 10.0.0.1/32 -j RETURN redirector has no such rule"),
        "{extra:#?}"
    );

    let other = edited(
        "-A OUTPUT -j ISTIO_OUTPUT\n",
        "-A OUTPUT -d 10.0.0.1/32 -j DOCKER_OUTPUT\n-A OUTPUT -j ISTIO_OUTPUT\n",
    );
    assert!(named(&other).contains("DOCKER_OUTPUT is not one of istio's"), "{other:#?}");

    let ranges = edited("--dport 15020 ", "--dport 15020:15030 ");
    assert!(named(&ranges).contains("15020:15030 is not a single port"), "{ranges:#?}");

    // Only one family.
    let one = edited("--dport 15021 -j RETURN", "--dport 16021 -j RETURN");
    assert_eq!(one.policy.inbound_exclude_ports, [15020, 15090, 16021]);
    assert!(one.inexpressible.iter().all(|rule| rule.family == Family::V6) && !one.is_exact(), "{one:#?}");

    // The order counts where it matters, and only there.
    let passes = "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n";
    let late = edited(
        &format!("{passes}-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n"),
        &format!("-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n{passes}"),
    );
    assert!(named(&late).contains("it stands after rules that it has to come before"), "{late:#?}");
    let ports = [
        "-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\n",
        "-A ISTIO_INBOUND -p tcp -m tcp --dport 15090 -j RETURN\n",
    ];
    let swapped = edited(&ports.concat(), &format!("{}{}", ports[1], ports[0]));
    assert!(swapped.is_exact(), "{swapped:#?}");

    let without = edited("-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n", "");
    assert_eq!(without.missing.len(), 1);
    assert!(without.missing[0].rule.contains("127.0.0.6/32"));
}

#[test]
fn rules_of_others_stay() {
    let filter = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -m set --match-set x src -j LOG\nCOMMIT\n";
    let import = imported(&format!("{}{filter}", printed("sidecar.save")));
    assert!(import.is_exact(), "{import:#?}");
    assert!(
        import.notes.iter().any(|note| note.starts_with("2 rules are not of istio")),
        "{:?}",
        import.notes
    );
}

/// Other versions wrote the same meaning differently.
#[test]
fn spellings() {
    let save = printed("sidecar.save");
    for (from, to) in [
        ("-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -p tcp -j ISTIO_OUTPUT"),
        ("-A PREROUTING -p tcp -j ISTIO_INBOUND", "-A PREROUTING -j ISTIO_INBOUND"),
        ("-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT", "-A ISTIO_INBOUND -j ISTIO_IN_REDIRECT"),
        ("! -d 127.0.0.1/32", "-d ! 127.0.0.1"),
        ("--uid-owner 1337 -j ISTIO_IN", "--uid-owner 1337 -m comment --comment \"a b\" -j ISTIO_IN"),
        ("-A ISTIO_OUTPUT -j ISTIO_REDIRECT", "-A ISTIO_OUTPUT -d 0.0.0.0/0 -j ISTIO_REDIRECT"),
        (
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
            "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
        ),
        ("-A OUTPUT", "[12:345] -A OUTPUT"),
        (
            "-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN\n",
            "-I ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n",
        ),
    ] {
        assert!(save.contains(from), "{from}");
        exactly(&save.replacen(from, to, 1), &Policy::default());
    }
}

#[test]
fn what_is_no_iptables_is_refused() {
    let prose = "# Notes\n\n* nat is a table\n* the rest\n:smile: -A\nChain of thought (short)\n-a\n$ iptables -t nat -S\n";
    for text in ["", "\n\n", "hello", prose, "{\"a\": 1}"] {
        assert_eq!(import(text), Err(ImportError::NoRules), "{text}");
    }
    let empty = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
    assert_eq!(import(empty), Err(ImportError::NotIstio));
    let listing = "Chain PREROUTING (policy ACCEPT)\ntarget prot opt source destination\nISTIO_INBOUND all -- anywhere anywhere\n";
    assert_eq!(import(listing), Err(ImportError::ListingWithoutInterfaces(2)));
}

/// Found by fuzzing: such a rule was overlooked.
#[test]
fn quotes_are_those_of_iptables() {
    let policy = Policy { exclude_interfaces: vec!["it's".into(), r"a\b".into()], ..Policy::default() };
    let text = Rules::of(&policy).save();
    let found = import(&text).expect("rules");
    assert!(found.is_exact(), "{found:#?}");
    assert_eq!(found.policy.exclude_interfaces, ["a\\b", "it's"]);

    let text = text.replace("-o it's", "-o \"its");
    let found = import(&text).expect("rules");
    assert!(found.inexpressible.iter().any(|rule| rule.why.contains("quote")), "{found:#?}");

    let commands = "iptables -t nat -N ISTIO_OUTPUT\niptables -t nat -A OUTPUT -o 'eth 1' -j RETURN\n\
                    iptables -t nat -A OUTPUT -j ISTIO_OUTPUT\n\
                    iptables -t nat -A ISTIO_OUTPUT -j RETURN\n";
    let found = import(commands).expect("rules");
    assert!(found.inexpressible.iter().all(|rule| !rule.why.contains("quote")), "{found:#?}");
}

/// Found by fuzzing: the suggestion was `*`, which makes no rule for the network beside it.
#[test]
fn networks_beside_everything() {
    let nets = ["0.0.0.0/0", "10.0.0.0/8", "::/0"].map(|net| net.parse().expect("network"));
    let policy = Policy { outbound_cidrs: Selection::List(nets.to_vec()), ..Policy::default() };
    exactly(&Rules::of(&policy).save(), &policy);
}
