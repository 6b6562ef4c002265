//! Connections that are alive at `detach`: with `--drain` they keep their names, without they go on without.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::hold::Names;
use redirector_tests::harness::retry::{self, long_enough};
use serde_json::Value;

/// An attached pod, and the kernel's objects of its instance.
struct Attached {
    tested: TestPod,
    objects: Objects,
}

/// A pod that is attached, with a connection that is alive.
fn attached() -> anyhow::Result<Option<(Attached, Held)>> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    let objects = Objects::of(&tested.bpffs, NAME)?;
    let held = Held::start(&tested.pod().place(APP)?, SERVICE)?;
    assert_eq!(tested.show()?["connections"], 1);
    Ok(Some((Attached { tested, objects }, held)))
}

impl Attached {
    /// Starts a detach that waits.
    fn draining(&self, arguments: &[&str]) -> anyhow::Result<Draining> {
        let mut all = vec!["detach", "--name", NAME];
        all.extend(arguments);
        let mut command = self.tested.bpffs.command(&[], &all);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let draining = Draining(Some(child));
        retry::until("the drain to begin", || {
            (self.state().ok()?.as_deref() == Some("draining")).then_some(())
        })?;
        Ok(draining)
    }

    fn state(&self) -> anyhow::Result<Option<String>> {
        let list = self.tested.bpffs.list()?;
        Ok(list.first().and_then(|line| line["state"].as_str()).map(str::to_owned))
    }

    fn expect_gone(&self) -> anyhow::Result<()> {
        self.tested.expect_nothing()?;
        self.objects.expect_gone()?;
        ensure!(self.tested.connect()? == "remote:8080");
        Ok(())
    }
}

/// A `detach` at work; killed on drop.
struct Draining(Option<Child>);

