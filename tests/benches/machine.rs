//! Where and when the figures were taken.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::command::run;
use redirector_tests::harness::product::binary;
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;

/// The machine, the moment and the product.
#[derive(Clone, Debug, Serialize)]
pub struct MachineInfo {
    pub date: String,
    /// `redirector --version`.
    pub redirector: String,
    /// `iptables --version`.
    pub iptables: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the CPU.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// `/proc/loadavg` before the start.
    pub load: String,
}

impl MachineInfo {
    pub fn look() -> anyhow::Result<Self> {
        let cpus = read("/proc/cpuinfo")?;
        let of = |program: &Path, argument: &str| -> anyhow::Result<String> {
            Ok(run(Command::new(program).arg(argument), "")?.trim().to_owned())
        };
        let load = read("/proc/loadavg")?;
        Ok(Self {
            date: run(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]), "")?.trim().to_owned(),
            redirector: of(&binary(), "--version")?,
            iptables: of(Path::new("iptables"), "--version")?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: cpu_name(&cpus).to_owned(),
            cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        })
    }
}

impl fmt::Display for MachineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, redirector, kernel, cpu, cpus, load, .. } = self;
        write!(f, "{redirector}, {date}\nLinux {kernel}, {cpu}, {cpus} CPUs, load {load}")
    }
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).context(path.to_owned())
}

fn cpu_name(cpuinfo: &str) -> &str {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown", |(_, name)| name.trim())
}

/// The CPU to use: the one that was asked for, else the last one we may use (the first ones tend to get interrupts).
pub fn choose_cpu(wanted: Option<usize>) -> anyhow::Result<usize> {
    let ours = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| ours.is_set(*cpu));
    let cpu = wanted.or(last).context("no CPU is ours")?;
    ensure!(cpu < CpuSet::MAX_CPU && ours.is_set(cpu), "CPU {cpu} is not ours to use");
    Ok(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_cpu() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        assert_eq!(cpu_name("processor\t: 0\n"), "unknown");
    }
}
