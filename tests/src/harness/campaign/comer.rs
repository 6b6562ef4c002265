//! Another pod, which comes and goes during a campaign: its first attach, its detach and the passes of an agent are disturbed.
//! It is captured whole or not at all, nothing of it stays, and what was captured once stays captured.

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

use super::planted::Moment;
use super::{Campaign, PANICKED};
use crate::harness::load::during;
use crate::harness::probe::many::{Load, LoadReport};
use crate::harness::probe::storm::End;
use crate::harness::process::Daemon;
use crate::harness::product::agent::{Agent, Home, target};
use crate::harness::product::bpffs::Bpffs;
use crate::harness::product::objects::{Objects, expect_untouched};
use crate::harness::product::{Run, exit};
use crate::harness::retry;
use crate::harness::strace::{At, Fault, injecting, with};
use crate::harness::world::{APP, Pod};

/// Its instance.
const COMER: &str = "comer";
/// Its instance where an agent keeps it.
const KEPT: &str = "file-comer";
/// Destinations, and connections beyond them, that an instance has room for.
const ROOM: u16 = 8;

impl Campaign {
    pub(super) fn comer(&self) -> &Pod {
        &self.tested.fixture.world.pods[2]
    }

    pub(super) fn first_attach(&self, fault: Fault, at: At) -> anyhow::Result<()> {
        let bpffs = &self.tested.bpffs;
        let run = with(fault, at, |by| bpffs.attach_by(by, self.comer(), COMER, &[]))?;
        ensure_no_panic(fault, &run)?;
        bpffs.run(&["list"])?.looked()?;
        let there = bpffs.instance(COMER).exists();
        ensure!(there || run.code != Some(exit::OK), "attached, and not there: {run:?}");
        if there {
            self.is_captured().with_context(|| format!("{run:?}"))?;
        } else {
            self.is_gone().with_context(|| format!("{run:?}"))?;
        }
        bpffs.attach(self.comer(), COMER, &[])?.expect(exit::OK)?;
        self.is_captured()?;
        bpffs.run(&["detach", COMER])?.expect(exit::OK)?;
        self.is_gone()
    }

    pub(super) fn last_detach(&self, fault: Fault, at: At) -> anyhow::Result<()> {
        let bpffs = &self.tested.bpffs;
        bpffs.attach(self.comer(), COMER, &[])?.expect(exit::OK)?;
        let objects = Objects::of(bpffs, COMER)?;
        let run = with(fault, at, |by| Run::of(&mut bpffs.command(by, &["detach", COMER])))?;
        ensure_no_panic(fault, &run)?;
        if run.code != Some(exit::OK) {
            bpffs.run(&["list"])?.looked()?;
            if bpffs.instance(COMER).exists() {
                bpffs.run(&["detach", COMER])?.expect(exit::OK)?;
            }
        }
        self.is_gone().with_context(|| format!("{run:?}"))?;
        objects.expect_gone()
    }

    /// More than there is room for is refused, and the rest is as ever.
    pub(super) fn quotas(&self) -> anyhow::Result<()> {
        let bpffs = &self.tested.bpffs;
        let room = ROOM.to_string();
        let flags = ["--max-destinations", &room, "--max-connections", &room];
        bpffs.attach(self.comer(), COMER, &flags)?.expect(exit::OK)?;
        self.plant_at(Moment::Quotas);
        let many = Load { end: End::Keep, ..Load::services(20 * ROOM) };
        let load = self.comer().load(APP, &many)?;
        is_captured(&load, |failure| failure == "ENOBUFS")?;
        ensure!(
            load.right >= usize::from(2 * ROOM) && !load.failed.is_empty(),
            "the room is another: {load:?}"
        );
        // There is room again when they have ended.
        retry::until("room for connections", || self.is_captured().ok())?;
        bpffs.run(&["detach", COMER])?.expect(exit::OK)?;
        self.is_gone()
    }

