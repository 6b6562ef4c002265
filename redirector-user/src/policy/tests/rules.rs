//! What a combination of settings means.

use super::super::options::whole::detect_ipv6;
use super::*;

fn refused(flags: &CaptureFlags, facts: &dyn TargetInfo) -> String {
    shown(resolve(flags, facts).expect_err("an error"))
}

#[test]
fn the_command_of_the_injector_is_the_sidecar_default() {
    let line = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"];
    let line = [&line[..], &["-d", "15090,15021,15020"]].concat();
    assert_eq!(resolved(&flags(&line)), resolved(&flags(&[])));
    let istio = resolved(&flags(&[&line[..], &["--istio-defaults", "--ipv6", "on"]].concat()));
    assert_eq!(istio.policy, Policy::default());
}

#[test]
fn the_proxys_users_and_groups() {
    let pod_with_user = || Fake { users: BTreeMap::from([("istio-proxy", 101), ("envoy", 102)]), ..pod() };
    let owners = |args: &[&str], variables: &[(&str, &str)]| {
        let resolved = resolve(&flags_with(args, variables), &pod_with_user()).expect("a policy");
        (resolved.policy.proxy_uids, resolved.policy.proxy_gids, resolved.notes.len())
    };
    let same = |ids: &[u32]| (ids.to_vec(), ids.to_vec(), 0);
    assert_eq!(owners(&[], &[]), same(&[1337]), "the sidecar default names its user");
    assert_eq!(owners(&["--istio-defaults"], &[]), same(&[101]));
    assert_eq!(owners(&["-u", ""], &[]), same(&[101]));
    assert_eq!(owners(&["-u", ""], &[("ENVOY_USER", "envoy")]), same(&[102]));
    assert_eq!(owners(&["-u", ""], &[("ENVOY_USER", "nobody")]), (vec![1337], vec![1337], 1));
    assert_eq!(owners(&["-u", ""], &[("ENVOY_USER", "")]), (vec![1337], vec![1337], 1));
    assert_eq!(owners(&["-u", "9,8,9"], &[]), same(&[9, 8]), "their order matters");
    assert_eq!(owners(&["-u", "9", "-g", ""], &[]), same(&[9]));
    assert_eq!(owners(&["-g", "7"], &[]), (vec![1337], vec![7], 0));
    assert_eq!(owners(&["-u", ",", "-g", ","], &[]), (vec![], vec![], 1), "warned of a loop");
    assert_eq!(owners(&["-u", ",", "-g", "5"], &[]), (vec![], vec![5], 0));
}

#[test]
fn only_tproxy_is_tproxy() {
    for (text, mode, notes) in [
        ("TPROXY", Mode::Tproxy, 0),
        ("REDIRECT", Mode::Redirect, 0),
        ("", Mode::Redirect, 0),
        ("tproxy", Mode::Redirect, 1),
        ("NONE", Mode::Redirect, 1),
        ("TPROXY ", Mode::Redirect, 1),
    ] {
        let resolved = resolved(&flags(&["-m", text]));
        assert_eq!((resolved.policy.mode, resolved.notes.len()), (mode, notes), "{text:?}");
    }
}

#[test]
fn tproxy_numbers_matter_in_tproxy_only() {
    assert_eq!(abouts(&resolved(&flags(&["-t", "", "-r", ""])).notes).len(), 2);
    let both = resolved(&flags(&["-m", "TPROXY", "-t", "7", "-r", "8"]));
    assert_eq!((both.policy.tproxy_mark, both.policy.tproxy_table, both.notes.len()), (7, 8, 0));
    for flag in ["-t", "-r"] {
        refused(&flags(&["-m", "TPROXY", flag, ""]), &pod());
        refused(&flags(&["-m", "REDIRECT", flag, "x"]), &pod());
    }
}

#[test]
fn exclusions_that_cannot_apply() {
    let resolved = |args: &[&str]| super::resolved(&flags(args));
    let list = resolved(&["-b", "80", "-d", "22"]);
    assert_eq!(abouts(&list.notes), ["--istio-local-exclude-ports"]);
    assert_eq!(list.policy, resolved(&["-b", "80"]).policy, "equal in effect is equal");
    assert_eq!(resolved(&["-b", "80"]).notes, []);
    assert_eq!(resolved(&["-b", "*", "-d", "22"]).policy.inbound_exclude_ports, [22]);
    assert_eq!(resolved(&["-b", "*"]).policy.inbound_exclude_ports, [15020, 15021, 15090]);
    assert!(refused(&flags(&["-x", "*"]), &pod()).contains("cannot be excluded"));
}

