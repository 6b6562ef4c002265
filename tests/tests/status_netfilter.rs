//! `redirector status` of pods with rules of netfilter that others have made since the attach.

use anyhow::Context;
use redirector_tests::harness::command::run;
use redirector_tests::harness::product::health::Setup;
use redirector_tests::harness::requirements::require_program;

#[test]
fn rules_of_istio_that_came_later() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let iptables = setup
        .world
        .pod()
        .netns
        .command("iptables")
        .args(["-w", "-t", "nat", "-N", "ISTIO_OUTPUT"])
        .status()?;
    assert!(iptables.success());
    setup.expect_fault("istio_rules", &["ISTIO_OUTPUT", "twice"])?;
    Ok(())
}

/// Rules that stop what is sent to the proxy, and rules that redirect it elsewhere, by whatever program.
#[test]
fn rules_of_others_that_came_later() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let cases: [(&[&str], &str, &[&str]); 7] = [
        (
            &["filter", "INPUT", "-p", "tcp", "--dport", "15001", "-j", "DROP"],
            "netfilter_drops",
            &["filter", "to port 15001 DROP"],
        ),
        (
            &[
                "filter",
                "OUTPUT",
                "-p",
                "tcp",
                "-m",
                "multiport",
                "--dports",
                "22,15000:15010",
                "-j",
                "REJECT",
            ],
            "netfilter_drops",
            &["22,15000-15010 REJECT"],
        ),
        (&["filter", "OUTPUT", "-d", "127.0.0.0/8", "-j", "DROP"], "netfilter_drops", &["to loopback DROP"]),
        (&["filter", "INPUT", "-i", "lo", "-j", "DROP"], "netfilter_drops", &["on lo DROP"]),
        (
            &["filter", "OUTPUT", "-o", "eth0", "-m", "owner", "--uid-owner", "1337", "-j", "DROP"],
            "netfilter_drops",
            &["the proxy sends", "from uid 1337 DROP"],
        ),
        (
            &["nat", "OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "4140"],
            "netfilter_redirects",
            &["nat", "redirected twice"],
        ),
        (
            &["nat", "PREROUTING", "-p", "tcp", "-j", "DNAT", "--to-destination", "10.1.2.3:80"],
            "netfilter_redirects",
            &["nat", "DNAT"],
        ),
    ];
    for program in ["iptables-nft", "iptables-legacy"] {
        let Some(path) = require_program(program) else { return Ok(()) };
        for (rule, kind, words) in &cases {
            let change =
                |verb: &str| run(netns.command(&path).args(["-w", "-t", rule[0], verb]).args(&rule[1..]), "");
            change("-A")?;
            setup.expect_found(kind, words).with_context(|| format!("{program} {rule:?}"))?;
            change("-D")?;
            setup.expect_well()?;
        }
        // What Istio's own INVALID_DROP adds, and rules of other purposes.
        for rule in [
            &["-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"][..],
            &["-p", "tcp", "--dport", "22", "-j", "DROP"],
            &["!", "-i", "lo", "-d", "127.0.0.0/8", "-j", "DROP"],
            &["-d", "10.200.0.0/16", "-j", "DROP"],
        ] {
            run(netns.command(&path).args(["-w", "-A", "INPUT"]).args(rule), "")?;
        }
        setup.expect_well()?;
        run(netns.command(&path).args(["-w", "-F", "INPUT"]), "")?;
    }
    Ok(())
}

