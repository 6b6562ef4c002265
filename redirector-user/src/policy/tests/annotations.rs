//! A pod's annotations, held against Istio's CNI plugin (`sidecar_redirect.go` and its tests).

use super::super::annotations::{Membership, Outside, Pod, Proxy, parse};
use super::table::nets;
use super::*;

const TRAFFIC: &str = "traffic.sidecar.istio.io/";

/// What the plugin does to a pod without any annotation.
fn cni() -> Policy {
    Policy { outbound_exclude_ports: vec![15020], ipv6: false, ..Policy::default() }
}

fn annotated(annotations: &[(&str, &str)]) -> Pod {
    let annotations = annotations.iter().map(|(key, value)| (full(key), (*value).to_owned())).collect();
    Pod { annotations, ..Pod::default() }
}

/// `/excludeInterfaces` is short for `traffic.sidecar.istio.io/excludeInterfaces`.
fn full(key: &str) -> String {
    match key.strip_prefix('/') {
        Some(name) => format!("{TRAFFIC}{name}"),
        None => key.into(),
    }
}

fn try_resolve(pod: &Pod) -> Result<Resolved, ConfigError> {
    resolve_pod(pod, &CaptureFlags::default(), &super::pod())
}

fn policy_of(pod: &Pod) -> Policy {
    try_resolve(pod).unwrap_or_else(|error| panic!("{pod:?}: {error}")).policy
}

/// An injected pod as the API server has it.
const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod",
 "metadata": {"name": "a", "namespace": "default", "labels": {"app": "a"}, "annotations": {
  "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeOutboundPorts": "5432"}},
 "spec": {"containers": [{"name": "app", "securityContext": {"runAsUser": 7}},
  {"name": "istio-proxy", "args": ["proxy", "sidecar", "--domain", "x"],
   "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "POD_NAME",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
   "securityContext": {"runAsUser": 2000, "runAsGroup": 3000}}], "initContainers": null},
 "status": {"phase": "Pending"}}"#;

#[test]
fn annotations_absent_are_the_defaults_of_the_cni_plugin() {
    let resolved = try_resolve(&Pod::default()).expect("no annotation is an error");
    assert_eq!(resolved, Resolved { policy: cni(), notes: Vec::new(), requests: Requests::default() });
}

#[test]
fn annotations_one_by_one() {
    type Row = (&'static str, &'static str, fn(&mut Policy));
    let rows: [Row; 27] = [
        ("sidecar.istio.io/interceptionMode", "REDIRECT", |_| ()),
        ("sidecar.istio.io/interceptionMode", "TPROXY", |p| p.mode = Mode::Tproxy),
        ("/includeOutboundIPRanges", "*", |_| ()),
        ("/includeOutboundIPRanges", "", |p| p.outbound_cidrs = Selection::None),
        ("/includeOutboundIPRanges", "10.1.2.3/8,fd00::/8", |p| {
            p.outbound_cidrs = Selection::List(nets(&["10.0.0.0/8", "fd00::/8"]));
        }),
        ("/excludeOutboundIPRanges", "", |_| ()),
        ("/excludeOutboundIPRanges", "10.9.0.0/16", |p| p.outbound_exclude_cidrs = nets(&["10.9.0.0/16"])),
        ("/includeInboundPorts", "*", |_| ()),
        ("/includeInboundPorts", "", |p| p.inbound_ports = Selection::None),
        ("/includeInboundPorts", " ", |p| p.inbound_ports = Selection::None),
        ("/includeInboundPorts", " 443 , 80", |p| p.inbound_ports = Selection::List(vec![80, 443])),
        ("/includeInboundPorts", "0", |p| p.inbound_ports = Selection::None),
        ("/excludeInboundPorts", "", |_| ()),
        ("/excludeInboundPorts", "15020", |_| ()),
        ("/excludeInboundPorts", "22, 15090,22", |p| p.inbound_exclude_ports.push(22)),
        ("/includeOutboundPorts", "", |_| ()),
        ("/includeOutboundPorts", "443 ,80", |p| p.outbound_ports = vec![80, 443]),
        ("/excludeOutboundPorts", "", |p| p.outbound_exclude_ports.clear()),
        ("/excludeOutboundPorts", "5432", |p| p.outbound_exclude_ports = vec![5432]),
        ("/excludeInterfaces", "", |_| ()),
        ("/excludeInterfaces", "net1, eth1.5", |p| {
            p.exclude_interfaces = vec!["eth1.5".into(), "net1".into()];
        }),
        ("istio.io/reroute-virtual-interfaces", "vm0", |p| p.virtual_interfaces = vec!["vm0".into()]),
        ("/kubevirtInterfaces", "vm1", |p| p.virtual_interfaces = vec!["vm1".into()]),
        ("sidecar.istio.io/inject", "no boolean", |_| ()),
        ("sidecar.istio.io/status", "{}", |_| ()),
        ("status.sidecar.istio.io/port", "15099", |_| ()),
        ("example.com/excludeOutboundPorts", "x", |_| ()),
    ];
    for (key, value, change) in rows {
        let mut expected = cni();
        change(&mut expected);
        expected.normalise();
        assert_eq!(policy_of(&annotated(&[(key, value)])), expected, "{key}: {value:?}");
    }
}