impl Draining {
    fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.0.as_mut().context("a child")?.try_wait()?.is_some())
    }

    fn end(mut self) -> anyhow::Result<Run> {
        let output = self.0.take().context("a child")?.wait_with_output()?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok(Run {
            command: "detach --drain".to_owned(),
            code: output.status.code(),
            status: output.status,
            stdout,
            stderr,
        })
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn peer(held: &mut Held) -> anyhow::Result<SocketAddr> {
    let Names { peer, .. } = held.names()?;
    peer.address().context("a peer")
}

fn alive(run: Run) -> anyhow::Result<Value> {
    Ok(run.expect(exit::OK)?.json()?["detached"][0]["alive"].clone())
}

#[test]
fn a_drain_keeps_names_until_connections_end() -> anyhow::Result<()> {
    let Some((attached, mut held)) = attached()? else { return Ok(()) };
    let before = held.names()?;
    assert_eq!(before.peer.address(), Some(SERVICE));
    let mut draining = attached.draining(&["--drain=600"])?;

    assert_eq!(attached.tested.connect()?, "remote:8080", "a new connection is captured");
    assert_eq!(held.names()?, before);
    assert!(held.echo()?, "the connection is cut");
    // Nothing new under this name, or for this pod, until it has ended.
    let again = attached.tested.attach_by(&[], &[])?;
    again.refused(exit::FAILED, &["draining", "redirector detach --name pod"])?;
    attached.tested.bpffs.attach(attached.tested.pod(), "other", &[])?.refused(exit::USAGE, &[NAME])?;
    assert!(!draining.has_ended()?);
    assert_eq!(attached.tested.show()?["connections"], 1);

    drop(held);
    let run = draining.end()?;
    assert_eq!(alive(run)?, 0);
    attached.expect_gone()
}

#[test]
fn a_drain_ends_in_time() -> anyhow::Result<()> {
    let Some((attached, mut held)) = attached()? else { return Ok(()) };
    let draining = attached.draining(&["--drain", "1"])?;
    assert_eq!(alive(draining.end()?)?, 1);
    assert_ne!(peer(&mut held)?, SERVICE);
    assert!(held.echo()?, "the connection is cut");
    attached.expect_gone()
}

/// A detach without a drain ends a drain, and the draining command accepts this.
#[test]
fn a_drain_is_cut_short() -> anyhow::Result<()> {
    let Some((attached, mut held)) = attached()? else { return Ok(()) };
    let draining = attached.draining(&["--drain=600"])?;
    assert_eq!(alive(attached.tested.bpffs.run(&["detach", "--name", NAME])?)?, 1);
    attached.tested.attach_by(&[], &[])?.expect(exit::OK)?;
    let run = draining.end()?.expect(exit::OK)?;
    assert!(run.stderr.contains("another command"), "{run:?}");
    assert_eq!(attached.state()?.as_deref(), Some("active"), "the drain has removed the new instance");
    assert!(attached.tested.connect()?.starts_with("proxy:15001"));
    assert!(held.echo()?);
    Ok(())
}

/// A drain whose command was killed ends when its time is over, with the next command.
#[test]
fn a_drain_is_killed() -> anyhow::Result<()> {
    let Some((attached, mut held)) = attached()? else { return Ok(()) };
    drop(attached.draining(&["--drain=2"])?);
    assert_eq!(peer(&mut held)?, SERVICE);
    assert_eq!(attached.tested.connect()?, "remote:8080");
    // It may be swept by now.
    let refresh = attached.tested.bpffs.run(&["refresh", NAME])?;
    assert!(
        refresh.code == Some(exit::NOTHING) || refresh.stderr.contains("detach --name pod"),
        "{refresh:?}"
    );
    if let Some(line) = attached.tested.bpffs.list()?.first() {
        let says = |text: &str| text.contains("captures nothing new") && text.contains("detach --name pod");
        assert!(line["problem"].as_str().is_some_and(says), "{line}");
    }
    retry::until("the drain to be swept", || attached.state().ok()?.is_none().then_some(()))?;
    attached.expect_gone()
}

#[test]
fn without_a_drain_connections_go_on() -> anyhow::Result<()> {
    let Some((attached, mut held)) = attached()? else { return Ok(()) };
    let mut second =
        Held::start(&attached.tested.pod().place(APP)?, at(Ipv4Addr::new(10, 96, 0, 11), SERVED))?;
    // As people see it.
    let mut command = Command::new(redirector_tests::harness::product::binary());
    command.arg("--bpffs").arg(attached.tested.bpffs.path()).args(["detach", "--name", NAME]);
    let said = run(&mut command, "")?;
    assert!(said.contains("2 captured connections are alive") && said.contains("--drain"), "{said}");
    for held in [&mut held, &mut second] {
        assert!(held.echo()?, "the connection is cut");
        let names = held.names()?;
        let peer = names.peer.address().context("a peer")?;
        assert!(peer.ip().is_loopback() && peer.port() == 15001, "{names:?}");
        assert_eq!(names.original_dst.address(), None, "{names:?}");
    }
    attached.expect_gone()
}

/// All drain at the same time.
#[test]
fn all_drain_together() -> anyhow::Result<()> {
    let Some((attached, held)) = attached()? else { return Ok(()) };
    let other = Fixture::new(Redirection::None)?;
    attached.tested.bpffs.attach(other.pod(), "other", &[])?.expect(exit::OK)?;
    let second = Held::start(&other.pod().place(APP)?, SERVICE)?;
    let begun = std::time::Instant::now();
    let run = attached.tested.bpffs.run(&["detach", "--all", "--drain=3"])?.expect(exit::OK)?.json()?;
    assert!(
        begun.elapsed() < long_enough(std::time::Duration::from_secs(6)),
        "one after the other: {:?}",
        begun.elapsed()
    );
    assert_eq!(run["detached"].as_array().map(Vec::len), Some(2), "{run:#}");
    drop((held, second));
    attached.expect_gone()
}