    /// The next agent captures what one has failed at; what is captured stays so, while no agent is there, too.
    pub(super) fn agent_passes(&self, fault: Fault, at: At) -> anyhow::Result<()> {
        let home = self.home()?;
        let words = injecting(fault, at);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = Agent::command(&self.elsewhere, &home, &words, &[]);
        let disturbed = Daemon::start("disturbed agent", &mut command)?;
        // The call fails in each thread that makes so many, which may be in each pass.
        let is_over = || {
            disturbed.has_ended() || disturbed.lines().iter().any(|line| line.contains("\"level\":\"ERROR\""))
        };
        let look = || self.is_kept().then_some(true).or_else(|| is_over().then_some(false));
        let is_kept = retry::until("the agent to capture, or to fail", look)
            .with_context(|| disturbed.lines().join("\n"))?;
        let lines = disturbed.lines();
        ensure!(!lines.iter().any(|line| line.contains("panicked")), "it panicked: {lines:#?}");
        if is_kept {
            self.is_captured_during(|| disturbed.end_children())?;
        } else {
            disturbed.end_children()?;
        }
        retry::until("the agent to end", || disturbed.has_ended().then_some(()))?;
        self.plant_at(Moment::AgentAway);
        if is_kept {
            self.is_captured().context("while no agent is there")?;
        }
        let agent = Agent::start(&self.elsewhere, &home)?;
        retry::until("an agent to capture", || self.is_kept().then_some(())).with_context(|| agent.log())?;
        self.is_captured_during(|| agent.signal(Signal::HUP)).with_context(|| agent.log())?;
        agent.kill()?;
        self.elsewhere.run(&["detach", KEPT])?.expect(exit::OK)?;
        self.is_gone()
    }

    /// The agent carries the instance over to the next bpffs, in which it outlives the agent.
    pub(super) fn agent_remount(&self) -> anyhow::Result<()> {
        let home = self.home()?;
        let agent = Agent::start(&self.elsewhere, &home)?;
        retry::until("the agent to capture", || self.is_kept().then_some(()))?;
        let path = self.elsewhere.path();
        self.is_captured_during(|| {
            unmount(path, UnmountFlags::DETACH).context("unmounting")?;
            mount("bpf", path, "bpf", MountFlags::empty(), None).context("mounting a bpffs again")?;
            retry::until("the agent to carry the instance over", || self.is_kept().then_some(()))
        })
        .with_context(|| agent.log())?;
        agent.kill()?;
        self.is_captured().context("while no agent is there")?;
        self.elsewhere.run(&["detach", KEPT])?.expect(exit::OK)?;
        self.is_gone()
    }

    fn home(&self) -> anyhow::Result<Home> {
        let home = Home::new()?;
        home.write(COMER, &target(self.comer(), ""))?;
        Ok(home)
    }

    fn is_kept(&self) -> bool {
        kept(&self.elsewhere).is_ok_and(|state| state == "active")
    }

    fn is_captured(&self) -> anyhow::Result<()> {
        is_captured(&self.comer().load(APP, &Load::services(2 * ROOM))?, |_| false)
    }

    fn is_captured_during(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let app = self.comer().place(APP)?;
        let reports = during(&[(&app, Load::services(50))], work)?;
        reports.iter().flatten().try_for_each(|load| is_captured(load, |_| false))
    }

    /// Nothing of the pod's instance is left, and it is as it was.
    fn is_gone(&self) -> anyhow::Result<()> {
        self.plant_at(Moment::ComerGone);
        let comer = self.comer();
        ensure!(!self.tested.bpffs.instance(COMER).exists(), "its directory is left");
        let staging = self.tested.bpffs.instance(&format!("NEW-{COMER}"));
        ensure!(!staging.exists(), "{} is left", staging.display());
        self.elsewhere.expect_empty()?;
        expect_untouched(comer)?;
        let load = comer.load(APP, &Load::services(2 * ROOM))?;
        ensure!(load.reached.keys().all(|server| server.starts_with("remote:")), "captured still: {load:?}");
        Ok(())
    }
}

fn kept(bpffs: &Bpffs) -> anyhow::Result<String> {
    let show = bpffs.show(KEPT)?;
    Ok(show["state"].as_str().context("a state")?.to_owned())
}

fn is_captured(load: &LoadReport, allows: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let past = load.reached.keys().any(|server| !server.starts_with("proxy:"));
    let failed = load.failed.keys().any(|failure| !allows(failure));
    ensure!(
        !past && !failed && load.wrong == 0,
        "past the proxy, wrong or failed: {:?}, {} wrong ({:?}), {:?}",
        load.reached,
        load.wrong,
        load.examples.first(),
        load.failed
    );
    Ok(())
}

fn ensure_no_panic(fault: Fault, run: &Run) -> anyhow::Result<()> {
    let crashed = fault != Fault::Kill && run.code.is_none_or(|code| code == PANICKED);
    ensure!(!crashed, "it crashed: {run:?}");
    Ok(())
}
