//! `redirector import`: the rules that the oracle loads into netfilter, read back, are the policy they were made of.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::oracle::options::Cidrs;
use redirector_tests::harness::oracle::options::Ports;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::world::netns::Netns;
use serde_json::Value;

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// Each option alone and some of them together.
fn variants() -> Vec<(&'static str, Options)> {
    let variants: [(_, fn(&mut Options)); 23] = [
        ("the sidecar default", |_| {}),
        ("ports of the proxy", |o| (o.envoy_port, o.inbound_capture_port, o.inbound_tunnel_port) = (1, 2, 3)),
        ("users and groups", |o| (o.proxy_uids, o.proxy_gids) = (vec![1337, 7], vec![8, 1337])),
        ("no IPv6", |o| o.ipv6 = false),
        ("inbound list", |o| o.inbound_ports = Ports::List(vec![443, 80, 15008])),
        ("inbound nothing", |o| o.inbound_ports = Ports::List(Vec::new())),
        ("inbound without exclusions", |o| o.inbound_ports_exclude.clear()),
        ("outbound list", |o| {
            o.outbound_cidrs = Cidrs::List(list(&["10.0.0.0/8", "fd00::/16", "10.1.2.3/32"]))
        }),
        ("outbound of one family", |o| o.outbound_cidrs = Cidrs::List(list(&["0.0.0.0/0"]))),
        ("outbound nothing", |o| o.outbound_cidrs = Cidrs::List(Vec::new())),
        ("outbound loopback", |o| o.outbound_cidrs = Cidrs::List(list(&["127.0.0.0/8", "10.0.0.0/8"]))),
        ("outbound exclusions", |o| {
            o.outbound_cidrs_exclude = list(&["10.0.0.0/8", "fd00:1::/32", "127.0.0.1/32"])
        }),
        ("outbound ports", |o| (o.outbound_ports, o.outbound_ports_exclude) = (vec![5432, 53], vec![22, 53])),
        ("excluded interfaces", |o| o.exclude_interfaces = list(&["eth1", "net0"])),
        ("virtual interfaces", |o| o.virtual_interfaces = list(&["vnet0", "vnet1"])),
        ("virtual interfaces and a list", |o| {
            o.virtual_interfaces = list(&["vnet0", "eth1"]);
            o.exclude_interfaces = list(&["eth1"]);
            o.outbound_cidrs = Cidrs::List(list(&["10.0.0.0/8", "fd00::/16"]));
        }),
        ("included groups", |o| o.owner_groups = Some(vec![202, 101])),
        ("no groups", |o| o.owner_groups = Some(Vec::new())),
        ("excluded groups", |o| o.owner_groups_exclude = vec![888, 999, 1337]),
        ("a loopback range", |o| o.loopback_cidr = "127.0.0.0/8".into()),
        ("all DNS", |o| (o.redirect_dns, o.capture_all_dns) = (true, true)),
        ("DNS servers", servers),
        ("many together", |o| {
            servers(o);
            o.proxy_uids = vec![7, 1337];
            o.inbound_tunnel_port = 53;
            o.inbound_ports_exclude = vec![53, 15020];
            o.outbound_cidrs = Cidrs::List(list(&["::1/128", "192.168.0.0/16"]));
            o.outbound_cidrs_exclude = list(&["192.168.1.0/24"]);
            o.outbound_ports = vec![53];
            o.owner_groups_exclude = vec![5];
            o.exclude_interfaces = list(&["eth1"]);
        }),
    ];
    let options = |(name, change): (_, fn(&mut Options))| {
        let mut options = Options::sidecar();
        change(&mut options);
        (name, options)
    };
    variants.map(options).into()
}

fn servers(options: &mut Options) {
    options.redirect_dns = true;
    options.dns_servers = list(&["10.96.0.10", "127.0.0.53", "fd00::a"]);
}

