use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn read(command: Command, variables: &[(&str, &str)]) -> Result<Variables> {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    Variables::read(command, |name| variables.get(name).map(|text| (*text).to_owned()))
}

const ADD: [(&str, &str); 3] =
    [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/x")];

#[test]
fn the_pod_of_the_arguments() {
    let with = |arguments: &'static str| {
        let mut all = ADD.to_vec();
        all.push(("CNI_ARGS", arguments));
        read(Command::Add, &all)
    };
    let full = with(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1",
    );
    let pod = PodName { namespace: "shop".into(), name: "web-0".into(), uid: Some("u-1".into()) };
    assert_eq!(full.unwrap().pod, Some(pod.clone()));
    let old = with("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0").unwrap();
    assert_eq!(old.pod, Some(PodName { uid: None, ..pod }));
    assert_eq!(with("").unwrap().pod, None);
    for wrong in [
        "K8S_POD_NAME=a",
        "nonsense",
        "K8S_POD_NAMESPACE=../..;K8S_POD_NAME=a",
        "K8S_POD_NAMESPACE=..;K8S_POD_NAME=a",
        "K8S_POD_UID=A/b",
    ] {
        assert_eq!(with(wrong).unwrap_err().code, code::INVALID_ENVIRONMENT, "{wrong}");
    }
}

#[test]
fn what_each_command_needs() {
    for (missing, _) in ADD {
        let rest: Vec<_> = ADD.into_iter().filter(|(name, _)| *name != missing).collect();
        for command in [Command::Add, Command::Check] {
            assert!(read(command, &rest).unwrap_err().details.contains(missing));
        }
        assert_eq!(read(Command::Del, &rest).is_ok(), missing == "CNI_NETNS");
    }
    for command in [Command::Gc, Command::Status, Command::Version] {
        read(command, &[]).unwrap();
    }
    for wrong in [("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "much-too-long-a-name"), ("CNI_IFNAME", "a/b")]
    {
        let mut all = ADD.to_vec();
        all.push(wrong);
        assert_eq!(read(Command::Add, &all).unwrap_err().code, code::INVALID_ENVIRONMENT, "{wrong:?}");
    }
}

#[test]
fn configurations() {
    let good = r#"{"cniVersion":"1.0.0","name":"n","type":"redirector","prevResult":{"a" : 1}}"#;
    let config = Config::parse(good, Command::Add).unwrap();
    assert_eq!(config.previous.unwrap().get(), r#"{"a" : 1}"#);
    let code_of = |text: &str, command| Config::parse(text, command).unwrap_err().code;
    assert_eq!(code_of("", Command::Add), code::DECODING);
    assert_eq!(code_of("[]", Command::Add), code::DECODING);
    assert_eq!(code_of(&good.replace("1.0.0", "2.0.0"), Command::Add), code::INCOMPATIBLE_VERSION);
    assert_eq!(code_of(&good.replace("1.0.0", "0.2.0"), Command::Add), code::INCOMPATIBLE_VERSION);
    assert_eq!(code_of(good, Command::Status), code::INCOMPATIBLE_VERSION);
    assert_eq!(code_of(&good.replace("1.0.0", "0.3.1"), Command::Check), code::INCOMPATIBLE_VERSION);
    assert_eq!(code_of(&good.replace("prevResult", "other"), Command::Add), code::INVALID_CONFIG);
    assert_eq!(code_of(&good.replace(r#"{"a" : 1}"#, "null"), Command::Add), code::INVALID_CONFIG);
    assert_eq!(code_of(&good.replace(r#""n""#, r#""""#), Command::Add), code::INVALID_CONFIG);
    for version in CNI_VERSIONS {
        Config::parse(&good.replace("1.0.0", version), Command::Add).unwrap();
    }
    // Nothing is needed to clean up.
    Config::parse(&good.replace("prevResult", "other"), Command::Del).unwrap();
}

proptest! {
    #[test]
    fn no_input_makes_it_panic(text in ".*", arguments in ".*") {
        let _ = Config::parse(&text, Command::Add);
        let _ = read(Command::Add, &[("CNI_ARGS", &arguments), ADD[0], ADD[1], ADD[2]]);
    }
}

/// Only the whole of a pod's annotations can say that one is missing.
#[test]
fn what_annotations_say_for_certain() {
    let of = |runtime: &str| {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","prevResult":{{}}{runtime}}}"#);
        Config::parse(&text, Command::Add).unwrap().is_not_injected()
    };
    let told = |annotations: &str| of(&format!(r#","runtimeConfig":{{"{POD_ANNOTATIONS}":{annotations}}}"#));
    let kubelets = r#""kubernetes.io/config.source":"api""#;
    assert!(told(&format!("{{{kubelets}}}")));
    assert!(told(&format!(r#"{{{kubelets},"sidecar.istio.io/inject":"true"}}"#)));
    for unsure in
        ["null", "{}", "[]", r#"{"a":"b"}"#, &format!(r#"{{{kubelets},"sidecar.istio.io/status":""}}"#)]
    {
        assert!(!told(unsure), "{unsure}");
    }
    assert!(!of("") && !of(r#","runtimeConfig":{}"#));
}