#[test]
fn annotations_refused() {
    let rows = [
        ("sidecar.istio.io/interceptionMode", "NONE", "REDIRECT or TPROXY"),
        ("sidecar.istio.io/interceptionMode", "", "REDIRECT or TPROXY"),
        ("sidecar.istio.io/interceptionMode", "redirect", "REDIRECT or TPROXY"),
        ("/includeOutboundIPRanges", "10.0.0.0/8, 10.0.0.0/9", "without blanks"),
        ("/includeOutboundIPRanges", "10.0.0.0/8,", "single commas"),
        ("/includeOutboundIPRanges", "10.0.0.1", "10.0.0.1/32"),
        ("/includeOutboundIPRanges", "*,10.0.0.0/8", "stands alone"),
        ("/excludeOutboundIPRanges", "*", "leave the included networks empty"),
        ("/excludeOutboundIPRanges", "10.0.0.0/33", "0 to 32"),
        ("/includeInboundPorts", "80,,443", "single commas"),
        ("/includeInboundPorts", "80,", "single commas"),
        ("/includeInboundPorts", "*,80", "stands alone"),
        ("/includeInboundPorts", "65536", "1 to 65535"),
        ("/excludeInboundPorts", "*", "stands alone"),
        ("/excludeInboundPorts", "x", "1 to 65535"),
        ("/includeOutboundPorts", "*", "stands alone"),
        ("/includeOutboundPorts", "80-90", "every port on its own"),
        ("/excludeOutboundPorts", "*", "stands alone"),
        ("/excludeOutboundPorts", "-1", "every port on its own"),
        ("/excludeOutboundPorts", "010", "without leading zeros"),
        ("/excludeInterfaces", "net1,", "begin with a letter"),
        ("/excludeInterfaces", "1net", "begin with a letter"),
        ("/excludeInterfaces", "net+", "begin with a letter"),
        ("/excludeInterfaces", "abcdefghijklmnop", "at most 15"),
        ("istio.io/reroute-virtual-interfaces", "vm 0", "begin with a letter"),
        ("/kubevirtInterfaces", "vm/0", "begin with a letter"),
    ];
    for (key, value, remedy) in rows {
        let error = shown(try_resolve(&annotated(&[(key, value)])).expect_err(value));
        assert!(error.starts_with(&format!("{}: {value:?} ", full(key))), "{error}");
        assert!(error.contains(remedy), "{error}");
    }
    let long = format!("{}x", "80,".repeat(100));
    let error = shown(try_resolve(&annotated(&[("/excludeOutboundPorts", &long)])).expect_err("x"));
    assert!(error.starts_with(&format!("{TRAFFIC}excludeOutboundPorts: \"x\" ")), "{error}");
    // What is wrong with the whole value is said of its beginning.
    let (ports, mode) = (format!("{},80", "80,".repeat(80_000)), "ü".repeat(100_000));
    for (key, value, words) in [
        ("/excludeOutboundPorts", ports, "80…\" has an empty item"),
        ("sidecar.istio.io/interceptionMode", mode, "ü…\" is no"),
    ] {
        let error = shown(try_resolve(&annotated(&[(key, &value)])).expect_err("x"));
        assert!(error.contains(words) && error.len() < 500, "{error}");
    }
}

