//! Parity of annotations: `redirector attach --annotations` beside the iptables rules that Istio's CNI plugin would set.

use std::net::Ipv4Addr;

use anyhow::ensure;
use redirector_tests::harness::oracle::options::Cidrs;
use redirector_tests::harness::oracle::options::Ports;
use redirector_tests::harness::pair::matrix;
use redirector_tests::harness::prelude::*;
use serde_json::{Value, json};

/// The user of a proxy that has one of its own.
const OTHER: Owner = Owner { uid: 2000, gid: 3000 };

/// The plugin's options for a pod without annotations, whose first address is of IPv4.
fn cni() -> Options {
    Options { outbound_ports_exclude: vec![15020], ipv6: false, ..Options::sidecar() }
}

/// A pod as `kubectl get pod -o json` shows it.
fn object(annotations: &Value, proxy: &Value) -> String {
    let mut annotations = annotations.clone();
    annotations["sidecar.istio.io/status"] = json!("{}");
    let proxy = {
        let mut container = proxy.clone();
        container["name"] = json!("istio-proxy");
        container["args"] = json!(["proxy", "sidecar"]);
        container
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "pod", "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "app"}], "initContainers": [proxy]},
    })
    .to_string()
}

/// The unbound connections of the matrix, of three users.
fn parts(pod: &Pod) -> Vec<Part> {
    let mut parts = Vec::new();
    for part in matrix::outbound(pod) {
        let mut scenarios = part.scenarios;
        scenarios.retain(|one| one.name.ends_with("from anywhere") && !one.name.starts_with("mapped"));
        if part.caller == matrix::Caller::Pod(APP) {
            parts.push(Part::of(OTHER, scenarios.clone()));
        }
        if [APP, PROXY].map(matrix::Caller::Pod).contains(&part.caller) {
            parts.push(Part { caller: part.caller, scenarios });
        }
    }
    parts.push(matrix::inbound(pod));
    share::parts(parts)
}

