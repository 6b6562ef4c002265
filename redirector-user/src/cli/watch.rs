//! `--watch`: looks again and again, and tells how many connections a second each rule decides.

use std::collections::BTreeMap;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use redirector_common::rule::Counter;

use super::env::Env;
use super::output::{self, Format};
use crate::base::error::Result;
use crate::instance::directory::Directory;
use crate::instance::maps::Instance;

/// Moves to the top left and clears the screen (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// How often to look.
#[derive(Debug, clap::Args)]
pub struct Watch {
    /// Look again every 2 (or SECONDS) seconds until interrupted, and tell the connections per second by rule.
    #[arg(long = "watch", value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
}

/// Connections per second, by the name of the rule.
pub type Rates = BTreeMap<&'static str, f64>;
/// The same by the name of the instance.
pub type AllRates = BTreeMap<String, Rates>;

/// What a look gives: what to print, and whether nothing is wrong.
pub type Look = (String, bool);

/// Looks once, or until interrupted. `look` gets the rates since the look before.
pub fn run(env: &Env, args: &Watch, mut look: impl FnMut(&AllRates) -> Result<Look>) -> Result<ExitCode> {
    let clears = args.seconds.is_some() && env.format == Format::Table && std::io::stdout().is_terminal();
    let mut before: Option<Counts> = None;
    loop {
        let now = args.seconds.map(|_| Counts::read(&env.root)).transpose()?;
        let rates = now.as_ref().zip(before.as_ref()).map(|(now, before)| now.since(before));
        let (text, ok) = look(&rates.unwrap_or_default())?;
        match writeln!(std::io::stdout(), "{}{text}", if clears { CLEAR } else { "" }) {
            // A reader that has closed the pipe wants no more.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            written => written.or_else(output::unwritten)?,
        }
        let Some(seconds) = args.seconds else {
            return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        };
        before = now;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// The counters of every instance at a moment.
struct Counts {
    at: Instant,
    by_name: BTreeMap<String, Vec<u64>>,
}

impl Counts {
    fn read(root: &Directory) -> Result<Self> {
        let counters = |name: String| {
            // An instance that cannot be read is a finding already.
            let counters = Instance::open(root, &name).and_then(|instance| instance.counters()).ok()?;
            Some((name, counters))
        };
        Ok(Self { at: Instant::now(), by_name: root.names()?.into_iter().filter_map(counters).collect() })
    }

    fn since(&self, before: &Self) -> AllRates {
        let seconds = (self.at - before.at).as_secs_f64().max(f64::EPSILON);
        let of = |(name, now): (&String, &Vec<u64>)| {
            let old = before.by_name.get(name)?;
            let each = Counter::ALL.iter().zip(now.iter().zip(old));
            // An instance that was attached again counts from zero.
            let rates =
                each.map(|(rule, (now, old))| (rule.name(), now.saturating_sub(*old) as f64 / seconds));
            Some((name.clone(), rates.filter(|(_, rate)| *rate > 0.0).collect()))
        };
        self.by_name.iter().filter_map(of).collect()
    }
}

/// `out_all 12.0/s, in_all 3.5/s`, the greatest first.
pub fn told(rates: &Rates) -> String {
    let mut all: Vec<(&str, f64)> = rates.iter().map(|(rule, rate)| (*rule, *rate)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.iter().map(|(rule, rate)| format!("{rule} {rate:.1}/s")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_by_rule() {
        let at = Instant::now();
        let counts = |seconds: u64, counters: [u64; 3]| Counts {
            at: at + Duration::from_secs(seconds),
            by_name: BTreeMap::from([("pod1".into(), counters.into())]),
        };
        let rates = counts(4, [10, 60, 7]).since(&counts(2, [10, 40, 6]));
        assert_eq!(
            told(&rates["pod1"]),
            format!("{} 10.0/s, {} 0.5/s", Counter::ALL[1].name(), Counter::ALL[2].name())
        );
        assert!(counts(4, [0; 3]).since(&counts(2, [9; 3]))["pod1"].is_empty());
    }
}
