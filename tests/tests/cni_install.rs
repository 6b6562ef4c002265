//! The CNI plugin is put on a node, kept there, and taken away.

use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::command;
use redirector_tests::harness::kubelet::{Call, Id, Kubelet, PREVIOUS};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home};
use serde_json::json;

/// The agent chains the plugin, again whenever another tool has written the list anew; `uninstall` leaves the node as
/// it was.
#[test]
fn installed_and_uninstalled() -> anyhow::Result<()> {
    const LIST: &str =
        r#"{"cniVersion":"1.0.0", "name":"n","plugins":[{"type":"bridge"}, {"type":"portmap"}]}"#;
    require_root!();
    let (bpffs, home, kubelet) = (Bpffs::new()?, Home::new()?, Kubelet::new()?);
    let directory = tempfile::Builder::new().prefix("redirtest-cni").tempdir()?;
    let [bin, conf] = ["bin", "net.d"].map(|name| directory.path().join(name));
    std::fs::create_dir(&bin)?;
    std::fs::create_dir(&conf)?;
    let list = conf.join("10-n.conflist");
    std::fs::write(&list, LIST)?;
    let types = || -> Option<Vec<String>> {
        let list: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&list).ok()?).ok()?;
        list["plugins"].as_array()?.iter().map(|p| p["type"].as_str().map(str::to_owned)).collect()
    };
    let [bin_text, conf_text] = [&bin, &conf].map(|path| path.display().to_string());
    let arguments = [
        "--cni-bin-dir",
        &bin_text,
        "--cni-conf-dir",
        &conf_text,
        "--resync",
        "3600",
        "--exclude-namespaces",
        "a,b",
    ];
    let agent = kubelet.agent(&bpffs, &home, &arguments)?;
    let until_chained = |others: &[&str]| {
        let expected: Vec<String> = others.iter().chain(&["redirector"]).map(|t| (*t).to_owned()).collect();
        retry::until("the plugin to be chained", || (types()? == expected).then_some(()))
    };
    until_chained(&["bridge", "portmap"]).with_context(|| agent.log())?;
    let entry: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&list)?)?;
    assert_eq!(entry["plugins"][2]["excludeNamespaces"], json!(["a", "b"]), "{entry:#}");
    assert_eq!(entry["plugins"][2]["socket"], home.run().join("agent.sock").display().to_string());

    retry::until("the metric", || (agent.metric("redirector_plugin_installed").ok()? == 1.0).then_some(()))?;

    // The installed plugin works: called at its place, by its entry.
    let mut installed = std::process::Command::new(bin.join("redirector"));
    let version = command::run(installed.env_clear().env("CNI_COMMAND", "VERSION"), "")?;
    assert!(version.contains("1.1.0"), "{version}");

    std::fs::write(&list, LIST.replace("portmap", "bandwidth"))?;
    until_chained(&["bridge", "bandwidth"]).with_context(|| agent.log())?;
    std::fs::remove_file(bin.join("redirector"))?;
    retry::until("the binary to be back", || bin.join("redirector").exists().then_some(()))?;
    agent.kill()?;
    // The error of a pod that starts while no agent runs: its command takes the plugin off.
    let entry: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&list)?)?;
    let mut config = entry["plugins"][2].clone();
    (config["cniVersion"], config["name"]) = ("1.0.0".into(), "n".into());
    config["prevResult"] = serde_json::from_str(PREVIOUS)?;
    let call = Call::new("ADD", &home, &Id::new(1), Path::new("/proc/self/ns/net"));
    let mut plugin = std::process::Command::new(bin.join("redirector"));
    let answer = command::output(plugin.env_clear().envs(call.environment), &config.to_string())?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout)?;
    // A pod that is none of the mesh's by its annotations starts all the same.
    assert_eq!(entry["plugins"][2]["capabilities"], json!({"io.kubernetes.cri.pod-annotations": true}));
    config["runtimeConfig"] =
        json!({"io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.source": "api"}});
    assert_eq!(command::run(&mut plugin, &config.to_string())?.trim(), config["prevResult"].to_string());
    assert_eq!(answer["code"], 11, "{answer}");
    let (_, remedy) =
        answer["details"].as_str().and_then(|why| why.split_once("run here: ")).context("a remedy")?;
    run(std::process::Command::new("sh").args(["-ec", remedy]), "")?;
    let arguments = ["cni", "uninstall", "--bin-dir", &bin_text, "--conf-dir", &conf_text];
    assert_eq!(std::fs::read_to_string(&list)?, LIST.replace("portmap", "bandwidth"));
    assert_eq!(std::fs::read_dir(&conf)?.count(), 1);
    assert_eq!(std::fs::read_dir(&bin)?.count(), 0);
    // Where nothing is installed, the directories are wrong, or it is said to be as wanted.
    assert!(bpffs.run(&arguments)?.expect(3)?.stderr.contains("--conf-dir"));
    let arguments = [&arguments[..], &["--ignore-missing"]].concat();
    assert_eq!(bpffs.run(&arguments)?.expect(0)?.json()?, json!({ "done": [] }));
    // The directories may be those of another release.
    std::fs::remove_file(&list)?;
    bpffs.run(&arguments)?.refused(3, &["no container runtime has a network in", &conf_text])?;
    // Without a runtime it says what it is for.
    bpffs.run(&["cni"])?.expect(2)?;
    Ok(())
}

/// A standby is ready if it could take over; an agent that works is ready if its plugin does.
#[test]
fn who_is_ready() -> anyhow::Result<()> {
    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    require_root!();
    let (bpffs, home, kubelet) = (Bpffs::new()?, Home::new()?, Kubelet::new()?);
    let directory = tempfile::Builder::new().prefix("redirtest-cni").tempdir()?;
    let [bin, conf, empty] = ["bin", "net.d", "empty"].map(|name| directory.path().join(name));
    for dir in [&bin, &conf, &empty] {
        std::fs::create_dir(dir)?;
    }
    std::fs::write(conf.join("10-n.conflist"), LIST)?;
    let [bin, conf_text, empty_text] = [&bin, &conf, &empty].map(|path| path.display().to_string());
    let until = |agent: &Agent, status: u16, words: &str| {
        let is = || agent.get("/readyz").is_ok_and(|(is, text)| is == status && text.contains(words));
        retry::until(words, || is().then_some(())).with_context(|| agent.log())
    };
    let first = kubelet.agent(&bpffs, &home, &["--cni-bin-dir", &bin, "--cni-conf-dir", &conf_text])?;
    until(&first, 200, "ok")?;
    let objects = kubelet.objects().display().to_string();
    let arguments = ["--pods", &objects, "--cni-bin-dir", &bin, "--cni-conf-dir", &empty_text];
    let second = Agent::with(&bpffs, &home, &arguments)?;
    until(&second, 503, "it could not take over: there is no network's configuration")?;
    std::fs::write(empty.join("10-n.conflist"), LIST)?;
    until(&second, 200, "standby")?;
    first.kill()?;
    second.wait_for(0, "working")?;
    until(&second, 200, "ok")?;
    // A list that is gone cannot be chained to.
    std::fs::remove_file(empty.join("10-n.conflist"))?;
    until(&second, 503, "not installed")
}
