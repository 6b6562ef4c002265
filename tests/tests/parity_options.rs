//! Parity of the options: `redirector attach` with the flags of istio-iptables beside real iptables.
//!
//! A short run of `cargo xtask parity`, always of the same seed.

use std::time::Duration;

use redirector_tests::harness::parity::configuration::Configuration;
use redirector_tests::harness::parity::options::Choice;
use redirector_tests::harness::parity::pair::{Mistake, ParityPair, Rules};
use redirector_tests::harness::parity::probes::probes;
use redirector_tests::harness::parity::random::Random;
use redirector_tests::harness::parity::{ParityRun, run};
use redirector_tests::harness::prelude::*;

const SHORT_RUN: ParityRun = ParityRun {
    configurations: 200,
    seed: 1,
    limit: Some(Duration::from_secs(120)),
    findings: 3,
    rules: Rules::Iptables,
    mistake: None,
};

/// Each option alone, all pairs, and some combinations; as many as fit in two minutes.
#[test]
fn options() -> anyhow::Result<()> {
    require_root!();
    let report = run(&ParityRun { configurations: share::times(SHORT_RUN.configurations, 4), ..SHORT_RUN })?;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    // A run that captured nothing, or hardly ran, would prove nothing.
    let ends = report.ends();
    let many = share::times(1000, 1);
    assert!(ends.proxy > many && ends.passed > many, "{report}");
    assert!(report.configurations() >= share::times(20, 2), "{report}");
    Ok(())
}

/// The same beside Istio's native nftables rules, in one minute.
#[test]
fn options_beside_nft() -> anyhow::Result<()> {
    require_root!("nft");
    let limit = Some(Duration::from_secs(60));
    let report = run(&ParityRun { seed: 2, rules: Rules::Nft, limit, ..SHORT_RUN })?;
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    let (ends, many) = (report.ends(), share::times(500, 1));
    assert!(ends.proxy > many && ends.passed > many, "{report}");
    Ok(())
}

/// Every option beside the sidecar's, with a value that matters: equal to iptables, and not to iptables without it.
#[test]
fn options_one_by_one() -> anyhow::Result<()> {
    require_root!();
    let everything = Configuration::sidecar;
    let nothing = || everything().with(Choice::Cidrs, "");
    let cases: [(Configuration, Choice, &str); 18] = [
        (everything(), Choice::EnvoyPort, "16001"),
        (everything(), Choice::InboundCapturePort, "16006"),
        (everything(), Choice::TunnelPort, "9000"),
        (everything(), Choice::ProxyUids, "2000,1338"),
        (everything(), Choice::ProxyGids, "2000,0"),
        (everything(), Choice::InboundPorts, "8080,9000,"),
        (everything(), Choice::InboundPorts, ""),
        (everything(), Choice::InboundPortsExclude, "8080"),
        (everything(), Choice::ExcludeInterfaces, "eth0"),
        (everything(), Choice::VirtualInterfaces, "vnet0"),
        (everything(), Choice::Cidrs, "10.96.0.0/24,fd00:96::/64,127.0.0.2/32"),
        (everything(), Choice::CidrsExclude, "10.96.0.0/16,fd00:96::10/128"),
        (nothing(), Choice::OutboundPorts, "9000"),
        (everything(), Choice::OutboundPortsExclude, "8080"),
        (everything(), Choice::OwnerGroups, "1000,2000"),
        (everything(), Choice::OwnerGroupsExclude, "1000"),
        (everything(), Choice::Loopback, "127.0.0.0/8"),
        (everything(), Choice::Dns, "all"),
    ];
    let mut pair = ParityPair::new(Rules::Iptables, None)?;
    let mut random = Random::new(SHORT_RUN.seed);
    let interfaces = [Choice::ExcludeInterfaces, Choice::VirtualInterfaces];
    let possible =
        |(_, choice, _): &(_, Choice, _)| kernel::tells_interfaces() || !interfaces.contains(choice);
    for (base, choice, value) in share::of(cases.into_iter().filter(possible).collect()) {
        let configuration = base.clone().with(choice, value);
        println!("{}: {configuration}", choice.name());
        pair.configure(&configuration)?;
        let probes = probes(&configuration.options(), &mut random);
        let comparison = pair.run(&probes)?;
        let differences: Vec<_> = comparison.differences.iter().map(|(_, difference)| difference).collect();
        assert!(differences.is_empty(), "{}: {differences:#?}", choice.name());
        pair.mislead_oracle(&base)?;
        let without = pair.run(&probes)?;
        assert!(!without.differences.is_empty(), "{} {value}: no probe sees it", choice.name());
    }
    Ok(())
}

