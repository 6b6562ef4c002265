//! `redirector status` of pods whose netfilter stops captured traffic, or looks as if it did: captured packets stay on lo, and
//! those from the network have the application's port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use redirector_tests::harness::command::run;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::product::health::Setup;
use redirector_tests::harness::requirements::require_program;
use redirector_tests::harness::server::{Server, proxy_listeners};
use redirector_tests::harness::world::{APP, PROXY};

const STOPS: &str = "what is sent to the proxy";
const ANSWERS: &str = "what the proxy answers";
const ARRIVES: &str = "what arrives from the network";

/// An application of uid 1000 on port 8080.
fn app(setup: &Setup) -> anyhow::Result<Server> {
    let on = |ip: IpAddr| Listen::on((ip, 8080).into());
    let all = vec![on(Ipv4Addr::UNSPECIFIED.into()), on(Ipv6Addr::UNSPECIFIED.into())];
    setup.world.pod().serve(APP, "app", all)
}

fn expect(setup: &Setup, words: &str) -> anyhow::Result<()> {
    if words.is_empty() {
        setup.expect_well().map(drop)
    } else {
        setup.expect_found("netfilter_drops", &[words]).map(drop)
    }
}

/// Whether a rule takes what not every kernel has.
fn may_be_missing(rule: &str) -> bool {
    ["NFQUEUE", "queue num", "limit", "fib "].iter().any(|word| rule.contains(word))
}

/// Rules of iptables, one a line, and what is said of them; nothing, if the pod is well.
const IPTABLES: [(&str, &str); 30] = [
    ("-t raw -A OUTPUT -o lo -j CT --notrack\n-A INPUT -m conntrack --ctstate UNTRACKED -j DROP", STOPS),
    ("-A INPUT -i lo -p tcp --syn -j DROP", STOPS),
    ("-A OUTPUT -d 127.128.0.0/9 -j DROP", STOPS),
    ("-A OUTPUT -o lo ! -d 127.0.0.1 -j DROP", STOPS),
    ("-A OUTPUT -m owner ! --uid-owner 1337 -j DROP", STOPS),
    ("-A OUTPUT -m owner --uid-owner 1000 -j REJECT", STOPS),
    ("-A INPUT -s 10.77.0.2 -j DROP", STOPS),
    ("-t raw -A PREROUTING -i lo -s 10.77.0.0/24 -j DROP", STOPS),
    ("-N SUB\n-A SUB -p tcp --dport 15001 -j DROP\n-A INPUT -i lo -j SUB", STOPS),
    ("-N SUB\n-A SUB -j RETURN\n-A INPUT -i lo -g SUB\n-A INPUT -j ACCEPT\n-P INPUT DROP", STOPS),
    ("-A OUTPUT -o lo -p tcp -j NFQUEUE --queue-num 7", STOPS),
    (
        "-A INPUT -p tcp --dport 8080 -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-P INPUT DROP",
        STOPS,
    ),
    (
        "-A INPUT -p tcp --dport 8080 -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A INPUT -j REJECT",
        STOPS,
    ),
    (
        "-A INPUT -i lo -s 127.0.0.0/8 -d 127.0.0.0/8 -j ACCEPT\n-A INPUT -i eth0 -j ACCEPT\n-P INPUT DROP",
        STOPS,
    ),
    (
        "-A OUTPUT -m owner --uid-owner 1337 -j ACCEPT\n-A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-P OUTPUT DROP",
        STOPS,
    ),
    ("-A OUTPUT -p tcp --sport 15001 -j DROP", ANSWERS),
    (
        "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 15006,15008,15021,15090 -j ACCEPT\n-P INPUT DROP",
        ARRIVES,
    ),
    // Nothing stops what is captured.
    ("-A INPUT -i eth0 -p tcp -m multiport --dports 15001,15006,15000 -j DROP", ""),
    ("-A INPUT ! -i lo -p tcp --dport 15001 -j DROP", ""),
    ("-A INPUT -s 10.0.0.0/8 -p tcp --dport 15001 -j ACCEPT\n-A INPUT -p tcp --dport 15001 -j DROP", ""),
    ("-N SUB\n-A SUB -p tcp --dport 15001 -j DROP", ""),
    ("-N SUB\n-A SUB -j RETURN\n-A INPUT -j SUB\n-A INPUT -j ACCEPT\n-P INPUT DROP", ""),
    (
        "-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 8080 -j ACCEPT\n-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-P INPUT DROP",
        "",
    ),
    ("-A INPUT -i lo -j ACCEPT\n-A INPUT -s 127.0.0.0/8 -j DROP", ""),
    ("-A OUTPUT ! -o lo -m owner ! --uid-owner 1337 -m conntrack --ctstate NEW -j DROP", ""),
    ("-A OUTPUT -o eth0 -m owner --uid-owner 1000 -j DROP", ""),
    ("-A OUTPUT -m owner --uid-owner 4711 -j DROP", ""),
    ("-A OUTPUT -o lo -p tcp -j NFQUEUE --queue-num 7 --queue-bypass", ""),
    ("-A INPUT -p udp -j DROP", ""),
    ("-A INPUT -i lo -p tcp -m limit --limit 5/min -j DROP", ""),
];

