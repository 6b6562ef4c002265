//! README's commands, run from top to bottom as they stand there, and the outputs that it shows.

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product;
use redirector_tests::harness::product::agent::Home;
use rustix::process::{Pid, Signal, kill_process};

const README: &str = include_str!("../../README.md");

/// The first block of code after a line.
fn block(after: &str) -> anyhow::Result<Vec<&'static str>> {
    let rest = README.split_once(after).with_context(|| format!("no line {after} in README"))?.1;
    let code = rest.split("\n```").nth(1).context("a block of code")?;
    Ok(code.lines().skip(1).collect())
}

/// What the lines of `show` before its table begin with.
fn labels<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    lines.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn usage_from_top_to_bottom() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, worlds) = (Bpffs::new()?, Home::new()?, [World::new()?, World::new()?]);
    let proxies: Vec<Server> = worlds
        .iter()
        .map(|world| world.pod().serve(PROXY, "proxy", proxy_listeners(1)))
        .collect::<anyhow::Result<_>>()?;
    let directory = tempfile::tempdir()?;
    std::fs::write(
        directory.path().join("rules.txt"),
        block("what `iptables-save -t nat` shows")?.join("\n") + "\n",
    )?;
    let pod = worlds[1].pod();
    let places = [
        ("4711", proxies[0].pid().to_string()),
        ("/run/netns/pod1", pod.netns.file().display().to_string()),
        ("/sys/fs/cgroup/pod1", pod.cgroup.directory().display().to_string()),
        ("/etc/redirector/targets.d", home.config().display().to_string()),
    ];
    let mut shown = None;
    for line in block("\n## Usage\n")? {
        let line = line.split(" #").next().unwrap_or(line);
        let line = places.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to));
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.first() == Some(&"redirector"), "no command: {line}");
        let mut command = product::command(&[]);
        command.current_dir(directory.path()).arg("--bpffs").arg(bpffs.path()).args(&words[1..]);
        let daemons_first_line = match words[1] {
            "trace" => Some("waiting for connections"),
            "agent" => Some("serving"),
            _ => None,
        };
        if let Some(first) = daemons_first_line {
            if words[1] == "agent" {
                command.arg("--run-dir").arg(home.run()).args(["--http", "127.0.0.1:0"]);
            }
            let daemon = Daemon::start(words[1], &mut command)?;
            daemon.wait_for(0, |line| line.contains(first).then_some(()))?;
            // As a user ends it.
            kill_process(Pid::from_raw(daemon.pid().cast_signed()).context("a pid")?, Signal::INT)?;
            retry::until("it to end", || daemon.has_ended().then_some(()))?;
            continue;
        }
        let run = Run::of(&mut command)?.expect(exit::OK)?;
        if words[1] == "show" {
            shown = Some(run.stdout);
        }
    }
    bpffs.run(&["detach", "--all"])?.expect(exit::OK)?;
    bpffs.expect_empty()?;
    let shown = shown.context("Usage has show")?;
    let printed = block("`redirector show pod1`:")?;
    assert_eq!(
        labels(printed.iter().copied()),
        labels(shown.lines()),
        "README shows an output of another version: {shown}"
    );
    Ok(())
}
