//! Targets of the agent whose own processes mislead it.

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::agent::{Agent, Home, until_active};

/// Who can write the pid file chooses the process: only one of his own, in the cgroup that is named beside it.
#[test]
fn a_pid_file_that_others_than_root_can_write() -> anyhow::Result<()> {
    require_root!();
    let (bpffs, home, world) = (Bpffs::new()?, Home::new()?, World::new()?);
    let sleep =
        |owner| Daemon::start("sleep", world.pod().place(owner)?.program("/bin/sleep".as_ref()).arg("600"));
    let (app, proxy) = (sleep(APP)?, sleep(PROXY)?);
    let file = home.run().with_extension("pid");
    std::fs::write(&file, app.pid().to_string())?;
    std::os::unix::fs::chown(&file, Some(APP.uid), None)?;
    let pid_file = format!("pid_file = \"{}\"\n", file.display());
    home.write("shop", &pid_file)?;
    let agent = Agent::start(&bpffs, &home)?;
    let says = |text: &str| {
        let is = |event: &serde_json::Value| event["message"].as_str().is_some_and(|it| it.contains(text));
        agent.wait_for_event(0, is).map(drop)
    };
    says("can be written by user")?;
    std::fs::write(&file, proxy.pid().to_string())?;
    let cgroup = world.pod().cgroup.directory().display();
    home.write("shop", &format!("{pid_file}cgroup = \"{cgroup}\"\n"))?;
    says("names a process of user")?;
    std::fs::write(&file, "root:secret")?;
    agent.signal(rustix::process::Signal::HUP)?;
    says("holds no pid")?;
    assert!(!agent.log().contains("secret"), "{}", agent.log());
    assert!(bpffs.list()?.is_empty());
    std::fs::write(&file, app.pid().to_string())?;
    agent.signal(rustix::process::Signal::HUP)?;
    until_active(&bpffs, &agent, "file-shop", true)
}

/// A child in a namespace of its own, which takes no privilege, does not keep the service from being captured.
#[test]
fn a_child_with_a_namespace_of_its_own() -> anyhow::Result<()> {
    require_root!("unshare");
    let (bpffs, home, world) = (Bpffs::new()?, Home::new()?, World::new()?);
    let place = world.pod().place(APP)?;
    let sleep = |program: &str, arguments: &[&str]| {
        Daemon::start("sleep", place.program(program.as_ref()).args(arguments))
    };
    let unshare = require_program("unshare").context("unshare")?.display().to_string();
    // It is the first that is found.
    let child = sleep(&unshare, &["--user", "--net", "/bin/sleep", "600"])?;
    let service = sleep("/bin/sleep", &["600"])?;
    retry::until("both to be in their namespaces", || {
        let comm = |daemon: &Daemon| std::fs::read_to_string(format!("/proc/{}/comm", daemon.pid())).ok();
        (comm(&child)? == "sleep\n" && comm(&service)? == "sleep\n").then_some(())
    })?;
    home.write("shop", &format!("cgroup = \"{}\"\n", world.pod().cgroup.directory().display()))?;
    let agent = Agent::start(&bpffs, &home)?;
    until_active(&bpffs, &agent, "file-shop", true)?;
    let netns = std::fs::metadata(format!("/proc/{}/ns/net", service.pid()))?;
    assert_eq!(bpffs.show("file-shop")?["netns_inode"], std::os::unix::fs::MetadataExt::ino(&netns));
    Ok(())
}