#[test]
fn dns() {
    let dns = |args: &[&str], servers: Option<Vec<IpAddr>>| {
        let facts = Fake { nameservers: servers, ..pod() };
        let resolved = resolve(&flags(args), &facts).expect("a policy");
        (resolved.policy.dns, resolved.notes.len())
    };
    let two = || Some(ips(&["fd00::a", "10.96.0.10", "fd00::a"]));
    let sorted = Dns::Servers(ips(&["10.96.0.10", "fd00::a"]));
    assert_eq!(dns(&[], None), (Dns::Off, 0));
    assert_eq!(dns(&["--redirect-dns"], two()), (sorted, 0));
    assert_eq!(dns(&["--redirect-dns"], Some(Vec::new())), (Dns::Off, 1), "off, and says so");
    assert_eq!(
        dns(&["--redirect-dns", "--capture-all-dns"], None),
        (Dns::All, 0),
        "resolv.conf is not asked"
    );
    assert_eq!(dns(&["--capture-all-dns"], two()), (Dns::Off, 1), "needs --redirect-dns");
    assert_eq!(dns(&["--redirect-dns=false", "--capture-all-dns"], two()), (Dns::Off, 1));
    let error = refused(&flags(&["--redirect-dns"]), &Fake::default());
    assert!(error.starts_with("--redirect-dns: needs the target's resolv.conf"), "{error}");
}

