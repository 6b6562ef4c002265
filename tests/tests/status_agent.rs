//! `redirector status` of a node with an agent, and what other verbs say of what the agent keeps.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::command::output;
use redirector_tests::harness::kubelet::{Id, NodeWithPod};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product;
use redirector_tests::harness::product::agent::{Agent, Home, target, until_active};
use redirector_tests::harness::product::health;
use serde_json::Value;

/// `redirector status` of the whole node: its findings of a kind.
fn findings(bpffs: &Bpffs, home: &Home, conf: &Path, kind: &str, code: i32) -> anyhow::Result<Vec<Value>> {
    let [run, config, conf] = [&home.run(), &home.config(), conf].map(|path| path.display().to_string());
    let arguments = ["status", "--run-dir", &run, "--config", &config, "--cni-conf-dir", &conf];
    let answer = bpffs.run(&arguments)?.expect(code)?.json()?;
    let all = answer["node"]["findings"].as_array().cloned().context("findings")?;
    Ok(all.into_iter().filter(|finding| finding["kind"] == kind).collect())
}

/// What the agent keeps comes back after a detach, and until then connections go past the proxy.
#[test]
fn what_the_agent_keeps_is_not_detached() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, world) = (Bpffs::new()?, Home::new()?, World::new()?);
    home.write("shop", &target(world.pod(), ""))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, "file-shop", true)?;
    let netns = world.pod().netns.file().display().to_string();
    for which in [&["file-shop"][..], &["--netns", &netns], &["--all"]] {
        let words = ["file-shop is kept by the agent", "shop.toml", "--force"];
        bpffs.run(&[&["detach"], which].concat())?.refused(exit::USAGE, &words)?;
    }
    bpffs.run(&["detach", "file-shop", "--force"])?.expect(exit::OK)?;
    agent.signal(rustix::process::Signal::HUP)?;
    until_active(&bpffs, &agent, "file-shop", true)?;
    agent.kill()?;
    bpffs.run(&["detach", "file-shop"])?.expect(exit::OK)?;
    Ok(())
}

/// A unit that systemd does not know will not come; other targets may.
#[test]
fn targets_that_are_not_there() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, world) = (Bpffs::new()?, Home::new()?, World::new()?);
    home.write("shop", &target(world.pod(), ""))?;
    home.write("later", "cgroup = \"/sys/fs/cgroup/redirtest-none\"\n")?;
    let _agent = Agent::start(&bpffs, &home)?;
    let none = home.run();
    let found = findings(&bpffs, &home, &none, "target_awaited", exit::OK);
    let found = found.or_else(|_| findings(&bpffs, &home, &none, "target_awaited", exit::FAILED))?;
    assert_eq!((found.len(), &found[0]["level"]), (1, &"notice".into()), "{found:#?}");
    home.write("typo", "unit = \"redirtest-shp.service\"\n")?;
    home.write("wrong", "unit = 1\n")?;
    let found = findings(&bpffs, &home, &none, "target_awaited", exit::FAILED)?;
    let text: Vec<&str> = found.iter().filter_map(|finding| finding["what"].as_str()).collect();
    assert_eq!(text.len(), 3, "{found:#?}");
    assert_eq!(
        text[0],
        "file-typo is awaited: no cgroup of a unit redirtest-shp.service, and systemd has no such unit"
    );
    assert!(text[1].contains("wrong.toml") && found[1]["level"] == "fault", "{found:#?}");
    assert!(found[0]["remedy"].as_str().is_some_and(|remedy| remedy.contains("typo.toml")), "{found:#?}");
    // Two files, one namespace.
    home.write("zweite", &target(world.pod(), ""))?;
    retry::until("the second to be told", || {
        let found = findings(&bpffs, &home, &none, "target_awaited", exit::FAILED).ok()?;
        format!("{found:?}").contains("is captured by file-").then_some(())
    })
}

/// Pods start uncaptured while the plugin is not installed.
#[test]
fn a_plugin_that_cannot_be_installed() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, dir) = (Bpffs::new()?, Home::new()?, tempfile::tempdir()?);
    let (bin, conf) = (dir.path().join("bin"), dir.path().join("net.d"));
    for dir in [&bin, &conf] {
        std::fs::create_dir(dir)?;
    }
    std::fs::write(bin.join("bridge"), "")?;
    std::fs::write(conf.join("00-old.conflist"), "")?;
    let paths = [&bin, &conf].map(|path| path.display().to_string());
    let agent = Agent::with(&bpffs, &home, &["--cni-bin-dir", &paths[0], "--cni-conf-dir", &paths[1]])?;
    retry::until("the agent to say so", || {
        let found = findings(&bpffs, &home, &conf, "agent_not_ready", exit::FAILED).ok()?;
        found.first()?.to_string().contains("00-old.conflist").then_some(())
    })
    .with_context(|| agent.log())
}

/// Why a pod is not captured, on a node whose agent has the usual directory.
#[test]
fn a_pod_that_is_not_of_the_mesh() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    let plain = Id::new(2);
    let mut object = plain.object();
    object["metadata"]["annotations"] = serde_json::json!({});
    node.kubelet.know(&plain, &object)?;
    let bpffs = node.bpffs.path().display().to_string();
    let run = node.home.run().display().to_string();
    let script = format!(
        "mount --bind {run} /mnt && mount -t tmpfs none /run && mkdir /run/redirector && mount --move /mnt /run/redirector && \
         exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(product::binary());
    let pod = format!("shop/{}", plain.name);
    command.args(["--bpffs", &bpffs, "--output", "json", "explain", "--pod", &pod, "--to", "10.96.0.10:80"]);
    Run::of(&mut command)?.refused(exit::NOTHING, &["is not captured", "sidecar.istio.io/status"])?;
    Ok(())
}

