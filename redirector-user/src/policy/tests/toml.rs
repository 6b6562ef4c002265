//! Policy files in TOML.

use super::*;

#[test]
fn an_empty_file_is_the_sidecar_default() {
    for text in ["", "\n", "# nothing\n"] {
        assert_eq!(file::parse(text), Ok(Policy::default()), "{text:?}");
    }
}

#[test]
fn toml_and_json_say_the_same() {
    let toml = r#"
        # Two ports, and the resolver.
        proxy_uids = [7, 5]
        mode = "tproxy"
        inbound_ports = [443, 80]
        outbound_cidrs = [
            "10.1.2.3/8",
            "fd00::1/8",
        ]
        dns = ["10.96.0.10"]
        owner_groups = "*"
        loopback_cidr = "127.0.0.1/8"
        ipv6 = false
    "#;
    let json = r#"{"proxy_uids": [7, 5], "mode": "tproxy", "inbound_ports": [80, 443],
        "outbound_cidrs": ["10.0.0.0/8", "fd00::/8"], "dns": ["10.96.0.10"], "owner_groups": "all",
        "loopback_cidr": "127.0.0.0/8", "ipv6": false}"#;
    assert_eq!(file::parse(toml), file::parse(json));
    assert!(file::parse(toml).is_ok());
}

#[test]
fn bad_files_are_refused_with_a_reason() {
    for (text, why) in [
        ("outbond_port = 1", "unknown field `outbond_port`"),
        ("outbound_port = 0", "outbound_port: \"0\" is not a port"),
        ("inbound_ports = \"80\"", "expected \"all\", \"none\" or a list"),
        ("outbound_cidrs = [\"10.0.0.0\"]", "outbound_cidrs"),
        ("ipv6 = ", "line 1"),
        ("ipv6", "line 1"),
    ] {
        let error = file::parse(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn policies_survive_toml(policy in policies::any_policy()) {
        let mut normal = policy.clone();
        normal.normalise();
        let text = ::toml::to_string(&policy).expect("TOML");
        proptest::prop_assert_eq!(file::parse(&text), Ok(normal));
    }
}