#[test]
fn owner_groups() {
    const LIST: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
    const EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
    let groups = |variables: &[(&str, &str)]| {
        let resolved = resolved(&flags_with(&[], variables));
        (resolved.policy.owner_groups, resolved.policy.owner_groups_exclude, resolved.notes.len())
    };
    assert_eq!(groups(&[]), (Selection::All, vec![], 0));
    assert_eq!(groups(&[(LIST, "*"), (EXCLUDE, "app,7,7")]), (Selection::All, vec![7, 2000], 0));
    assert_eq!(groups(&[(LIST, "app,202,")]), (Selection::List(vec![202, 2000]), vec![], 0));
    assert_eq!(groups(&[(LIST, "")]), (Selection::None, vec![], 0), "no group's traffic is captured");
    assert_eq!(groups(&[(LIST, "1"), (EXCLUDE, "whoever")]), (Selection::List(vec![1]), vec![], 1));

    let many = |count: u32| (0..count).map(|gid| gid.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(groups(&[(LIST, &many(64))]).0.items().len(), 64);
    assert_eq!(groups(&[(EXCLUDE, &many(200))]).1.len(), 200, "the limit is that of the included ones");
    for (text, facts, why) in [
        (many(65), pod(), "more than the 64"),
        ("1,".repeat(65), pod(), "more than the 64"),
        ("nobody".into(), pod(), "is no group of the target; give a number"),
        ("app".into(), Fake::default(), "give a number, or use --pid"),
        ("1,*".into(), pod(), "star"),
        ("1, 2".into(), pod(), "blank"),
        ("100-200".into(), pod(), "is no group of the target"),
        ("4294967295".into(), pod(), "highest"),
    ] {
        let error = refused(&flags_with(&[], &[(LIST, &text)]), &facts);
        assert!(error.starts_with(LIST) && error.contains(why), "{error}");
    }
    let error = refused(&flags_with(&[], &[(EXCLUDE, "app")]), &Fake::default());
    assert!(error.starts_with(EXCLUDE) && error.contains("give a number"), "{error}");
}

#[test]
fn ipv6() {
    let target = |addresses: &[&str]| Fake { addresses: Some(ips(addresses)), ..pod() };
    let ipv6 = |args: &[&str], addresses: &[&str]| {
        resolve(&flags(args), &target(addresses)).map(|resolved| resolved.policy.ipv6)
    };
    let v4_first = ["127.0.0.1", "10.0.0.1", "::1", "fd00::1", "fe80::1"];
    assert_eq!(ipv6(&[], &v4_first), Ok(true), "redirector's own default is on");
    assert_eq!(ipv6(&["--ipv6", "auto"], &v4_first), Ok(false));
    assert_eq!(ipv6(&["--istio-defaults"], &v4_first), Ok(false));
    assert_eq!(ipv6(&["--istio-defaults", "--dual-stack"], &v4_first), Ok(true));
    assert_eq!(ipv6(&["--istio-defaults", "--ipv6", "on"], &v4_first), Ok(true));
    assert_eq!(ipv6(&["--ipv6", "off"], &["fd00::1"]), Ok(false));
    assert_eq!(ipv6(&["--ipv6=auto"], &["fe80::1", "169.254.1.1", "fd00::1", "10.0.0.1"]), Ok(true));
    assert_eq!(ipv6(&["--ipv6=auto"], &["::ffff:10.0.0.1", "fd00::1"]), Ok(false), "mapped is IPv4");
    assert_eq!(ipv6(&["--ipv6=auto", "--dual-stack"], &["10.0.0.1"]), Ok(false));
    assert_eq!(detect_ipv6(&ips(&["224.0.0.1", "ff02::1", "ff12::1"]), false), None);
    for facts in [target(&["127.0.0.1", "fe80::1"]), Fake::default()] {
        let error = refused(&flags(&["--istio-defaults"]), &facts);
        assert!(error.starts_with("--ipv6 auto: ") && error.contains("--ipv6 on or --ipv6 off"), "{error}");
    }
    let ignored = resolved(&flags(&["--dual-stack"]));
    assert_eq!(abouts(&ignored.notes), ["--dual-stack"]);
}

#[test]
fn loopback_range() {
    const NAME: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";
    let policy = resolved(&flags_with(&[], &[(NAME, "127.0.0.1/8")])).policy;
    assert_eq!(policy.loopback_cidr.to_string(), "127.0.0.0/8");
    assert!(refused(&flags_with(&[], &[(NAME, "10.0.0.0/8")]), &pod()).starts_with(NAME));
}

#[test]
fn requests() {
    let args = ["-n", "--skip-rule-apply", "--cleanup-only", "--run-validation", "--network-namespace=/ns"];
    let args = [&args[..], &["--iptables-probe-port=7", "--probe-timeout=1.5s"]].concat();
    let requests = resolved(&flags(&args)).requests;
    let all = Requests {
        dry_run: true,
        skip_apply: true,
        cleanup_only: true,
        run_validation: true,
        probe_port: 7,
        probe_timeout: std::time::Duration::from_millis(1500),
        network_namespace: Some("/ns".into()),
    };
    assert_eq!(requests, all);
    let none = resolved(&flags(&["-n=false", "--skip-rule-apply=f", "--network-namespace="])).requests;
    assert_eq!(none, Requests::default());
    for (bad, why) in
        [("--probe-timeout=5", "is not a duration"), ("--iptables-probe-port=0", "is not a port")]
    {
        let error = refused(&flags(&[bad]), &pod());
        assert!(error.contains(why), "{error}");
    }
    let error = refused(&flags(&["--force-iptables-binary=nftables"]), &pod());
    assert!(error.contains("not an iptables variant"), "{error}");
}

#[test]
fn redirectors_own() {
    assert_eq!(resolved(&flags(&["--max-connections", "7"])).policy.max_connections, 7);
    for bad in ["0", "16777217", "-1", "many"] {
        assert!(try_flags(&["--max-connections", bad]).is_err(), "{bad}");
    }
    for (given, is) in [("0", 0), ("1048576", 1 << 20)] {
        assert_eq!(resolved(&flags(&["--max-destinations", given])).policy.max_destinations, is);
    }
    for bad in ["1048577", "-1", "many"] {
        assert!(try_flags(&["--max-destinations", bad]).is_err(), "{bad}");
    }
    assert!(try_flags(&["--istio-defaults", "--policy", "x"]).is_err());
    assert!(try_flags(&["--ipv6", "yes"]).is_err());
}

#[test]
fn a_verb_keeps_its_description_and_gets_grouped_help() {
    #[derive(clap::Parser)]
    #[command(about = "Attaches.")]
    struct Verb {
        #[command(flatten)]
        _capture: CaptureFlags,
    }
    let mut verb = <Verb as clap::CommandFactory>::command();
    verb.clone().debug_assert();
    let help = verb.render_long_help().to_string();
    assert!(help.starts_with("Attaches."), "{help}");
    for text in
        ["Inbound capture:", "Outbound capture:", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "[env: PROXY_UID"]
    {
        assert!(help.contains(text), "{text}");
    }
}

#[test]
fn flags_can_be_filled_by_code() {
    let name = "traffic.sidecar.istio.io/includeInboundPorts";
    let mut flags = CaptureFlags::default();
    flags.set(&super::super::options::ENVOY_PORT, FlagInput::new(name, "x"));
    assert!(refused(&flags, &pod()).starts_with(name));
}
