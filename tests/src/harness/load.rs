//! Many connections while something else happens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, anyhow};

use crate::harness::command::run;
use crate::harness::probe::many::{Load, LoadReport};
use crate::harness::process::Place;

impl Place {
    /// Makes the connections, from here.
    pub fn load(&self, load: &Load) -> anyhow::Result<LoadReport> {
        let report = run(&mut self.probe(&["many"]), &serde_json::to_string(load)?)?;
        serde_json::from_str(&report).context("a report")
    }

    /// Again and again, until there have been enough turns of something; at least twice, so that the second time is
    /// wholly among them.
    fn load_until(&self, load: &Load, turns: &AtomicUsize, enough: usize) -> anyhow::Result<Vec<LoadReport>> {
        let mut reports = Vec::new();
        while reports.len() < 2 || turns.load(Ordering::Relaxed) < enough {
            reports.push(self.load(load)?);
        }
        Ok(reports)
    }
}

/// The reports of two loads, and the number of turns meanwhile.
pub type Loaded = ([Vec<LoadReport>; 2], usize);

/// Makes two loads, each from its place, while there are so many turns or more; a turn is told its number, from 1.
pub fn during(
    loads: [(&Place, Load); 2],
    enough: usize,
    turn: impl Fn(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Loaded> {
    let turns = &AtomicUsize::new(0);
    let reports = thread::scope(|scope| {
        let loading =
            loads.each_ref().map(|(place, load)| scope.spawn(|| place.load_until(load, turns, enough)));
        while !loading.iter().all(thread::ScopedJoinHandle::is_finished) {
            let turned = turn(turns.load(Ordering::Relaxed) + 1);
            // Also after a failure: the loads wait for it.
            turns.fetch_add(if turned.is_ok() { 1 } else { enough }, Ordering::Relaxed);
            turned?;
        }
        let [first, second] =
            loading.map(|reports| reports.join().map_err(|_| anyhow!("a thread panicked"))?);
        anyhow::Ok([first?, second?])
    })?;
    Ok((reports, turns.load(Ordering::Relaxed)))
}
