//! Variables, read by clap from a real environment in a process of its own.

use std::process::Command;

use super::super::options::Empty;
use super::table::{SWITCHES, VALUES, cases, expectations, variable};
use super::*;

const ARGS: &str = "REDIRECTOR_TEST_ARGS";
const MARK: &str = "resolved: ";

/// What a process of its own makes of arguments and environment: the policy and what its notes are about.
fn run(args: &[&str], variables: &[(&str, &str)]) -> Result<(Policy, Vec<String>), String> {
    let module = module_path!().split_once("::").expect("a crate").1;
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", &format!("{module}::child"), "--nocapture", "--test-threads=1"])
        .env_clear()
        .envs(variables.iter().copied())
        .env(ARGS, serde_json::to_string(args).expect("JSON"))
        .output()
        .expect("a child");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let found = text.split_once(MARK).unwrap_or_else(|| panic!("{args:?} {variables:?}: {text}")).1;
    serde_json::from_str(found.lines().next().expect("a line")).expect("JSON of the child")
}

/// The other side of [`run`]; does nothing on its own.
#[test]
fn child() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let args: Vec<String> = serde_json::from_str(&args).expect("JSON");
    let result = command()
        .try_get_matches_from(args)
        .and_then(|matches| CaptureFlags::from_arg_matches(&matches))
        .map_err(|error| error.to_string())
        .and_then(|flags| resolve(&flags, &pod()).map_err(shown))
        .map(|resolved| {
            let abouts: Vec<String> = resolved.notes.into_iter().map(|note| note.about).collect();
            (resolved.policy, abouts)
        });
    println!("\n{MARK}{}", serde_json::to_string(&result).expect("JSON"));
}

#[test]
fn every_value_from_its_variable() {
    for (option, example) in cases() {
        let Some(name) = option.variable else { continue };
        for (base, policy) in expectations(example.means) {
            assert_eq!(run(base, &[(name, example.value)]).expect(name).0, policy, "{name} {base:?}");
        }
    }
    let unread = run(&[], &[("ENVOY_PORT", "1")]).expect("a policy");
    assert_eq!(unread.0, Policy::default(), "envoy-port is a flag only");
}

#[test]
fn an_empty_variable_is_given() {
    for (option, example) in cases() {
        let Some(name) = option.variable else { continue };
        match example.empty {
            Empty::Means(change) => {
                for (base, policy) in expectations(change) {
                    assert_eq!(run(base, &[(name, "")]).expect(name).0, policy, "{name} {base:?}");
                }
            }
            Empty::Refused => {
                let error = run(&[], &[(name, "")]).expect_err(name);
                assert!(error.starts_with(&format!("{name}: \"\" ")), "{error}");
            }
        }
    }
    let change = |p: &mut Policy| p.owner_groups = Selection::None;
    for (base, policy) in expectations(change) {
        assert_eq!(
            run(base, &[("ISTIO_OUTBOUND_OWNER_GROUPS", "")]).expect("a policy").0,
            policy,
            "{base:?}"
        );
    }
    let error = run(&[], &[("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "")]).expect_err("no network");
    assert!(error.starts_with("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: \"\" "), "{error}");
}

#[test]
fn every_switch_from_its_variables() {
    for (long, _, second, on, off) in SWITCHES {
        let own = variable(long);
        for name in [Some(own.as_str()), second].into_iter().flatten() {
            for (text, change) in [("true", on), ("1", on), ("false", off), ("F", off)] {
                for (base, policy) in expectations(change) {
                    assert_eq!(run(base, &[(name, text)]).expect(name).0, policy, "{name}={text} {base:?}");
                }
            }
            // The original drops the error of a variable it cannot read.
            let plain = Policy::default();
            assert_eq!(run(&[], &[(name, "")]), Ok((plain.clone(), Vec::new())), "{name}");
            assert_eq!(run(&[], &[(name, "yes")]), Ok((plain, vec![name.to_owned()])), "{name}");
        }
    }
}

#[test]
fn operational_values_from_their_variables() {
    for (long, value) in VALUES {
        let name = variable(long);
        assert_eq!(run(&[], &[(&name, value)]), Ok((Policy::default(), vec![name.clone()])));
        assert_eq!(run(&[], &[(&name, "")]), Ok((Policy::default(), Vec::new())));
    }
}

#[test]
fn a_flag_wins_over_its_variable_even_if_empty() {
    let variables = [("ISTIO_SERVICE_CIDR", "10.0.0.0/8"), ("ISTIO_META_DNS_CAPTURE", "true")];
    let policy = run(&["-i", "", "--redirect-dns=false"], &variables).expect("a policy").0;
    assert_eq!((policy.outbound_cidrs, policy.dns), (Selection::None, Dns::Off));
}

#[test]
fn the_second_variable_wins_over_the_first() {
    let dns = |first, second| {
        let variables = [("REDIRECT_DNS", first), ("ISTIO_META_DNS_CAPTURE", second)];
        run(&[], &variables).expect("a policy").0.dns != Dns::Off
    };
    assert!(dns("false", "true"));
    assert!(!dns("true", "false"));
    assert!(dns("true", "nonsense"), "what cannot be read does not count");
    assert!(dns("true", ""));
}

#[test]
fn errors_name_the_variable() {
    let error = run(&[], &[("ISTIO_INBOUND_PORTS", "80, 443")]).expect_err("a blank");
    assert!(error.starts_with("ISTIO_INBOUND_PORTS: \" 443\" has a blank in it; "), "{error}");
    let notes = run(&[], &[("INBOUND_INTERCEPTION_MODE", "TPROXY")]).expect("a policy");
    assert_eq!(notes, (Policy::default(), vec!["INBOUND_INTERCEPTION_MODE".to_owned()]));
}