/// Firewalls as people write them: whether what stays in the pod passes.
#[test]
fn firewalls() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    const ESTABLISHED: &str = "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
    const LO: &str = "-A INPUT -i lo -j ACCEPT";
    const APP: &str = "-A INPUT -p tcp --dport 8080 -j ACCEPT";
    let closed = "filter INPUT";
    let broken: [(&[&str], &[&str]); 6] = [
        (&["-P INPUT DROP", ESTABLISHED, APP], &["sent to the proxy", closed]),
        (&["-P INPUT DROP", "-A INPUT -i eth0 -j ACCEPT"], &["sent to the proxy", closed]),
        (&[ESTABLISHED, APP, "-A INPUT -j REJECT"], &["sent to the proxy", "INPUT: REJECT"]),
        (
            &["-P OUTPUT DROP", "-A OUTPUT -m owner --uid-owner 1337 -j ACCEPT"],
            &["sent to the proxy", "filter OUTPUT"],
        ),
        (&["-A OUTPUT -m owner ! --uid-owner 1337 -j DROP"], &["OUTPUT:", "DROP"]),
        (
            &["-N SUB", "-A INPUT -p tcp -j SUB", "-A SUB -p tcp --dport 15001 -j DROP"],
            &["SUB: tcp to port 15001 DROP"],
        ),
    ];
    let well: [&[&str]; 6] = [
        &["-P INPUT DROP", LO, ESTABLISHED, APP],
        &["-P INPUT DROP", LO],
        &["-A INPUT -i eth0 -p tcp -m multiport --dports 15001,15006,15000 -j DROP"],
        &["-A INPUT ! -i lo -p tcp --dport 15001 -j DROP"],
        &["-A INPUT -s 10.0.0.0/8 -p tcp --dport 15001 -j ACCEPT", "-A INPUT -p tcp --dport 15001 -j DROP"],
        &[
            "-A INPUT -m conntrack --ctstate INVALID -j DROP",
            "-A OUTPUT ! -o lo -m owner ! --uid-owner 1337 -j DROP",
        ],
    ];
    for program in ["iptables-nft", "iptables-legacy"] {
        let Some(path) = require_program(program) else { return Ok(()) };
        let load = |rules: &[&str]| {
            let clean = ["-P INPUT ACCEPT", "-P OUTPUT ACCEPT", "-F", "-X"];
            clean
                .iter()
                .chain(rules)
                .try_for_each(|rule| run(netns.command(&path).arg("-w").args(rule.split(' ')), "").map(drop))
        };
        for (rules, words) in &broken {
            load(rules)?;
            setup.expect_found("netfilter_drops", words).with_context(|| format!("{program} {rules:?}"))?;
        }
        for rules in &well {
            load(rules)?;
            setup.expect_well().with_context(|| format!("{program} {rules:?}"))?;
        }
        load(&[])?;
    }
    Ok(())
}

