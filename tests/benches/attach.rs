//! The commands that start, renew and end redirection, beside those that load Istio's rules into iptables.

use std::time::Instant;

use redirector_tests::harness::command::run;
use redirector_tests::harness::oracle::{self, options::Options};
use redirector_tests::harness::product::bpffs::{Bpffs, target};
use redirector_tests::harness::product::exit;
use redirector_tests::harness::world::{Pod, World};
use serde::Serialize;

use super::stats::Estimate;
use super::{Settings, sys};

/// One command, with every process that it starts.
#[derive(Clone, Debug, Serialize)]
pub struct CommandCost {
    pub command: &'static str,
    pub wall_ms: Estimate,
    pub cpu_ms: Estimate,
    /// CPU time as a multiple of iptables-restore's for both families (nft), turn by turn.
    pub of_iptables: Estimate,
}

/// The order in which they run in each turn; the first is what the others are compared with.
const COMMANDS: [&str; 5] = [
    "iptables-restore, v4 and v6 (nft)",
    "iptables-restore, v4 and v6 (legacy)",
    "attach",
    "refresh",
    "detach",
];
/// Name of the instance.
const NAME: &str = "pod";

/// Runs all commands, again and again.
pub fn measure(settings: Settings) -> anyhow::Result<Vec<CommandCost>> {
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let rules = oracle::rule_texts(&Options::sidecar());
    let [netns_flag, netns, cgroup_flag, cgroup] = target(pod);
    let attach = ["attach", "--name", NAME, &netns_flag, &netns, &cgroup_flag, &cgroup];
    let ours = |arguments: &[&str]| bpffs.run(arguments)?.expect(exit::OK).map(drop);
    let mut times = vec![(Vec::new(), Vec::new()); COMMANDS.len()];
    for _ in 0..settings.attaches {
        sys::go_on()?;
        let enter = timed(|| enter_twice(pod))?;
        for (engine, times) in ["nft", "legacy"].into_iter().zip(&mut times) {
            let (wall, cpu) = timed(|| oracle::load_by(engine, &pod.netns, &rules))?;
            // redirector enters the namespace itself; iptables gets there by another program.
            times.0.push(wall - enter.0);
            times.1.push(cpu - enter.1);
            oracle::load_by(engine, &pod.netns, &oracle::empty_tables())?;
        }
        for (arguments, times) in
            [&attach[..], &["refresh", NAME], &["detach", "--name", NAME]].into_iter().zip(&mut times[2..])
        {
            let (wall, cpu) = timed(|| ours(arguments))?;
            times.0.push(wall);
            times.1.push(cpu);
        }
    }
    let iptables = times[0].1.clone();
    let cost = |(command, (wall, cpu)): (&'static str, (Vec<f64>, Vec<f64>))| CommandCost {
        command,
        of_iptables: Estimate::of(cpu.iter().zip(&iptables).map(|(ours, theirs)| ours / theirs)),
        wall_ms: Estimate::of(wall),
        cpu_ms: Estimate::of(cpu),
    };
    Ok(COMMANDS.into_iter().zip(times).map(cost).collect())
}

/// What it costs to get to where iptables-restore runs.
fn enter_twice(pod: &Pod) -> anyhow::Result<()> {
    for _ in 0..2 {
        run(&mut pod.netns.command("true"), "")?;
    }
    Ok(())
}

/// Wall and CPU time, in milliseconds.
pub(super) fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<(f64, f64)> {
    let (start, before) = (Instant::now(), sys::children_cpu()?);
    work()?;
    let (wall, cpu) = (start.elapsed(), sys::children_cpu()? - before);
    Ok((wall.as_secs_f64() * 1e3, cpu.as_secs_f64() * 1e3))
}
