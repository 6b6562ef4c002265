//! The list parsers, with arbitrary text.

use proptest::prelude::*;

use super::super::parse::*;
use super::*;

const NAME: &str = "--flag";

fn refused<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
    let error = result.expect_err("an error");
    assert!(!error.remedy().is_empty());
    let text = shown(error);
    assert!(text.starts_with(NAME), "{text}");
    text
}

#[test]
fn lists_are_split_and_not_trimmed() {
    assert_eq!(items(",6000,,7000,").collect::<Vec<_>>(), ["6000", "7000"]);
    assert_eq!(items("").count(), 0);
    assert_eq!(items(", ,").collect::<Vec<_>>(), [" "]);
}

#[test]
fn ports_are_single_numbers() {
    assert_eq!(ports(NAME, "6000,7000,"), Ok(vec![6000, 7000]));
    assert_eq!(ports(NAME, "65535,1"), Ok(vec![65535, 1]));
    assert_eq!(port_selection(NAME, "*"), Ok(Selection::All));
    assert_eq!(port_selection(NAME, ","), Ok(Selection::None));
    for (text, why) in [
        ("0", "captured"),
        ("65536", "highest"),
        ("99999999999999999999999999", "highest"),
        ("80, 443", "blank"),
        ("80\n", "blank"),
        ("6000:7000", "ranges"),
        ("6000-7000", "ranges"),
        ("+80", "not a port"),
        ("-1", "ranges"),
        ("080", "octal"),
        ("http", "not a port"),
        ("٣", "not a port"),
        ("*,80", "star"),
        ("0x50", "not a port"),
    ] {
        let error = refused(port_selection(NAME, text));
        assert!(error.contains(why), "{error}");
    }
    assert!(refused(ports(NAME, "*")).contains("star"));
}

#[test]
fn networks_are_cidrs() {
    assert_eq!(cidr(NAME, "127.0.0.1/8").map(|net| net.to_string()), Ok("127.0.0.1/8".into()));
    assert_eq!(cidrs(NAME, "::/0,0.0.0.0/0,").map(|nets| nets.len()), Ok(2));
    assert_eq!(cidr_selection(NAME, ""), Ok(Selection::None));
    assert_eq!(cidr_selection(NAME, "*"), Ok(Selection::All));
    for (text, why) in [
        ("10.0.0.1", "write 10.0.0.1/32"),
        ("fd00::1", "write fd00::1/128"),
        ("10.0.0.0/33", "too long"),
        ("fd00::/129", "too long"),
        ("10.0.0.0/300", "too long"),
        ("10.0.0.0/", "decimal"),
        ("10.0.0.0/08", "decimal"),
        ("10.0.0.0/+8", "decimal"),
        ("10.0.0.0/8/8", "decimal"),
        ("10.0.0.0/255.0.0.0", "decimal"),
        ("10.0.0/8", "IP address"),
        ("010.0.0.0/8", "IP address"),
        ("fe80::%eth0/64", "IP address"),
        ("/8", "IP address"),
        ("name", "not a network"),
        ("10.0.0.0/8, 10.1.0.0/16", "blank"),
        ("*,10.0.0.0/8", "star"),
    ] {
        let error = refused(cidr_selection(NAME, text));
        assert!(error.contains(why), "{text}: {error}");
    }
    assert!(refused(excluded_cidrs(NAME, "*")).contains("cannot be excluded"));
    assert_eq!(excluded_cidrs(NAME, ""), Ok(Vec::new()));
}

#[test]
fn loopback_is_ipv4_with_a_mask_from_8() {
    for text in ["127.0.0.1/32", "127.0.0.0/8", "127.1.2.3/16"] {
        assert_eq!(loopback(NAME, text).map(|net| net.to_string()), Ok(text.into()));
    }
    for text in ["127.0.0.0/7", "128.0.0.1/32", "::1/128", "127.0.0.1", "", "*", "127.0.0.1/33"] {
        refused(loopback(NAME, text));
    }
}

#[test]
fn numbers() {
    assert_eq!(ids(NAME, "1337,0,4294967294"), Ok(vec![1337, 0, 4294967294]));
    for text in ["4294967295", "4294967296", "-1", "istio-proxy", "0-500", "01", "*", "1 "] {
        refused(ids(NAME, text));
    }
    assert_eq!(mark(NAME, "4294967295"), Ok(u32::MAX));
    for text in ["0", "4294967296", "0x539", ""] {
        refused(mark(NAME, text));
    }
    assert_eq!(table(NAME, "133"), Ok(133));
    for text in ["0", "253", "254", "255", "main", ""] {
        refused(table(NAME, text));
    }
}

#[test]
fn a_value_may_begin_with_a_dash() {
    let flags = flags(&["-c", "-x", "-k", "--netns"]);
    let policy = resolved(&flags).policy;
    assert_eq!(
        (policy.exclude_interfaces, policy.virtual_interfaces),
        (vec!["-x".into()], vec!["--netns".into()])
    );
}

#[test]
fn interface_names() {
    assert_eq!(interfaces(NAME, "eth0,,vm-1.2@x"), Ok(vec!["eth0".into(), "vm-1.2@x".into()]));
    for text in ["eth+", "..", ".", "a/b", "eth0:1", "sixteen-bytes-xx", "eth0, eth1", "*"] {
        refused(interfaces(NAME, text));
    }
}

/// Text that comes close to a list more often than chance would have it.
fn listlike() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[0-9a-f:./,*+ -]{0,40}", "([0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,3},?){0,4}"]
}

proptest! {
    #[test]
    fn no_parser_panics(text in listlike()) {
        // An accepted list holds as many entries as the text has items.
        let count = items(&text).count();
        if let Ok(ports) = ports(NAME, &text) { prop_assert_eq!(ports.len(), count); }
        if let Ok(nets) = cidrs(NAME, &text) { prop_assert_eq!(nets.len(), count); }
        if let Ok(ids) = ids(NAME, &text) { prop_assert_eq!(ids.len(), count); }
        if let Ok(names) = interfaces(NAME, &text) { prop_assert_eq!(names.len(), count); }
        let _ = (port_selection(NAME, &text), cidr_selection(NAME, &text), excluded_cidrs(NAME, &text));
        let _ = (loopback(NAME, &text), mark(NAME, &text), table(NAME, &text), parse_bool(&text));
        let _ = file::parse(&text);
    }

    #[test]
    fn no_flag_panics(texts in proptest::collection::vec(listlike(), 16), istio: bool) {
        let longs = table::cases().map(|(option, _)| format!("--{}", option.name()));
        let args: Vec<String> = longs.zip(&texts).map(|(long, text)| format!("{long}={text}")).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut flags = flags(&args);
        flags.own.istio_defaults = istio;
        let _ = resolve(&flags, &pod());
    }

    #[test]
    fn ports_survive(ports in proptest::collection::vec(1u16.., 0..20)) {
        let text = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        prop_assert_eq!(super::super::parse::ports(NAME, &text), Ok(ports));
    }

    #[test]
    fn networks_survive(nets in proptest::collection::vec((any::<IpAddr>(), 0u8..=128), 0..20)) {
        let nets: Vec<ipnet::IpNet> =
            nets.into_iter().filter_map(|(addr, bits)| ipnet::IpNet::new(addr, bits).ok()).collect();
        let text = nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        prop_assert_eq!(cidrs(NAME, &text), Ok(nets));
    }
}