#[test]
fn rules_of_iptables_as_packets_meet_them() -> anyhow::Result<()> {
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _app) = (setup.proxy()?, app(&setup)?);
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    for program in ["iptables-nft", "iptables-legacy"] {
        let Some(path) = require_program(program) else { return Ok(()) };
        let change = |line: &str| run(netns.command(&path).arg("-w").args(line.split(' ')), "").map(drop);
        for (rules, words) in IPTABLES {
            let made = rules.lines().try_for_each(change);
            if made.is_ok() || !may_be_missing(rules) {
                made.and_then(|()| expect(&setup, words)).with_context(|| format!("{program} {rules}"))?;
            }
            for line in ["-P INPUT ACCEPT", "-P OUTPUT ACCEPT", "-F", "-X", "-t raw -F"] {
                change(line)?;
            }
        }
    }
    Ok(())
}

/// Chains of nftables and what is said of them.
const NFTABLES: [(&str, &str); 19] = [
    ("inet q { chain o { type filter hook output priority 0; meta skuid != 1337 drop; }; }", STOPS),
    (
        "inet q { set bad { type ipv4_addr; elements = { 10.77.0.2 }; }; chain i { type filter hook input priority 0; ip saddr @bad drop; }; }",
        STOPS,
    ),
    ("inet q { chain i { type filter hook input priority 0; iifname { \"lo\" } drop; }; }", STOPS),
    ("inet q { chain i { type filter hook input priority 0; iifname vmap { \"lo\" : drop }; }; }", STOPS),
    (
        "inet q { chain sub { ip saddr 10.77.0.0/24 tcp flags syn drop; }; chain i { type filter hook input priority 0; iifname \"lo\" jump sub; }; }",
        STOPS,
    ),
    (
        "inet q { chain sub { drop; }; chain i { type filter hook input priority 0; tcp dport vmap { 15001 : goto sub, 22 : accept }; }; }",
        STOPS,
    ),
    (
        "inet q { chain o { type filter hook output priority 0; oifname \"lo\" tcp dport 15001 queue num 3; }; }",
        STOPS,
    ),
    (
        "inet q { chain i { type filter hook input priority 0; policy drop; ct state established,related accept; iifname eth0 accept; }; }",
        STOPS,
    ),
    (
        "ip6 q { chain i { type filter hook input priority 0; policy drop; meta l4proto ipv6-icmp accept; iifname eth0 accept; iifname \"lo\" ip6 saddr ::1 accept; }; }",
        STOPS,
    ),
    ("inet q { chain o { type filter hook output priority 0; tcp sport 15001 drop; }; }", ANSWERS),
    (
        "ip q { chain i { type filter hook input priority 0; policy drop; iifname lo accept; tcp dport { 15001, 15006, 15008 } accept; ct state established accept; }; }",
        ARRIVES,
    ),
    (
        "netdev q { chain i { type filter hook ingress device eth0 priority 0; policy drop; tcp dport 15006 accept; ether type arp accept; }; }",
        ARRIVES,
    ),
    (
        "inet q { chain i { type filter hook input priority 0; iifname != \"lo\" tcp dport 15001 drop; }; }",
        "",
    ),
    ("inet q { flags dormant; chain i { type filter hook input priority 0; tcp dport 15001 drop; }; }", ""),
    ("inet q { chain i { tcp dport 15001 drop; }; }", ""),
    (
        "inet q { chain i { type filter hook input priority 0; policy drop; ct state vmap { established : accept, related : accept }; iifname { lo, eth0 } accept; }; }",
        "",
    ),
    (
        "inet q { chain p { type filter hook prerouting priority -300; fib saddr . iif oif missing drop; fib daddr . iif type != { local, broadcast, multicast } drop; }; }",
        ANSWERS,
    ),
    ("inet q { chain i { type filter hook input priority 0; meta mark != 0 drop; }; }", ""),
    (
        "inet q { chain i { type filter hook input priority 0; iifname lo ct state new limit rate over 100/second drop; }; }",
        "",
    ),
];

