//! Bugs that a campaign has to find. What each would do to the kernel's objects, or to the pod, is done from outside, so that
//! no release holds any of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::Campaign;
use crate::harness::command::run;
use crate::harness::pair::matrix::SERVED;
use crate::harness::product::exit;
use crate::harness::product::objects::{Objects, detach_link, set_meta};
use crate::harness::product::test_pod::NAME;

/// When a bug shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// While the instance works: in place of a step.
    Step,
    BeforeDetach,
    AfterDetach,
    /// Nothing of the pod that comes and goes should be left.
    ComerGone,
    /// The agent that keeps it has ended.
    AgentAway,
    /// Its instance has room for little.
    Quotas,
}

impl Moment {
    pub(super) fn is_of_the_comer(self) -> bool {
        matches!(self, Self::ComerGone | Self::AgentAway | Self::Quotas)
    }
}

/// A bug.
pub struct Planted {
    pub name: &'static str,
    pub moment: Moment,
    plant: fn(&Campaign) -> anyhow::Result<()>,
}

impl Planted {
    /// Plants it. A bug that cannot be planted must not be taken for one that was found.
    pub(super) fn plant(&self, campaign: &Campaign) {
        (self.plant)(campaign).unwrap_or_else(|e| panic!("planting `{}`: {e:#}", self.name));
    }
}

const fn step(name: &'static str, plant: fn(&Campaign) -> anyhow::Result<()>) -> Planted {
    Planted { name, moment: Moment::Step, plant }
}

/// All of them.
pub static ALL: [Planted; 23] = [
    step("leave connect4 out", |campaign| lose(campaign, "connect4")),
    step("leave connect6 out", |campaign| lose(campaign, "connect6")),
    step("leave sk_lookup out", |campaign| lose(campaign, "sk_lookup")),
    step("leave getsockopt out", |campaign| lose(campaign, "getsockopt")),
    step("leave sockops out", |campaign| lose(campaign, "sockops")),
    step("leave getpeername4 out", |campaign| lose(campaign, "peername4")),
    step("swap two rules: a port before the rest", |campaign| change(campaign, &["-o", &SERVED.to_string()])),
    step("exclude what is included, inbound", |campaign| change(campaign, &["-d", &SERVED.to_string()])),
    step("decide for IPv4 alone", |campaign| change(campaign, &["--ipv6", "off"])),
    step("forget who the proxy is", |campaign| change(campaign, &["-u", "4242"])),
    step("drop the namespace check", capture_the_neighbour),
    step("check for another namespace", |campaign| {
        // The lowest byte of the cookie.
        set_meta(&directory(campaign), 8, 0xff).map(drop)
    }),
    step("stay inert", |campaign| set_meta(&directory(campaign), 4, 0).map(drop)),
    step("activate a slot that nobody wrote", |campaign| {
        set_meta(&directory(campaign), 4, 3 - campaign.active_word()?).map(drop)
    }),
    step("forget the listeners", forget_listeners),
    step("give an address a second meaning", |campaign| second_meaning(&directory(campaign))),
    Planted { name: "leave a link", moment: Moment::BeforeDetach, plant: |campaign| keep(campaign, "link") },
    Planted { name: "leave a map", moment: Moment::BeforeDetach, plant: |campaign| keep(campaign, "map") },
    Planted {
        name: "leave a program",
        moment: Moment::BeforeDetach,
        plant: |campaign| keep(campaign, "prog"),
    },
    Planted {
        name: "skip one undo: ::6 on lo",
        moment: Moment::AfterDetach,
        plant: |campaign| campaign.tested.pod().netns.ip("address add ::6/128 dev lo\n"),
    },
    Planted {
        name: "skip one undo of another pod",
        moment: Moment::ComerGone,
        plant: |campaign| campaign.comer().netns.ip("address replace ::6/128 dev lo\n"),
    },
    Planted {
        name: "capture only while the agent is there",
        moment: Moment::AgentAway,
        plant: |campaign| campaign.elsewhere.run(&["detach", "--all", "--ignore-missing"]).map(drop),
    },
    Planted {
        name: "let pass what there is no room for",
        moment: Moment::Quotas,
        plant: |campaign| detach_link(&campaign.tested.bpffs.instance("comer").join("link_connect4")),
    },
];

fn directory(campaign: &Campaign) -> PathBuf {
    campaign.tested.bpffs.instance(NAME)
}

fn lose(campaign: &Campaign, hook: &str) -> anyhow::Result<()> {
    detach_link(&directory(campaign).join(format!("link_{hook}")))
}

fn change(campaign: &Campaign, flags: &[&str]) -> anyhow::Result<()> {
    campaign.tested.attach(flags).map(drop)
}

fn capture_the_neighbour(campaign: &Campaign) -> anyhow::Result<()> {
    let neighbour = campaign.neighbour();
    let cgroup = neighbour.cgroup.context("a cgroup")?.display().to_string();
    let netns = neighbour.netns.display().to_string();
    let attach = ["attach", "--netns", &netns, "--cgroup", &cgroup, "--name", "neighbour"];
    campaign.tested.bpffs.run(&attach)?.expect(exit::OK).map(drop)
}

/// Empties the registry. A place that is empty already is an error to the kernel.
fn forget_listeners(campaign: &Campaign) -> anyhow::Result<()> {
    let pin = directory(campaign).join("LISTENERS");
    let shown = run(Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(&pin), "")?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    let places = shown["max_entries"].as_u64().context("max_entries")?;
    for place in 0..places {
        let key = (place as u32).to_le_bytes().map(|byte| byte.to_string());
        let mut delete = Command::new("bpftool");
        delete.args(["map", "delete", "pinned"]).arg(&pin).arg("key").args(key);
        delete.output()?;
    }
    Ok(())
}

/// Two destinations swap their entries: each address has the other's meaning.
pub fn second_meaning(instance: &Path) -> anyhow::Result<()> {
    let pin = instance.join("ORIGINAL_DST");
    let dump = run(Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&pin), "")?;
    let dump: serde_json::Value = serde_json::from_str(&dump)?;
    let bytes = |entry: usize, of: &str| -> anyhow::Result<Vec<String>> {
        let bytes = dump[entry][of].as_array().context("two entries")?;
        Ok(bytes.iter().filter_map(|byte| byte.as_str().map(str::to_owned)).collect())
    };
    for (key, value) in [(0, 1), (1, 0)] {
        let mut update = Command::new("bpftool");
        update.args(["map", "update", "pinned"]).arg(&pin).arg("key").args(bytes(key, "key")?);
        run(update.arg("value").args(bytes(value, "value")?), "")?;
    }
    Ok(())
}

/// Pins an object of the instance in another directory.
fn keep(campaign: &Campaign, kind: &str) -> anyhow::Result<()> {
    let objects = Objects::of(&campaign.tested.bpffs, NAME)?;
    let ids = match kind {
        "link" => objects.links,
        "map" => objects.maps,
        _ => objects.programs,
    };
    let id = ids.first().context("an object")?.to_string();
    let path = campaign.elsewhere.path().join(kind);
    run(Command::new("bpftool").args([kind, "pin", "id", &id]).arg(path), "").map(drop)
}
