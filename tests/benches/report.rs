//! The results, as a table or as JSON.

use std::fmt;

use serde::Serialize;

use super::Settings;
use super::attach::CommandCost;
use super::expected::Expectation;
use super::hooks::Hook;
use super::machine::MachineInfo;
use super::node::NodeCost;
use super::pods::{WAYS, Way};
use super::rounds::Rate;
use super::stats::Estimate;

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    pub machine: MachineInfo,
    pub settings: Shown,
    pub rates: Vec<Rate>,
    pub hooks: Vec<Hook>,
    pub commands: Vec<CommandCost>,
    pub node: NodeCost,
    pub expectations: Vec<Expectation>,
}

/// [`Settings`] in plain numbers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Shown {
    rounds: u32,
    slice_ms: u128,
    attaches: u32,
    on_cpu: usize,
}

impl From<Settings> for Shown {
    fn from(settings: Settings) -> Self {
        Self {
            rounds: settings.rounds,
            slice_ms: settings.slice.as_millis(),
            attaches: settings.attaches,
            on_cpu: settings.cpu,
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, slice_ms, on_cpu, .. } = self;
        write!(f, "everything on CPU {on_cpu}; {rounds} rounds of {slice_ms} ms; medians [95% interval]")
    }
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}; {}\n", self.machine, self.machine.iptables, self.settings)?;
        writeln!(f, "{}\n{}\n{}", self.rates(), self.ratios(), self.latencies())?;
        writeln!(f, "{}\n{}\n{}", self.hooks(), self.commands(), self.node)?;
        let mut expectations = TextTable::new(&["expectation", "bound", "found", "verdict"]);
        for expectation in &self.expectations {
            expectations.row([
                expectation.figure.clone(),
                expectation.bound.to_string(),
                short(expectation.found.median),
                expectation.verdict.to_string(),
            ]);
        }
        write!(f, "{expectations}")
    }
}

impl BenchReport {
    fn rates(&self) -> TextTable {
        let mut table = TextTable::new(&[&["per second"], &WAYS.map(Way::label)[..]].concat());
        for rate in &self.rates {
            let name = if rate.unit == "MiB/s" { "throughput, MiB" } else { rate.name };
            let cells = rate.ways.iter().map(|way| thousands(way.rate.median));
            table.row(std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>());
        }
        table
    }

    fn ratios(&self) -> TextTable {
        let mut table = TextTable::new(&[
            "redirector",
            "of direct",
            "of iptables-nft",
            "of iptables-legacy",
            "empty hooks of direct",
        ]);
        for rate in &self.rates {
            table.row([
                rate.name.to_owned(),
                ratio(rate.by(Way::Redirector).of_direct),
                ratio(rate.of_iptables_nft),
                ratio(rate.of_iptables_legacy),
                ratio(rate.by(Way::Floor).of_direct),
            ]);
        }
        table
    }

    fn latencies(&self) -> TextTable {
        let mut table = TextTable::new(&[&["µs, p50 / p99"], &WAYS.map(Way::label)[..]].concat());
        for rate in &self.rates {
            let cells =
                rate.ways.iter().map(|way| format!("{:.1} / {:.1}", way.p50_us.median, way.p99_us.median));
            if rate.ways.iter().all(|way| way.p50_us.median.is_finite()) {
                let name = if rate.name == "requests" { "a request" } else { rate.name };
                table.row(std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>());
            }
        }
        table
    }

    fn hooks(&self) -> TextTable {
        let mut table = TextTable::new(&["hook", "load", "runs/connection", "mean ns"]);
        for hook in &self.hooks {
            table.row([
                hook.hook.clone(),
                hook.load.to_owned(),
                format!("{:.2}", hook.runs_per_connection),
                whole(hook.mean_ns),
            ]);
        }
        table
    }

    fn commands(&self) -> TextTable {
        let mut table = TextTable::new(&["command", "wall ms", "CPU ms", "CPU of iptables-nft"]);
        for cost in &self.commands {
            table.row([
                cost.command.to_owned(),
                milliseconds(cost.wall_ms),
                milliseconds(cost.cpu_ms),
                ratio(cost.of_iptables),
            ]);
        }
        table
    }
}

impl fmt::Display for NodeCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instances = self.instances;
        let mut table = TextTable::new(&["node", "with few instances", &format!("with {instances}")]);
        for (name, [few, all]) in [("attach, CPU ms", self.attach_cpu_ms), ("list, CPU ms", self.list_cpu_ms)]
        {
            table.row([name.to_owned(), format!("{few:.1}"), format!("{all:.1}")]);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "kernel memory of one more idle instance: {} KiB", thousands(self.memory_kib))?;
        writeln!(
            f,
            "{instances} at once, wall: attach {} ms, by the agent {} ms, iptables-restore {} ms",
            thousands(self.at_once_ms),
            thousands(self.by_agent_at_once_ms),
            thousands(self.iptables_at_once_ms)
        )
    }
}

pub(super) fn ratio(estimate: Estimate) -> String {
    format!("{:.3} [{:.3}, {:.3}]", estimate.median, estimate.low, estimate.high)
}

pub(super) fn milliseconds(estimate: Estimate) -> String {
    format!("{:.1} [{:.1}, {:.1}]", estimate.median, estimate.low, estimate.high)
}

pub(super) fn whole(estimate: Estimate) -> String {
    format!("{:.0} [{:.0}, {:.0}]", estimate.median, estimate.low, estimate.high)
}

fn short(number: f64) -> String {
    if number < 10.0 { format!("{number:.3}") } else { format!("{number:.0}") }
}

pub(super) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Columns that line up: the first one to the left, numbers to the right.
pub(super) struct TextTable {
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                let number =
                    self.rows.iter().skip(1).all(|row| row[column].starts_with(|c: char| c.is_ascii_digit()));
                if number {
                    line.push_str(&format!("{cell:>width$}   "));
                } else {
                    line.push_str(&format!("{cell:<width$}   "));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_line_up() {
        assert_eq!([7.0, 999.6, 1_234_567.0].map(thousands), ["7", "1 000", "1 234 567"]);
        let mut table = TextTable::new(&["what", "n"]);
        table.row(["a".to_owned(), "1 000".to_owned()]);
        table.row(["long name".to_owned(), "7".to_owned()]);
        assert_eq!(table.to_string(), "what            n\na           1 000\nlong name       7\n");
    }
}