/// Annotations, and the options that they mean.
fn rows() -> Vec<(String, Options)> {
    let none = json!({});
    let line = |key: &str, value: &str| format!("kubernetes.io/config.seen=\"x\\n\"\n{key}=\"{value}\"\n");
    let traffic = |key: &str, value: &str| line(&format!("traffic.sidecar.istio.io/{key}"), value);
    let network = "10.96.0.0/16".to_owned();
    vec![
        (object(&none, &none), cni()),
        (line("sidecar.istio.io/interceptionMode", "REDIRECT"), cni()),
        (
            traffic("includeOutboundIPRanges", "10.96.0.0/16"),
            Options { outbound_cidrs: Cidrs::List(vec![network.clone()]), ..cni() },
        ),
        (
            traffic("excludeOutboundIPRanges", "10.96.0.0/16"),
            Options { outbound_cidrs_exclude: vec![network], ..cni() },
        ),
        (
            traffic("includeInboundPorts", "8080, 15021"),
            Options {
                inbound_ports: Ports::List(vec![8080, 15021]),
                inbound_ports_exclude: Vec::new(),
                ..cni()
            },
        ),
        (
            traffic("excludeInboundPorts", " 8080"),
            Options { inbound_ports_exclude: vec![8080, 15020, 15021, 15090], ..cni() },
        ),
        (
            object(
                &json!({
                    "traffic.sidecar.istio.io/includeOutboundIPRanges": "",
                    "traffic.sidecar.istio.io/includeOutboundPorts": "8080",
                }),
                &none,
            ),
            Options { outbound_cidrs: Cidrs::List(Vec::new()), outbound_ports: vec![8080], ..cni() },
        ),
        (
            json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "8080"}).to_string(),
            Options { outbound_ports_exclude: vec![8080], ..cni() },
        ),
        (
            traffic("excludeInterfaces", "eth0"),
            Options { exclude_interfaces: vec!["eth0".to_owned()], ..cni() },
        ),
        (
            object(&none, &json!({"securityContext": {"runAsUser": OTHER.uid, "runAsGroup": OTHER.gid}})),
            Options { proxy_uids: vec![OTHER.uid], proxy_gids: vec![OTHER.gid], ..cni() },
        ),
        (
            object(&none, &json!({"env": [{"name": "ISTIO_DUAL_STACK", "value": "true"}]})),
            Options { ipv6: true, ..cni() },
        ),
        (
            object(&none, &json!({"env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}]})),
            Options { redirect_dns: true, capture_all_dns: true, ..cni() },
        ),
    ]
}

/// Each annotation alone, and what is taken from the container istio-proxy; with the rules that Istio sets for it.
#[test]
fn one_by_one() -> anyhow::Result<()> {
    require_root!();
    let mut rows = rows();
    let has_interfaces = has_or_refuses(kernel::TELLS_INTERFACES, &["-c", "eth0"])?;
    rows.retain(|(_, options)| has_interfaces || options.exclude_interfaces.is_empty());
    for (text, options) in share::of(rows) {
        println!("{text}");
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("annotations");
        std::fs::write(&file, &text)?;
        let given = ["--annotations".to_owned(), file.display().to_string()];
        let pair = Pair::new(options, Redirection::flags(given.into()), &Setup::default())?;
        let seen = pair.check(&parts(pair.reference.pod()))?;
        ensure!(seen.len() > share::times(100, 1), "{} connections", seen.len());
    }
    Ok(())
}

/// Wrong annotations are refused before anything is touched. Flags win over annotations. `explain` reads them, too.
#[test]
fn files() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let directory = tempfile::tempdir()?;
    let write = |text: &str| -> anyhow::Result<String> {
        let file = directory.path().join("annotations");
        std::fs::write(&file, text)?;
        Ok(file.display().to_string())
    };
    let ports = "traffic.sidecar.istio.io/excludeOutboundPorts";
    for (text, words) in [
        (format!("{ports}=\"80,x\""), [ports, "\"80,x\"", "1 to 65535"]),
        (
            "sidecar.istio.io/interceptionMode=\"NONE\"".to_owned(),
            ["interceptionMode", "NONE", "REDIRECT or TPROXY"],
        ),
        (format!("{ports}=80"), ["annotations", "line 1", "downward-API"]),
        ("{\"kind\": \"PodList\", \"items\": []}".to_owned(), ["annotations", "PodList", "kubectl get pod"]),
    ] {
        let file = write(&text)?;
        bpffs.attach(world.pod(), "pod", &["--annotations", &file])?.refused(exit::USAGE, &words)?;
        let explain = ["explain", "--to", "10.96.0.10:80", "--annotations", &file];
        bpffs.run(&explain)?.refused(exit::USAGE, &words)?;
    }
    for other in [["--policy", "/nowhere"].as_slice(), &["--istio-defaults"]] {
        let arguments = [&["--annotations", "/nowhere"], other].concat();
        bpffs.attach(world.pod(), "pod", &arguments)?.refused(exit::USAGE, &["--annotations", other[0]])?;
    }
    bpffs.attach(world.pod(), "pod", &["--annotations", "/nowhere"])?.refused(exit::USAGE, &["/nowhere"])?;
    bpffs.expect_empty()?;

    let file = write(&format!("{ports}=\"80\"\n"))?;
    let verdict = |more: &[&str]| -> anyhow::Result<Value> {
        let to = format!("{}:80", Ipv4Addr::new(10, 96, 0, 10));
        let arguments = [&["explain", "--to", &to, "--annotations", &file], more].concat();
        Ok(bpffs.run(&arguments)?.expect(exit::OK)?.json()?["verdict"].clone())
    };
    assert_eq!((verdict(&[])?, verdict(&["-o", ""])?), (json!("pass"), json!("outbound")));

    // Istio would leave this pod alone, and the user wants it all the same.
    let file = write(&object(&json!({"sidecar.istio.io/inject": "false"}), &json!({})))?;
    let run = bpffs.attach(world.pod(), "pod", &["--annotations", &file, "-o", "7"])?.expect(exit::OK)?;
    ensure!(run.stderr.contains("sidecar.istio.io/inject is false"), "{}", run.stderr);
    assert_eq!(bpffs.show("pod")?["record"]["policy"]["outbound_exclude_ports"], json!([7]));
    bpffs.run(&["detach", "--name", "pod"])?.expect(exit::OK)?;
    bpffs.expect_empty()
}
