//! Measures the mesh: the split, the rewritten paths, the captured connections, and the number of netfilter rules.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::command::run;
use redirector_tests::harness::envoy::{GATEWAY_PORT, HOST, SERVICE, SERVICE_IP, WEIGHTS};
use redirector_tests::harness::process::Place;
use redirector_tests::harness::product::redirector;
use redirector_tests::harness::retry;
use redirector_tests::harness::world::cgroup::Cgroup;
use redirector_tests::harness::world::netns::Netns;
use redirector_tests::harness::world::{APP, ROOT};
use serde::{Deserialize, Serialize};

use crate::mesh::{Mesh, PODS};

/// The answers of the two versions.
const BODIES: [&str; 2] = ["user service for v1", "user service for v2"];

/// How many requests each version answered.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Split {
    /// Answered by v1.
    pub v1: u32,
    /// Answered by v2.
    pub v2: u32,
}

impl Split {
    /// By how many standard deviations of the binomial distribution v2's share is off the weight asked for.
    pub fn deviation(&self) -> f64 {
        let requests = f64::from(self.v1 + self.v2);
        let share = f64::from(WEIGHTS[1]) / f64::from(WEIGHTS[0] + WEIGHTS[1]);
        (f64::from(self.v2) - requests * share).abs() / (requests * share * (1.0 - share)).sqrt()
    }
}

/// A request to the gateway with a path to be rewritten.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rewrite {
    /// The path asked for.
    pub path: String,
    pub answer: String,
    /// The path that the app logged.
    pub seen_by_app: String,
}

/// Everything that is measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measured {
    /// From the app in user-app-v2 to the service's name.
    pub inside: Split,
    /// From outside through the gateway.
    pub gateway: Split,
    pub rewrites: Vec<Rewrite>,
    /// The status the gateway gives for another host.
    pub other_host: String,
    /// Captured connections of each sidecar: outbound, inbound.
    pub captured: Vec<(String, u64, u64)>,
    /// Netfilter rules in all namespaces.
    pub netfilter_rules: usize,
}

impl Mesh {
    /// Measures with so many requests, each in a connection of its own.
    pub fn measure(&self, requests: u32) -> anyhow::Result<Measured> {
        let outside = Place { netns: self.outside()?.keep_file(), cgroup: None, owner: ROOT };
        let gateway = Ipv4Addr::new(10, 77, 2, 2);
        let to_gateway = |path: &str| -> Vec<String> {
            vec!["--header".into(), format!("Host: {HOST}"), format!("http://{gateway}:{GATEWAY_PORT}{path}")]
        };
        let inside = [
            "--resolve".into(),
            format!("{SERVICE}:80:{SERVICE_IP}"),
            format!("http://{SERVICE}/?inside=[1-{requests}]"),
        ];
        let mut other = curl(&outside);
        other.args(["--output", "/dev/null", "--write-out", "%{http_code}"]);
        other.arg(format!("http://{gateway}:{GATEWAY_PORT}/"));
        Ok(Measured {
            inside: split(&self.app_place("user-app-v2")?, &inside)?,
            gateway: split(&outside, &to_gateway(&format!("/?gateway=[1-{requests}]")))?,
            rewrites: ["v1", "v2"]
                .iter()
                .map(|version| self.rewrite(&outside, version, &to_gateway))
                .collect::<anyhow::Result<_>>()?,
            other_host: run(&mut other, "")?,
            captured: PODS[..2].iter().map(|pod| self.captured(pod)).collect::<anyhow::Result<_>>()?,
            netfilter_rules: self.netfilter_rules()?,
        })
    }

    fn app_place(&self, pod: &str) -> anyhow::Result<Place> {
        let number = PODS.iter().position(|name| *name == pod).context("a pod of the mesh")?;
        let name = format!("{}-pod{number}", self.name);
        let cgroup = Cgroup::existing(&name)?.context("the mesh is not up")?;
        let container = cgroup.child("app");
        cgroup.keep();
        let netns = Netns::existing(&name).context("the mesh is not up")?.keep_file();
        Ok(Place { netns, cgroup: Some(container?), owner: APP })
    }

    fn rewrite(
        &self,
        outside: &Place,
        version: &str,
        to_gateway: &dyn Fn(&str) -> Vec<String>,
    ) -> anyhow::Result<Rewrite> {
        // The query tells this request from all others in the app's log.
        let mark = format!("rewrite-{}-{}", version, std::process::id());
        let path = format!("/{version}?{mark}");
        let answer = run(curl(outside).arg("--fail").args(to_gateway(&path)), "")?.trim().to_owned();
        let log = self.log(&format!("user-app-{version}"));
        let seen_by_app = retry::until(&format!("{mark} in {}", log.display()), || {
            let text = std::fs::read_to_string(&log).ok()?;
            let line = text.lines().find(|line| line.contains(&mark))?;
            line.split('"').nth(1)?.split(' ').nth(1).map(str::to_owned)
        })?;
        let without_mark = |text: &str| text.trim_end_matches(&format!("?{mark}")).to_owned();
        Ok(Rewrite { path: without_mark(&path), answer, seen_by_app: without_mark(&seen_by_app) })
    }

    fn captured(&self, pod: &str) -> anyhow::Result<(String, u64, u64)> {
        let shown = redirector(&["show", &self.instance(pod)], &[])?.looked()?.json()?;
        let counter = |rule: &str| -> u64 {
            let counters = shown["counters"].as_array().map_or(&[][..], Vec::as_slice);
            counters
                .iter()
                .filter(|counter| counter["rule"] == rule)
                .filter_map(|counter| counter["connections"].as_u64())
                .sum()
        };
        // Inbound is what the network brings, and the sidecar's calls to its own pod.
        Ok((pod.to_owned(), counter("out_all"), counter("in_all") + counter("out_proxy_uid_loopback")))
    }

    /// Rules of both families and all tables, in the pods' namespaces and outside.
    fn netfilter_rules(&self) -> anyhow::Result<usize> {
        let mut rules = 0;
        let pods = (0..PODS.len()).map(|number| format!("{}-pod{number}", self.name));
        for name in pods.chain([format!("{}-client", self.name)]) {
            let netns = Netns::existing(&name).context("the mesh is not up")?;
            for program in ["iptables-save", "ip6tables-save"] {
                let saved = run(&mut netns.command(program), "")?;
                rules += saved.lines().filter(|line| line.starts_with("-A ")).count();
            }
            netns.keep();
        }
        Ok(rules)
    }
}

fn split(place: &Place, arguments: &[String]) -> anyhow::Result<Split> {
    // One connection a request: each is captured, or not, by itself.
    let mut command = curl(place);
    command.args(["--fail", "--header", "Connection: close"]).args(arguments);
    let answers = run(&mut command, "")?;
    let count = |body: &str| answers.lines().filter(|line| *line == body).count();
    let [v1, v2] = BODIES.map(count);
    ensure!(v1 + v2 == answers.lines().count(), "other answers than expected: {answers}");
    Ok(Split { v1: u32::try_from(v1)?, v2: u32::try_from(v2)? })
}

fn curl(place: &Place) -> Command {
    let mut command = place.program(Path::new("/usr/bin/curl"));
    command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]);
    command
}