/// By port, by named and anonymous sets of ports, ranges and more, by maps to verdicts, by what is left out.
#[test]
fn rules_of_nftables() -> anyhow::Result<()> {
    let Some(nft) = require_program("nft") else { return Ok(()) };
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let guard = |sets: &str, hook: &str, rules: &str| {
        let policy = if hook == "input" { "policy drop;" } else { "" };
        let table = format!(
            "table inet guard {{\n {sets}\n chain other {{ }}\n chain out {{ type filter hook {hook} priority 0; {policy}\n {rules}\n }}\n}}"
        );
        run(
            netns.command(&nft).args(["-f", "-"]),
            &format!("table inet guard\ndelete table inet guard\n{table}"),
        )
        .map(drop)
    };
    let ports =
        "set ports { type inet_service; flags interval; elements = { 22, 15000-15003, 60000-65535 }; }";
    let both = "set both { type inet_proto . inet_service; elements = { tcp . 15001, udp . 53 }; }";
    let of_both = "set both { type inet_service . inet_proto; elements = { 15001 . tcp, 9 . tcp }; }";
    let map = "map verdicts { type inet_service : verdict; elements = { 15001 : drop, 15002 : drop, 80 : accept, 443 : jump other }; }";
    for (sets, rule, words) in [
        ("", "tcp dport 15000-15006 reject", "tcp to port 15000-15006 REJECT"),
        ("", "tcp dport { 22, 15001, 15006 } drop", "tcp to port 22,15001,15006 DROP"),
        ("", "tcp dport { 15001 } drop", "tcp to port 15001 DROP"),
        (
            "",
            "meta l4proto { tcp, udp } th dport { 53, 15000-15006 } drop",
            "tcp to port 53,15000-15006 DROP",
        ),
        (ports, "tcp dport @ports reject", "tcp to port 22,15000-15003,60000-65535 REJECT"),
        (both, "meta l4proto . th dport @both drop", "tcp to port 15001 DROP"),
        (of_both, "th dport . meta l4proto @both drop", "tcp to port 9,15001 DROP"),
        (map, "tcp dport vmap @verdicts", "tcp to port 15001,15002 DROP"),
        ("", "tcp dport vmap { 1-14999 : accept, 15000-15010 : drop }", "tcp to port 15000-15010 DROP"),
        ("", "ip daddr 127.0.0.0/8 drop", "to loopback DROP"),
        ("", "tcp dport != 22 drop", "tcp to port 0-21,23-65535 DROP"),
        ("", "tcp dport != { 22, 80 } drop", "tcp to port 0-21,23-79,81-65535 DROP"),
        ("", "tcp dport != 22-80 drop", "tcp to port 0-21,81-65535 DROP"),
    ] {
        guard(sets, "output", rule)?;
        let words = format!("nftables guard out: {words}");
        setup.expect_found("netfilter_drops", &[&words]).with_context(|| rule.to_owned())?;
    }
    for (sets, hook, rule) in [
        ("", "output", "tcp dport { 22, 80, 15002-15005, 15007-15020 } drop"),
        (ports, "output", "tcp dport != @ports accept"),
        (map, "output", "udp dport vmap @verdicts"),
        ("set none { type inet_service; }", "output", "tcp dport @none drop"),
        ("", "output", "ct state vmap { established : accept, invalid : drop }"),
        ("", "output", "ip saddr { 10.200.0.0/16, 192.168.1.1 } drop"),
        ("", "output", "oif != lo ip daddr 127.0.0.0/8 drop"),
        // Captured connections go to the pod's own address.
        ("", "output", "ip6 daddr ::1 drop"),
        ("", "output", "ip daddr 10.200.0.0/16 drop"),
        // What is let through before.
        ("", "output", "oif lo accept; tcp dport != { 22, 80 } drop"),
        ("", "input", "iif lo accept"),
        ("", "input", "iifname vmap { \"lo\" : accept }"),
    ] {
        guard(sets, hook, rule)?;
        setup.expect_well().with_context(|| rule.to_owned())?;
    }
    guard("", "input", "ct state invalid drop")?;
    setup.expect_fault("netfilter_drops", &["out (policy): on lo DROP"])?;
    Ok(())
}

/// By the proxy's user; and those of a device, which come before any other chain.
#[test]
fn rules_by_user_and_of_devices() -> anyhow::Result<()> {
    let Some(nft) = require_program("nft") else { return Ok(()) };
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let _proxy = setup.proxy()?;
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    let load = |table: &str| run(netns.command(&nft).args(["-f", "-"]), table);
    for (uid, is_proxy) in [(1000, false), (1337, true)] {
        load(&format!(
            "add table inet of\ndelete table inet of\ntable inet of {{\n chain of {{ type filter hook output priority 0; \n oif eth0 meta skuid {uid} drop\n}}\n}}"
        ))?;
        if is_proxy {
            setup.expect_fault("netfilter_drops", &["the proxy sends", "from uid 1337 DROP"])?;
        } else {
            setup.expect_well()?;
        }
    }
    load("delete table inet of\n")?;
    for (chain, words) in [
        ("device \"lo\" priority 0; policy drop;", "(policy): on lo DROP"),
        ("device \"lo\" priority 0; drop", "of: on lo DROP"),
        ("device \"lo\" priority 0; ip protocol tcp drop", "tcp on lo DROP"),
        ("device \"lo\" priority 0; ether type arp drop", ""),
        ("device \"eth0\" priority 0; drop", ""),
    ] {
        let table = format!(
            "add table netdev of\ndelete table netdev of\ntable netdev of {{\n chain of {{ type filter hook ingress {chain}\n}}\n}}"
        );
        load(&table)?;
        if words.is_empty() {
            setup.expect_well()?;
        } else {
            setup.expect_found("netfilter_drops", &[words])?;
        }
    }
    Ok(())
}
