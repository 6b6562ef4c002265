//! What `show`, `list`, `original-dst` and `check` say, and that it is what the kernel does.

use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::binary;
use redirector_tests::harness::product::objects::detach_link;
use serde_json::{Value, json};

/// As people see it.
fn table(bpffs: &Bpffs, arguments: &[&str]) -> anyhow::Result<String> {
    let run = Run::of(Command::new(binary()).arg("--bpffs").arg(bpffs.path()).args(arguments))?;
    Ok(run.looked()?.stdout)
}

fn hook<'a>(show: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let hooks = show["hooks"].as_array().context("hooks")?;
    hooks.iter().find(|hook| hook["hook"] == name).with_context(|| name.to_owned())
}

/// Whether the kernel runs our programs; and that attaching again repairs it.
#[test]
fn effective() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::new()?;
    let attach = || tested.attach(&[]);
    attach()?;
    let whole = tested.show()?;
    assert_eq!(whole["effective"], true, "{whole:#}");
    let text = table(&tested.bpffs, &["show", NAME])?;
    assert!(text.contains("active") && text.contains("yes"), "{text}");
    // Of its namespace it is known what is not delivered there.
    let arriving = |to: String| -> anyhow::Result<Value> {
        let run = tested.bpffs.run(&["explain", "--name", NAME, "--inbound", "--to", &to])?;
        Ok(run.expect(exit::OK)?.json()?["notes"].clone())
    };
    assert_eq!(arriving(at(tested.pod().v4(), SERVED).to_string())?, serde_json::json!([]));
    let notes = arriving("198.51.100.1:80".to_owned())?;
    assert!(notes[0].as_str().is_some_and(|text| text.contains("has no address 198.51.100.1")), "{notes}");

    let hooks = ["connect4", "sk_lookup", "getsockopt"];
    let removed = hooks.map(|name| (name, format!("link_{name}")));
    let detached = hooks.map(|name| (name, "detached".to_owned()));
    for (name, problem) in removed.into_iter().chain(detached) {
        let pin = tested.bpffs.instance(NAME).join(format!("link_{name}"));
        if problem == "detached" {
            detach_link(&pin)?;
            assert!(pin.exists(), "the kernel keeps the pin");
        } else {
            std::fs::remove_file(pin)?;
        }
        let show = tested.show()?;
        assert_eq!(show["effective"], false, "{name}: {show:#}");
        let broken = hook(&show, name)?;
        assert_eq!(broken["effective"], false, "{broken}");
        assert!(broken["problem"].as_str().is_some_and(|text| text.contains(&problem)), "{broken}");
        assert_eq!(hook(&show, "connect6")?["effective"], true);
        let text = table(&tested.bpffs, &["show", NAME])?;
        assert!(text.contains("NO") && text.contains(name), "{text}");

        let again = attach()?;
        assert_eq!(again.json()?["outcome"], "changed", "{again:?}");
        assert!(again.stderr.contains("attached again") && again.stderr.contains(name), "{again:?}");
        let repaired = tested.show()?;
        for field in ["effective", "record", "added_lo6"] {
            assert_eq!(repaired[field], whole[field], "{name}: {field}");
        }
        assert!(tested.connect()?.starts_with("proxy:15001"));
        assert_eq!(attach()?.json()?["outcome"], "unchanged");
    }

    // Where the programs are gone too, it cannot be repaired, and says so.
    for pin in ["link_connect4", "prog_connect4"] {
        std::fs::remove_file(tested.bpffs.instance(NAME).join(pin))?;
    }
    let words = ["damaged", "detach it and attach again", "prog_connect4"];
    tested.attach_by(&[], &[])?.refused(exit::FAILED, &words)?;
    tested.bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    assert_eq!(attach()?.json()?["outcome"], "attached");
    assert_eq!(tested.show()?["effective"], true);
    Ok(())
}

/// Listeners of the proxy, older and younger than the instance.
#[test]
fn listeners() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let registered = || -> anyhow::Result<Vec<Value>> {
        let show = bpffs.show(NAME)?;
        let all = show["listeners"].as_array().context("listeners")?;
        let numbers = all.iter().map(|one| json!([one["traffic"], one["port"], one["ipv4"], one["ipv6"]]));
        Ok(numbers.collect())
    };
    let both = |number: u32| {
        vec![json!(["outbound", 15001, number, number]), json!(["inbound", 15006, number, number])]
    };
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    assert_eq!(registered()?, both(0));
    assert_eq!(table(&bpffs, &["show", NAME])?.matches("no listener of the proxy").count(), 2);

    let proxy = pod.serve(PROXY, "proxy", proxy_listeners(2))?;
    assert_eq!(registered()?, both(2));
    assert!(!table(&bpffs, &["show", NAME])?.contains("no listener of the proxy"));
    bpffs.run(&["detach", "--name", NAME])?.expect(exit::OK)?;
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    assert_eq!(registered()?, both(2), "listeners older than the attach");
    bpffs.attach(pod, NAME, &["-p", "16001"])?.expect(exit::OK)?;
    assert_eq!(registered()?, [json!(["outbound", 16001, 0, 0]), json!(["inbound", 15006, 2, 2])]);
    bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?;
    bpffs.run(&["refresh", NAME])?.expect(exit::OK)?;
    assert_eq!(registered()?, both(2));
    drop(proxy);
    retry::until("the listeners to be gone", || (registered().ok()? == both(0)).then_some(()))
}

