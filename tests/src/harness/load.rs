//! Many connections while something else happens.

use std::sync::atomic::{AtomicBool, Ordering};
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
}

/// Makes loads, each from its place, again and again until the work is done, but at least twice.
pub fn during(
    loads: &[(&Place, Load)],
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Vec<LoadReport>>> {
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let repeat = |(place, load): &(&Place, Load)| {
            let mut reports = Vec::new();
            while reports.len() < 2 || !done.load(Ordering::Relaxed) {
                reports.push(place.load(load)?);
            }
            anyhow::Ok(reports)
        };
        let loading: Vec<_> = loads.iter().map(|load| scope.spawn(move || repeat(load))).collect();
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let reports =
            loading.into_iter().map(|load| load.join().map_err(|_| anyhow!("a thread panicked"))?);
        let reports = reports.collect::<anyhow::Result<_>>();
        worked.and(reports)
    })
}