/// `kubectl redirector` asks the agent of the pod's node. A program in kubectl's place says where the pod and the agent are,
/// and runs the binary where the agent would.
#[test]
fn kubectl_redirector() -> anyhow::Result<()> {
    let Some(node) = NodeWithPod::new(&[])? else { return Ok(()) };
    node.call("ADD").succeed()?;
    let (dir, pod) = (tempfile::tempdir()?, node.id.name.as_str());
    let kubectl = format!(
        "#!/bin/sh\necho \"$*\" >>\"$0.log\"\n\
         case \"$*\" in\n\
         *'get pod {pod} '*) echo 'shop node-1' ;;\n\
         *'get pod pending '*) echo 'shop ' ;;\n\
         *'get pod alone '*) echo 'shop node-2' ;;\n\
         *'get pod '*) echo 'Error from server (NotFound)' >&2; exit 1 ;;\n\
         *spec.nodeName=node-1,*) echo 'system agent-1'; echo 'system agent-2' ;;\n\
         *' exec agent-1 '*) while [ \"$1\" != /redirector ]; do shift; done; shift; exec {} --bpffs {} \"$@\" ;;\n\
         esac\n",
        product::binary().display(),
        node.bpffs.path().display()
    );
    std::fs::write(dir.path().join("kubectl"), kubectl)?;
    std::fs::set_permissions(dir.path().join("kubectl"), Permissions::from_mode(0o755))?;
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubectl/kubectl-redirector");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH")?);
    for (arguments, code, words) in [
        (&["-n", "shop", pod][..], exit::OK, "nobody listens on port 15001"),
        (&["--context", "c", pod, "explain", "--to", "10.96.0.10:80"], exit::OK, "out_all"),
        (&[pod, "no-such-verb"], exit::USAGE, "no-such-verb"),
        (&["pending"], 1, "the pod shop/pending is on no node yet"),
        (&["alone"], 1, "no agent of redirector (app.kubernetes.io/name=redirector) runs on node-2"),
        (&["other"], 1, "NotFound"),
        (&[], 2, "kubectl redirector [-n NAMESPACE]"),
        (&["-n"], 2, "kubectl redirector [-n NAMESPACE]"),
    ] {
        let out = output(Command::new(&plugin).args(arguments).env("PATH", &path), "")?;
        let said = String::from_utf8([out.stdout, out.stderr].concat())?;
        assert!(
            out.status.code() == Some(code) && said.contains(words),
            "{arguments:?}: {} {said}",
            out.status
        );
    }
    let log = std::fs::read_to_string(dir.path().join("kubectl.log"))?;
    for asked in [
        &format!("--namespace=shop get pod {pod} --output=jsonpath="),
        &format!(
            "--namespace=system exec agent-1 --container=agent -- /redirector status --pod shop/{pod}\n"
        ),
        &format!(
            "--context=c --namespace=system exec agent-1 --container=agent -- /redirector explain --to 10.96.0.10:80 --pod shop/{pod}\n"
        ),
    ] {
        assert!(log.contains(asked), "{asked} is not in\n{log}");
    }
    Ok(())
}

/// The whole node: its instances, and the agent that somebody counts on.
#[test]
fn the_node() -> anyhow::Result<()> {
    let Some(setup) = health::Setup::new()? else { return Ok(()) };
    let dir = setup.node.path().with_extension("agent");
    let (run_dir, targets, cni) = (dir.join("run"), dir.join("targets"), dir.join("cni"));
    for dir in [&run_dir, &targets, &cni] {
        std::fs::create_dir_all(dir)?;
    }
    let paths = [&run_dir, &targets, &cni].map(|path| path.display().to_string());
    let node = || {
        setup.node.run(&[
            "status",
            "--run-dir",
            &paths[0],
            "--config",
            &paths[1],
            "--cni-conf-dir",
            &paths[2],
        ])
    };
    let well = node()?.expect(exit::OK)?.json()?;
    assert_eq!((&well["node"]["agent"], &well["ok"]), (&false.into(), &true.into()), "{well:#}");
    std::fs::write(targets.join("shop.toml"), "unit = \"shop.service\"\n")?;
    let missing = node()?.expect(exit::FAILED)?.json()?;
    let finding = &missing["node"]["findings"][0];
    assert_eq!((&finding["kind"], &finding["level"]), (&"no_agent".into(), &"fault".into()), "{missing:#}");
    assert!(finding["what"].as_str().context("what")?.contains("no agent holds"), "{finding:#}");
    std::fs::remove_file(targets.join("shop.toml"))?;
    setup.attach(&[])?;
    let faulty = node()?.expect(exit::FAILED)?.json()?;
    assert_eq!(faulty["instances"][0]["findings"][0]["kind"], "no_listener", "{faulty:#}");
    // For people, with the remedy on a line of its own.
    let bpffs = setup.node.path().display().to_string();
    let text = Run::of(product::command(&[]).args(["--bpffs", &bpffs, "status", health::NAME]))?
        .expect(exit::FAILED)?
        .stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "pod: active, 2 faults", "{text}");
    assert!(lines[2].starts_with("  FAULT     nobody listens on port 15001: outbound"), "{text}");
    assert!(lines[3].trim_start().starts_with("-> start the proxy"), "{text}");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