#[test]
fn list_of_instances() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    assert!(bpffs.list()?.is_empty());
    bpffs.expect_empty()?;
    let attached = bpffs.attach(pod, NAME, &[])?.expect(exit::OK)?.json()?;
    let line = &bpffs.list()?[0];
    assert_eq!(line["name"], NAME);
    assert_eq!(line["state"], "active");
    assert_eq!(line["connections"], 0);
    assert_eq!(line["problem"], Value::Null);
    for key in ["netns", "netns_inode", "cgroup"] {
        assert_eq!(line[key], attached[key], "{key}");
    }
    let text = table(&bpffs, &["list"])?;
    let mut lines = text.lines();
    assert!(lines.next().is_some_and(|head| head.contains("NAME") && head.contains("STATE")), "{text}");
    assert!(lines.next().is_some_and(|line| line.contains("pod") && line.contains("active")), "{text}");

    std::fs::remove_file(bpffs.instance(NAME).join("COUNTERS"))?;
    bpffs.run(&["show", NAME])?.refused(exit::FAILED, &["COUNTERS"])?;
    std::fs::remove_file(bpffs.instance(NAME).join("META"))?;
    let line = &bpffs.list()?[0];
    assert_eq!(line["state"], "damaged");
    assert!(line["problem"].as_str().is_some_and(|text| text.contains("META")), "{line}");
    assert_eq!(line["netns"], attached["netns"], "its record still tells whose it is");
    assert!(table(&bpffs, &["list"])?.contains("damaged"));
    Ok(())
}

/// The exposed map: whoever holds the accepted socket finds its connection in it.
#[test]
fn original_destinations() -> anyhow::Result<()> {
    require_root!();
    let tested = TestPod::attached(&[])?;
    let ask = |more: &[&str]| {
        let mut arguments = vec!["original-dst", NAME];
        arguments.extend(more);
        tested.bpffs.run(&arguments)
    };
    assert_eq!(ask(&[])?.expect(exit::OK)?.json()?, json!([]));

    let app = tested.pod().place(APP)?;
    let mut held = [SERVICE, at(VIP6, SERVED)].map(|to| Held::start(&app, to).map(|held| (held, to)));
    let mut clients = Vec::new();
    for connection in &mut held {
        let (held, to) = connection.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let client = held.names()?.local.address().context("an address")?.to_string();
        let found = ask(&["--client", &client])?.expect(exit::OK)?.json()?;
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{found:#}");
        assert_eq!(found[0]["client"], client);
        assert_eq!(found[0]["original"], to.to_string());
        assert_eq!(found[0]["traffic"], "outbound");
        assert!(found[0]["proxy"].as_str().is_some_and(|proxy| proxy.ends_with(":15001")), "{found:#}");
        assert!(found[0]["rule"].as_str().is_some_and(|rule| rule.starts_with("out_")), "{found:#}");
        let text = table(&tested.bpffs, &["original-dst", NAME])?;
        assert!(
            text.contains("ORIGINAL") && text.contains(&client) && text.contains(&to.to_string()),
            "{text}"
        );
        clients.push(client);
    }
    assert_eq!(ask(&[])?.expect(exit::OK)?.json()?.as_array().map(Vec::len), Some(2));
    assert_eq!(tested.show()?["connections"], 2);
    assert_eq!(tested.bpffs.list()?[0]["connections"], 2);

    ask(&["--client", "10.77.0.2:1"])?.refused(exit::NOTHING, &["10.77.0.2:1"])?;
    ask(&["--client", "nonsense"])?.refused(exit::USAGE, &["nonsense"])?;
    tested.bpffs.run(&["original-dst", "nobody"])?.refused(exit::NOTHING, &["nobody"])?;
    drop(held);
    retry::until("the entries to go with their connections", || {
        (ask(&[]).ok()?.json().ok()? == json!([])).then_some(())
    })?;
    for client in clients {
        ask(&["--client", &client])?.refused(exit::NOTHING, &[&client])?;
    }
    Ok(())
}

#[test]
fn check_of_the_node() -> anyhow::Result<()> {
    require_root!();
    let bpffs = Bpffs::new()?;
    let check = bpffs.run(&["check"])?.expect(exit::OK)?.json()?;
    let findings = check.as_array().context("a list")?;
    assert!(findings.len() > 8, "{check:#}");
    for finding in findings {
        let name = finding["name"].as_str().context("a name")?;
        assert!(finding["needed_for"].as_str().is_some_and(|text| !text.is_empty()), "{name}");
        let (present, remedy) = (finding["present"] == true, finding["remedy"].as_str().unwrap_or_default());
        assert_eq!(present, remedy.is_empty(), "{name}: {remedy}");
        assert!(present || finding["required"] == false, "{name}: {remedy}");
    }
    let text = table(&bpffs, &["check"])?;
    assert!(text.contains("CAPABILITY") && text.contains("our programs load"), "{text}");
    bpffs.expect_empty()
}