/// Rules by a user that no process has; and that of a firewall that lets in nothing, with captures or without them.
#[test]
fn rules_that_are_worth_knowing() -> anyhow::Result<()> {
    let Some(path) = require_program("iptables-legacy") else { return Ok(()) };
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _app) = (setup.proxy()?, app(&setup)?);
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    for (chain, rule, words) in [
        ("OUTPUT", "-m owner --uid-owner 4711 -j REJECT", "what some users send to the proxy"),
        ("OUTPUT", "-m owner --uid-owner 1337 -d 10.96.0.0/16 -j DROP", "what the proxy sends"),
        ("INPUT", "-i eth0 -j DROP", "all that arrives from the network"),
    ] {
        run(netns.command(&path).args(["-w", "-A", chain]).args(rule.split(' ')), "")?;
        let found = setup.expect_well().context(rule)?;
        let is_it = |it: &serde_json::Value| {
            it["kind"] == "netfilter_drops" && it["what"].to_string().contains(words)
        };
        anyhow::ensure!(found.iter().any(is_it), "{rule}: {found:#?}");
        run(netns.command(&path).args(["-w", "-F", chain]), "")?;
    }
    Ok(())
}

#[test]
fn rules_of_nftables_as_packets_meet_them() -> anyhow::Result<()> {
    let Some(nft) = require_program("nft") else { return Ok(()) };
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let (_proxy, _app) = (setup.proxy()?, app(&setup)?);
    setup.attach(&[])?;
    let netns = &setup.world.pod().netns;
    for (table, words) in NFTABLES {
        let loaded = run(netns.command(&nft).args(["-f", "-"]), &format!("table {table}\n"));
        if loaded.is_err() && may_be_missing(table) {
            continue;
        }
        loaded.context(table)?;
        expect(&setup, words).context(table)?;
        run(netns.command(&nft).args(["flush", "ruleset"]), "")?;
    }
    let rewrite = "table inet q { chain o { type filter hook output priority 0; tcp dport 15001 tcp dport set 15099; }; }\n";
    run(netns.command(&nft).args(["-f", "-"]), rewrite)?;
    setup.expect_found("netfilter_redirects", &["tcp to port 15001 rewrite"])?;
    Ok(())
}

/// Questions over UDP and their answers.
#[test]
fn rules_that_stop_dns() -> anyhow::Result<()> {
    let Some(path) = require_program("iptables-legacy") else { return Ok(()) };
    let Some(setup) = Setup::new()? else { return Ok(()) };
    let mut listeners = proxy_listeners(1);
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        listeners.extend([Listen::on((ip, 15053).into()), Listen::udp((ip, 15053).into())]);
    }
    let _proxy = setup.world.pod().serve(PROXY, "proxy", listeners)?;
    setup.attach(&["--redirect-dns", "--capture-all-dns"])?;
    let netns = &setup.world.pod().netns;
    for (rule, words) in [
        ("-p udp --sport 15053 -j DROP", ANSWERS),
        ("-i lo -p udp -j DROP", STOPS),
        ("-p udp --dport 53 -j DROP", ""),
    ] {
        run(netns.command(&path).args(["-w", "-A", "INPUT"]).args(rule.split(' ')), "")?;
        expect(&setup, words).context(rule)?;
        run(netns.command(&path).args(["-w", "-F", "INPUT"]), "")?;
    }
    Ok(())
}
