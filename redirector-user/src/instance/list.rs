//! `redirector list`: a line for each instance, whatever its state.

use schemars::JsonSchema;
use serde::Serialize;

use super::directory::Directory;
use super::maps::Instance;
use super::phase::Phase;
use super::record::Record;
use super::status::{any_record, problem};
use super::{connections, find};
use crate::base::error::Result;
use crate::pod::name::PodName;

/// A line of `redirector list`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Summary {
    /// Name of the instance.
    pub name: String,
    /// `active`, `draining`, `inert`, `damaged`, or `unreadable` for now.
    pub state: &'static str,
    /// Inode number of the network namespace.
    pub netns_inode: Option<u64>,
    /// The namespace file that was given.
    pub netns: Option<String>,
    /// The pod of Kubernetes that it captures.
    pub pod: Option<PodName>,
    /// The cgroup that was given.
    pub cgroup: Option<String>,
    /// Redirected connections that are alive.
    pub connections: Option<u64>,
    /// What is wrong: it is damaged, what it was attached to is gone, or it is draining.
    pub problem: Option<String>,
}

/// All instances. A damaged one is listed, not an error.
pub fn list(root: &Directory) -> Result<Vec<Summary>> {
    Ok(root.names()?.into_iter().filter_map(|name| summary(root, &name)).collect())
}

/// None if it has been detached while we looked.
fn summary(root: &Directory, name: &str) -> Option<Summary> {
    let mut line = Summary {
        name: name.to_owned(),
        state: "damaged",
        netns_inode: None,
        netns: None,
        pod: None,
        cgroup: None,
        connections: None,
        problem: None,
    };
    if let Err(e) = fill(&mut line, root) {
        line.state = if e.is_no_verdict() { "unreadable" } else { "damaged" };
        line.problem = Some(e.on_command_line());
    }
    root.instance(name).exists().then_some(line)
}

fn fill(line: &mut Summary, root: &Directory) -> Result<()> {
    let instance = match Instance::open(root, &line.name) {
        Ok(instance) => instance,
        Err(e) => {
            // Its records may be left, and tell whose it was.
            if let Some(record) = find::any_record(&root.instance(&line.name)) {
                line.whose(&record);
            }
            return Err(e);
        }
    };
    let meta = instance.meta()?;
    let phase = Phase::of(&meta);
    line.netns_inode = Some(meta.netns_inode);
    let record = any_record(&instance, phase)?;
    line.whose(&record);
    line.problem = problem(&instance, &meta, &record)?;
    line.connections = Some(connections::alive(&instance, find::netns_of(&record, &meta)?.as_ref())?);
    line.state = phase.name();
    Ok(())
}

impl Summary {
    fn whose(&mut self, record: &Record) {
        self.netns = Some(record.netns.display().to_string());
        self.pod.clone_from(&record.pod);
        self.cgroup = Some(record.cgroup.display().to_string());
    }
}
