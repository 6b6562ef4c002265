//! Endurance: a number of connections to many destinations through one instance, and a number of attaches and detaches
//! ([`cycles`]), after which nothing may be wrong and nothing may have grown.

pub mod cycles;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::campaign::kernel_memory;
use super::command::run;
use super::pair::fixture::Setup;
use super::probe::surge::{Surge, SurgeReport};
use super::product::objects::Objects;
use super::product::runs::memory;
use super::product::test_pod::{NAME, TestPod, counter};
use super::retry;
use super::world::APP;

/// The memory is looked at after each of so many parts.
const PARTS: u64 = 10;
const THREADS: u32 = 4;
/// By how much the maps may grow after the first round, in percent.
const MAX_GROWTH: u64 = 5;
/// No port is waited for, and no memory goes to a minute of TIME_WAIT sockets.
const SYSCTLS: &[(&str, &str)] =
    &[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_max_tw_buckets", "4096")];

/// Which connections to make.
#[derive(Clone, Copy, Debug)]
pub struct Endurance {
    pub connections: u64,
    pub destinations: u32,
    /// `--max-destinations`.
    pub quota: u32,
}

/// The figures so far, after some of the parts.
#[derive(Clone, Debug, Default)]
pub struct Endured {
    made: u64,
    time: Duration,
    pub seen: SurgeReport,
    /// Bytes of the instance's maps and programs, once each destination is known; and now.
    pub memory: Option<[u64; 2]>,
    /// KiB that the kernel holds for itself on the whole machine.
    kernel_memory: u64,
    /// Counters of the instance: destinations that got an address, and connections for whose destination there was none.
    pub given: u64,
    pub full: u64,
}

impl fmt::Display for Endured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SurgeReport { right, wrong, missing, refused, .. } = &self.seen;
        let rate = self.made as f64 / self.time.as_secs_f64();
        write!(
            f,
            "{} connections, {rate:.0}/s: {right} right, {wrong} wrong, {missing} missing, {} refused; {} addresses given, \
             {} connections beyond; ",
            self.made,
            refused.values().sum::<u64>(),
            self.given,
            self.full
        )?;
        match self.memory {
            None => write!(f, "not all destinations known")?,
            Some([first, now]) => {
                write!(
                    f,
                    "maps {:.1} KiB, after the first round {:.1}",
                    now as f64 / 1024.0,
                    first as f64 / 1024.0
                )?;
            }
        }
        write!(f, "; machine {} MiB", self.kernel_memory / 1024)
    }
}

impl Endured {
    /// What must not be.
    pub fn fault(&self) -> Option<String> {
        let [first, now] = self.memory.unwrap_or_default();
        if self.seen.right != self.made || self.seen.wrong + self.seen.missing > 0 {
            Some(format!("{:#?}", self.seen))
        } else if now * 100 > first * (100 + MAX_GROWTH) {
            Some(format!("the instance has grown from {first} to {now} bytes"))
        } else {
            None
        }
    }
}

/// Makes the connections. `after` is called after each part.
pub fn connections(
    wanted: &Endurance,
    mut after: impl FnMut(&TestPod, &Endured) -> anyhow::Result<()>,
) -> anyhow::Result<Endured> {
    let Endurance { connections, destinations, quota } = *wanted;
    ensure!(
        destinations > 0 && connections >= 2 * u64::from(destinations),
        "fewer than two rounds of destinations"
    );
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    let tested = TestPod::attached_with(&setup, &["--max-destinations", &quota.to_string()])?;
    tested.pod().netns.sysctl(SYSCTLS)?;
    let objects = Objects::of(&tested.bpffs, NAME)?;
    let mut endured = Endured::default();
    for part in 0..PARTS {
        let [first, end] = [part, part + 1].map(|part| connections * part / PARTS);
        let surge = Surge { first, count: end - first, destinations, threads: THREADS };
        let begun = Instant::now();
        let seen = run(&mut tested.pod().place(APP)?.probe(&["surge"]), &serde_json::to_string(&surge)?)?;
        endured.time += begun.elapsed();
        endured.seen.add(serde_json::from_str(&seen).context("a report")?);
        endured.made = end;
        // Entries of connections go when their clients do.
        let shown = retry::until("the connections to end", || {
            tested.show().ok().filter(|shown| shown["connections"] == 0)
        })?;
        if end >= u64::from(destinations) {
            let now = memory(&objects)?;
            endured.memory = Some([endured.memory.map_or(now, |[first, _]| first), now]);
        }
        endured.kernel_memory = kernel_memory()?;
        endured.given = counter(&shown, "destinations_given")?;
        endured.full = counter(&shown, "destinations_full")?;
        after(&tested, &endured)?;
    }
    tested.detach()?;
    objects.expect_gone()?;
    Ok(endured)
}