/// The policy that flags mean.
fn meant(options: &Options) -> anyhow::Result<Value> {
    let mut arguments = list(&["explain", "--to", "192.0.2.1:80"]);
    arguments.extend(options.flags());
    if !options.dns_servers.is_empty() {
        arguments.extend(["--resolver".to_owned(), options.dns_servers.join(",")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let run = redirector(&arguments, &options.environment())?.expect(exit::OK)?;
    Ok(run.json()?["policy"].clone())
}

/// The rules in netfilter.
fn saved(netns: &Netns) -> anyhow::Result<String> {
    let mut text = String::new();
    for program in ["iptables-save", "ip6tables-save"] {
        text += &run(&mut netns.command(program), "")?;
    }
    Ok(text)
}

/// The same as a listing.
fn listed(netns: &Netns) -> anyhow::Result<String> {
    let mut text = String::new();
    for program in ["iptables", "ip6tables"] {
        text += &run(netns.command(program).args(["-t", "nat", "-vnL"]), "")?;
    }
    Ok(text)
}

fn imported(text: &str) -> anyhow::Result<Value> {
    let file = std::env::temp_dir().join(names::unique());
    fs::write(&file, text)?;
    let run = redirector(&["import", &file.display().to_string()], &[]);
    fs::remove_file(&file)?;
    run?.expect(exit::OK).with_context(|| text.to_owned())?.json()
}

#[test]
fn rules_in_netfilter_give_the_policy_they_were_made_of() -> anyhow::Result<()> {
    require_root!();
    for (name, options) in variants() {
        let netns = Netns::new(&names::unique())?;
        oracle::install(&netns, &options)?;
        let expected = meant(&options)?;
        let layouts = [("saved", saved(&netns)?), ("listed", listed(&netns)?)];
        for (layout, text) in layouts {
            let import = imported(&text).with_context(|| format!("{name}, {layout}"))?;
            let policy = &import["policy"];
            ensure!(
                *policy == expected,
                "{name}, {layout}:\n{text}\nimported: {policy:#}\nexpected: {expected:#}"
            );
        }
    }
    Ok(())
}

/// Flags and import mean the same policy.
#[test]
fn the_flags_give_the_policy() -> anyhow::Result<()> {
    require_root!();
    for (name, options) in variants() {
        let netns = Netns::new(&names::unique())?;
        oracle::install(&netns, &options)?;
        let import = imported(&saved(&netns)?)?;
        let word =
            |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("{value} is no word"));
        let mut arguments = list(&["explain", "--to", "192.0.2.1:80"]);
        for flag in import["flags"].as_array().context("no flags")? {
            arguments.push(word(flag)?);
        }
        if !options.dns_servers.is_empty() {
            arguments.extend(["--resolver".to_owned(), options.dns_servers.join(",")]);
        }
        let mut environment = Vec::new();
        for (name, value) in import["variables"].as_object().context("no variables")? {
            environment.push((name.as_str(), word(value)?));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let policy = redirector(&arguments, &environment)?.expect(exit::OK)?.json()?["policy"].clone();
        ensure!(policy == import["policy"], "{name}: {arguments:?}\n{policy:#}");
    }
    Ok(())
}

/// Exit codes, and that a rule which says something else is named.
#[test]
fn what_cannot_be_expressed_is_named() -> anyhow::Result<()> {
    require_root!();
    let netns = Netns::new(&names::unique())?;
    oracle::install(&netns, &Options::sidecar())?;
    oracle::insert(&netns, "ISTIO_OUTPUT -p tcp --dport 9999 -s 10.0.0.1 -j RETURN")?;
    let text = saved(&netns)?;
    let file = std::env::temp_dir().join(names::unique());
    fs::write(&file, &text)?;
    let path = file.display().to_string();
    let run = redirector(&["import", &path], &[])?.expect(exit::FAILED)?;
    let rules = run.json()?["inexpressible"].clone();
    ensure!(rules.as_array().is_some_and(|rules| rules.len() == 1), "{rules:#}");
    let rule = rules[0]["rule"].as_str().unwrap_or_default();
    ensure!(rule.contains("-s 10.0.0.1/32") && rule.contains("--dport 9999"), "{rules:#}");

    fs::write(&file, "nothing of iptables\n")?;
    redirector(&["import", &path], &[])?.expect(exit::USAGE)?;
    fs::write(&file, "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")?;
    redirector(&["import", &path], &[])?.expect(exit::NOTHING)?;
    fs::remove_file(&file)?;
    redirector(&["import", &path], &[])?.expect(exit::USAGE)?;

    // From standard input, as text.
    let mut command = Command::new(redirector_tests::harness::product::binary());
    let piped = output(command.args(["import", "-"]), &text)?;
    ensure!(piped.status.code() == Some(exit::FAILED), "{piped:?}");
    let stdout = String::from_utf8_lossy(&piped.stdout);
    ensure!(stdout.starts_with("redirector attach --pid PID -p 15001 -z 15006 -u 1337 "), "{stdout}");
    Ok(())
}
