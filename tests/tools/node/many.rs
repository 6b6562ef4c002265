//! Many pods at once: how long they take, and what each costs.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::deployment;
use crate::kubernetes::Kubernetes;
use crate::pods::{is_ready, pod, sleeper};

struct Memory {
    /// Of all eBPF maps of the machine underneath.
    maps: u64,
    /// Resident memory of the agent.
    agent: u64,
}

/// The cost of many pods.
pub struct Many {
    /// Until all were ready.
    pub up: Duration,
    /// Until all were gone, with their instances.
    pub gone: Duration,
    /// Mean time of an attach.
    pub attach: Duration,
    /// Bytes of maps for each pod.
    pub maps: u64,
    /// Bytes of the agent for each pod.
    pub agent: u64,
}

impl Cluster {
    /// They attach, and vanish.
    pub fn many(&self, count: usize) -> anyhow::Result<Many> {
        let before = self.memory()?;
        let attached =
            |kubernetes: &Kubernetes| deployment::metric(kubernetes, "redirector_attach_seconds_sum", "");
        let (seconds, started) = (attached(&self.kubernetes)?, Instant::now());
        let pods: Vec<Value> = (0..count)
            .map(|number| {
                let mut pod =
                    pod(&format!("many-{number}"), &[sleeper("istio-proxy"), sleeper("app")], "Always");
                pod["metadata"]["labels"] = json!({"series": "many", "injected": "yes"});
                pod
            })
            .collect();
        self.kubernetes.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
        self.ready_by_and_by("series=many", count)?;
        let up = started.elapsed();
        self.no_orphans()?;
        let after = self.memory()?;
        let attach = attached(&self.kubernetes)? - seconds;
        let started = Instant::now();
        self.delete("many")?;
        let per_pod = |bytes: u64| bytes / u64::try_from(count).unwrap_or(1);
        Ok(Many {
            up,
            gone: started.elapsed(),
            attach: Duration::from_secs_f64(attach / f64::from(u32::try_from(count)?)),
            maps: per_pod(after.maps.saturating_sub(before.maps)),
            agent: per_pod(after.agent.saturating_sub(before.agent)),
        })
    }

    /// Hundreds of pods take minutes on a small machine: as long as more get ready, it goes on.
    fn ready_by_and_by(&self, label: &str, count: usize) -> anyhow::Result<()> {
        let (mut most, mut since) = (0, Instant::now());
        while most < count {
            let list = self.kubernetes.get(&["pods", &format!("--selector={label}")])?;
            let pods = list["items"].as_array().context("pods")?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            if ready > most {
                (most, since) = (ready, Instant::now());
            }
            if since.elapsed() > Duration::from_secs(120) {
                bail!(
                    "{most} of {count} pods are ready, and no more get so:\n{}",
                    deployment::log(&self.kubernetes)
                );
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        let maps = self.kubernetes.machine.sh(
            "bpftool --json map show | python3 -c 'import json,sys; print(sum(m[\"bytes_memlock\"] for m in json.load(sys.stdin)))'",
        )?;
        let pid = deployment::pid(&self.kubernetes)?;
        let agent =
            self.kubernetes.machine.sh(&format!("awk '/VmRSS/ {{print $2 * 1024}}' /proc/{pid}/status"))?;
        Ok(Memory { maps: maps.trim().parse()?, agent: agent.trim().parse()? })
    }
}