#[test]
fn annotations_without_effect_are_named() {
    type Row = (&'static [(&'static str, &'static str)], &'static [&'static str]);
    let rows: [Row; 9] = [
        (&[("/excludeOutboundCIDRs", "10.0.0.0/8")], &["/excludeOutboundCIDRs"]),
        (&[("/kubevirtInterfaces", "a")], &["/kubevirtInterfaces"]),
        // The deprecated one is then not even validated.
        (
            &[("/kubevirtInterfaces", "?"), ("istio.io/reroute-virtual-interfaces", "")],
            &["/kubevirtInterfaces"],
        ),
        (&[("status.sidecar.istio.io/port", "15099")], &["status.sidecar.istio.io/port"]),
        (&[("status.sidecar.istio.io/port", "15099"), ("/excludeInboundPorts", "15099")], &[]),
        (&[("status.sidecar.istio.io/port", "0")], &[]),
        (&[("/includeInboundPorts", "80"), ("/excludeInboundPorts", "15020")], &[]),
        (&[("/includeInboundPorts", "80"), ("/excludeInboundPorts", "81")], &["/excludeInboundPorts"]),
        (&[("/excludeOutboundPorts", "0,80")], &["/excludeOutboundPorts"]),
    ];
    for (annotations, about) in rows {
        let resolved = try_resolve(&annotated(annotations)).expect("accepted");
        let about: Vec<String> = about.iter().map(|key| full(key)).collect();
        assert_eq!(abouts(&resolved.notes), about, "{annotations:?}");
    }
}

#[test]
fn annotations_and_the_proxy_container() {
    let with = |proxy: Proxy| policy_of(&Pod { proxy: Some(proxy), ..Pod::default() });
    let ids = |uid, gid| {
        let policy = with(Proxy { uid, gid, ..Proxy::default() });
        (policy.proxy_uids, policy.proxy_gids)
    };
    assert_eq!(ids(None, None), (vec![1337], vec![1337]));
    assert_eq!(ids(Some(0), Some(0)), (vec![1337], vec![1337]));
    assert_eq!(ids(Some(2000), None), (vec![2000], vec![1337]), "the group does not follow the user");
    assert_eq!(ids(None, Some(3000)), (vec![1337], vec![3000]));

    let env = |name: &str, value: &str| Proxy {
        env: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..Proxy::default()
    };
    let dns = |value| with(env("ISTIO_META_DNS_CAPTURE", value)).dns;
    assert_eq!([dns("true"), dns("1"), dns("false"), dns("")], [Dns::All, Dns::All, Dns::Off, Dns::Off]);
    assert!(with(env("INVALID_DROP", "true")).drop_invalid);

    let facts = Fake { addresses: Some(ips(&["10.77.0.2", "fd00::2"])), ..Fake::default() };
    let ipv6 = |value| {
        let pod = Pod { proxy: Some(env("ISTIO_DUAL_STACK", value)), ..Pod::default() };
        resolve_pod(&pod, &CaptureFlags::default(), &facts).expect("resolved").policy.ipv6
    };
    assert!(ipv6("true"));
    assert!(!ipv6("false"), "the first address decides");

    let odd = Pod { proxy: Some(env("ISTIO_META_DNS_CAPTURE", "yes")), ..Pod::default() };
    let notes = try_resolve(&odd).expect("as Istio, which only logs it").notes;
    assert_eq!(abouts(&notes), ["variable ISTIO_META_DNS_CAPTURE of istio-proxy"]);
    let negative = Pod { proxy: Some(Proxy { uid: Some(-5), ..Proxy::default() }), ..Pod::default() };
    let error = shown(try_resolve(&negative).expect_err("no user"));
    assert!(error.starts_with("runAsUser of istio-proxy: \"-5\" "), "{error}");
}

#[test]
fn annotations_yield_to_flags() {
    let flags = flags(&["-o", "1", "-u", "9", "--redirect-dns=false", "--ipv6", "on"]);
    let pod: Pod = serde_json::from_str(POD).expect("a pod");
    let resolved = resolve_pod(&pod, &flags, &super::pod()).expect("resolved");
    let expected = Policy {
        outbound_exclude_ports: vec![1],
        proxy_uids: vec![9],
        proxy_gids: vec![3000],
        ipv6: true,
        ..cni()
    };
    assert_eq!(resolved, Resolved { policy: expected, notes: Vec::new(), requests: Requests::default() });
    for other in [&["--policy", "p"][..], &["--istio-defaults"][..]] {
        assert!(try_flags(&[&["--annotations", "a"][..], other].concat()).is_err(), "{other:?}");
    }
}

#[test]
fn annotations_without_addresses_capture_ipv6() {
    let resolved =
        resolve_pod(&Pod::default(), &CaptureFlags::default(), &Fake::default()).expect("resolved");
    assert!(resolved.policy.ipv6);
    assert_eq!(abouts(&resolved.notes), ["--ipv6"]);
}

#[test]
fn annotations_of_a_pod() {
    let pod = parse(POD).expect("a pod");
    assert_eq!(pod.membership(&["kube-system"]), Membership::Inside);
    let expected = Policy {
        outbound_exclude_ports: vec![5432],
        proxy_uids: vec![2000],
        proxy_gids: vec![3000],
        dns: Dns::All,
        ..cni()
    };
    assert_eq!(policy_of(&pod), expected);
    // A native sidecar is an init container (Kubernetes 1.28). `cargo xtask manifests` holds the object against the schema.
    let native = parse(include_str!("native-sidecar.json")).expect("a pod");
    assert_eq!(native.membership(&["kube-system"]), Membership::Inside);
    assert_eq!(policy_of(&native), expected);
}

#[test]
fn membership_is_istios() {
    let pod = parse(POD).expect("a pod");
    let outside = |change: fn(&mut Pod)| {
        let mut pod = pod.clone();
        change(&mut pod);
        pod.membership(&["kube-system"])
    };
    fn proxy(pod: &mut Pod) -> &mut Proxy {
        pod.proxy.as_mut().expect("a proxy")
    }
    fn inject(map: &mut BTreeMap<String, String>, value: &str) {
        map.insert("sidecar.istio.io/inject".into(), value.into());
    }
    fn disable(pod: &mut Pod, value: &str) {
        proxy(pod).env.insert("DISABLE_ENVOY".into(), value.into());
    }
    type Change = fn(&mut Pod);
    let excluded: [(Change, Outside); 11] = [
        (|p| p.namespace = "kube-system".into(), Outside::ExcludedNamespace("kube-system".into())),
        (|p| p.host_network = true, Outside::HostNetwork),
        (|p| p.containers.extend(["istio-init".into()]), Outside::IstioInit),
        (|p| disable(p, "true"), Outside::EnvoyDisabled),
        (|p| p.proxy = None, Outside::NoProxy),
        (|p| proxy(p).args[1] = "router".into(), Outside::ProxyType("router".into())),
        (|p| inject(&mut p.labels, "false"), Outside::InjectionDisabled),
        (|p| inject(&mut p.annotations, "f"), Outside::InjectionDisabled),
        (
            |p| {
                inject(&mut p.annotations, "true");
                inject(&mut p.labels, "0");
            },
            Outside::InjectionDisabled,
        ),
        (|p| drop(p.annotations.remove("sidecar.istio.io/status")), Outside::NotInjected),
        (
            |p| {
                p.containers.insert("istio-init".into());
                p.annotations.clear();
            },
            Outside::IstioInit,
        ),
    ];
    for (change, why) in excluded {
        assert_eq!(outside(change), Membership::Outside(why));
    }
    let included: [Change; 9] = [
        |_| (),
        |p| p.containers.extend(["istio-validation".into()]),
        |p| disable(p, "false"),
        |p| disable(p, "yes"),
        |p| proxy(p).args.clear(),
        |p| proxy(p).args[0] = "other".into(),
        |p| proxy(p).args[1] = String::new(),
        |p| inject(&mut p.labels, "disabled"),
        |p| {
            inject(&mut p.annotations, "false");
            inject(&mut p.labels, "");
        },
    ];
    for (number, change) in included.into_iter().enumerate() {
        assert_eq!(outside(change), Membership::Inside, "{number}");
    }
}

#[test]
fn annotations_files() {
    let map = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let read = |text: &str| parse(text).unwrap_or_else(|why| panic!("{text:?}: {why}")).annotations;
    assert_eq!(read(""), map(&[]));
    assert_eq!(read("a/b=\"x\"\n\nc=\"\"\n"), map(&[("a/b", "x"), ("c", "")]));
    let quoted = r#"k="a=b\n\t\a\b\f\r\v\\\"\x41\u00e4\U0001f600\xc3\xa4ö""#;
    assert_eq!(read(quoted), map(&[("k", "a=b\n\t\x07\x08\x0c\r\x0b\\\"Aä😀äö")]));
    assert_eq!(read(" {\"a\": \"x\"}"), map(&[("a", "x")]));
    assert_eq!(read(r#"{"metadata": {"annotations": {"a": "x"}}}"#), map(&[("a", "x")]));
    assert_eq!(read(r#"{"metadata": {}}"#), map(&[]));
    assert_eq!(read(r#"{"kind": "x", "metadata": "y"}"#), map(&[("kind", "x"), ("metadata", "y")]));

    for bad in [
        "a",
        "=\"x\"",
        "a=x",
        "a=\"x",
        "a=\"",
        "a=\"x\"y\"",
        "a=\"\\q\"",
        "a=\"\\xff\"",
        "a=\"\\u12\"",
        "a=\"\\ud800\"",
        "a=\"x\"\na=\"y\"",
        "a=\"\\\"",
    ] {
        assert!(parse(bad).expect_err(bad).starts_with("line "), "{bad:?}");
    }
    assert_eq!(
        parse(r#"{"kind": "PodList", "items": []}"#).expect_err("a list"),
        "it is a PodList and no Pod"
    );
    for bad in
        ["{", r#"{"a": 1}"#, r#"{"kind": "Pod"}"#, r#"{"metadata": {"annotations": {"a": 1}}}"#, "{} x"]
    {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
}