/// The comparison can fail: `-q` before `-x` in the rules is found, and only what is needed to see it is shown.
#[test]
fn a_wrong_order_of_rules_is_found() -> anyhow::Result<()> {
    require_root!();
    let report =
        run(&ParityRun { findings: 1, mistake: Some(ports_before_exclusions), limit: None, ..SHORT_RUN })?;
    let finding = report.findings.first().unwrap_or_else(|| panic!("not found:\n{report}"));
    let given: Vec<Choice> = finding.configuration.given().map(|(choice, _)| choice).collect();
    let needed = [Choice::CidrsExclude, Choice::OutboundPorts];
    assert!(needed.iter().all(|choice| given.contains(choice)), "{finding}");
    assert!(given.len() <= 3, "{finding}");
    assert!(finding.configuration.given().all(|(_, value)| !value.contains(',')), "{finding}");
    assert!(finding.differences.iter().any(|row| row.left.contains("proxy")), "{finding}");
    Ok(())
}

/// Every kind of rule matters to some probe: without it, something differs. Takes some minutes.
#[test]
#[ignore = "a check of the suite itself: run it after changing the probes or the plan"]
fn every_missing_rule_is_found() -> anyhow::Result<()> {
    require_root!();
    let mistakes: [(&str, Mistake); 16] = [
        ("-x", |rules| without(rules, "ISTIO_OUTPUT -d 10.", "RETURN")),
        ("-q", |rules| without(rules, "ISTIO_OUTPUT -p tcp --dport", "ISTIO_REDIRECT")),
        ("-o, TCP", |rules| without(rules, "ISTIO_OUTPUT -p tcp --dport", "RETURN")),
        ("-o, UDP", |rules| without(rules, "ISTIO_OUTPUT -p udp --dport", "RETURN")),
        ("-c, out", |rules| without(rules, "OUTPUT -o ", "RETURN")),
        ("-c, in", |rules| without(rules, "PREROUTING -i ", "RETURN")),
        ("-e, in", |rules| without(rules, "ISTIO_INBOUND -p tcp --dport 15008", "RETURN")),
        ("127.0.0.6", |rules| without(rules, "ISTIO_OUTPUT -o lo -s ", "RETURN")),
        ("127.0.0.1", |rules| without(rules, "ISTIO_OUTPUT -d 127.0.0.1/32", "RETURN")),
        ("gid", |rules| without(rules, "ISTIO_OUTPUT -m owner --gid-owner", "RETURN")),
        ("not in the groups", |rules| without(rules, "ISTIO_OUTPUT -m owner ! --gid-owner", "RETURN")),
        ("DNS, TCP", |rules| without(rules, "ISTIO_OUTPUT -p tcp --dport 53", "15053")),
        ("DNS, UDP", |rules| without(rules, "ISTIO_OUTPUT -p udp --dport 53", "15053")),
        ("DNS, the proxy's own", |rules| rules.replace("-m multiport ! --dports 53,", "! --dport ")),
        ("DNS, on lo", |rules| rules.replace("-o lo -p tcp ! --dport 53 -m owner", "-o lo -m owner")),
        ("-e, out", |rules| rules.replace("-p tcp ! --dport 15008", "-p tcp")),
    ];
    let mut missed = Vec::new();
    for (name, mistake) in mistakes {
        let report = run(&ParityRun { findings: 1, mistake: Some(mistake), ..SHORT_RUN })?;
        match report.findings.first() {
            Some(finding) => println!("{name}: {} configurations\n{finding}", report.configurations()),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
    Ok(())
}

/// Removes rules that begin and end so.
fn without(rules: &str, begin: &str, end: &str) -> String {
    let begin = format!("-A {begin}");
    let keep = |line: &&str| !(line.starts_with(&begin) && line.ends_with(end));
    rules.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

/// Moves the rules of `-q` before those of `-x`.
fn ports_before_exclusions(rules: &str) -> String {
    let is_port = |line: &&str| {
        line.starts_with("-A ISTIO_OUTPUT -p tcp --dport ") && line.ends_with("-j ISTIO_REDIRECT")
    };
    let ports: Vec<&str> = rules.lines().filter(is_port).collect();
    let mut text = String::new();
    let mut moved = false;
    for line in rules.lines().filter(|line| !is_port(line)) {
        if !moved && line.starts_with("-A ISTIO_OUTPUT -d ") && line.ends_with("-j RETURN") {
            // This is the rule for loopback; those of -x follow it.
            text.push_str(&format!("{line}\n"));
            ports.iter().for_each(|port| text.push_str(&format!("{port}\n")));
            moved = true;
            continue;
        }
        text.push_str(&format!("{line}\n"));
    }
    text
}
