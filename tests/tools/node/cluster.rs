//! Pods of a real Kubernetes, also while the agent is killed, replaced or taken away.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use redirector_tests::harness::envoy;
use redirector_tests::harness::image::Image;
use redirector_tests::harness::probe::serve::Listen;
use redirector_tests::harness::process::Place;
use redirector_tests::harness::server::{Server, any4};
use redirector_tests::harness::world::ROOT;
use serde_json::{Value, json};

use crate::deployment;
use crate::kubernetes::Kubernetes;
use crate::pods::{exit_codes, pod, sleeper};
use crate::starts::{CONFLIST, FIRST, first_image, late};

const ENVOY: &str = "local.test/envoy:1";
/// A web server on the node, for pods to call.
const WEB: &str = "10.96.0.10:8081";

/// A cluster with the agent deployed, and a service nobody may reach past a proxy.
pub struct Cluster {
    service: Server,
    pub kubernetes: Kubernetes,
}

impl Cluster {
    pub fn new(kubernetes: Kubernetes, envoy: &std::path::Path) -> anyhow::Result<Self> {
        let machine = &kubernetes.machine;
        machine.sh(
            "ip addr add 10.96.0.10/32 dev lo; mkdir /run/web; echo hello from the node >/run/web/index.html; \
             busybox httpd -p 10.96.0.10:8081 -h /run/web",
        )?;
        kubernetes.containerd.import(machine, &first_image(machine)?)?;
        let file = machine.directory().join("envoy.json");
        let nowhere = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        std::fs::write(&file, envoy::sidecar(nowhere).to_string())?;
        let mut image = Image::busybox(ENVOY).with(envoy, "/envoy")?;
        image.files.push((file, "/etc/envoy.json".into()));
        kubernetes.containerd.import(machine, &image)?;
        let place =
            Place { netns: format!("/proc/{}/ns/net", machine.init()).into(), cgroup: None, owner: ROOT };
        let service = Server::start(&place, "remote", vec![Listen::on(any4(8080))])?;
        deployment::deploy(&kubernetes, "overlays/istio")?;
        Ok(Self { service, kubernetes })
    }

    /// A pod with an Envoy sidecar and no init container, served both ways; Envoy's log shows it.
    pub fn sidecar(&self) -> anyhow::Result<()> {
        let app = [
            "sh",
            "-c",
            "cd /tmp; echo hello from the app >index.html; exec busybox httpd -f -p 9090 -h /tmp",
        ];
        let envoy = [
            "/envoy",
            "-c",
            "/etc/envoy.json",
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warn",
        ];
        let proxy = json!({
            "name": "istio-proxy", "image": ENVOY, "imagePullPolicy": "Never", "command": envoy,
            "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}
        });
        let app = json!({"name": "app", "image": ENVOY, "imagePullPolicy": "Never", "command": app});
        self.kubernetes.apply(&pod("mesh", &[proxy, app], "Always").to_string())?;
        let found = self.kubernetes.ready("app=mesh", 1)?;
        let address = Kubernetes::address(found.first().context("a pod")?)?;
        self.kubernetes.wait("an answer of the app through Envoy", |kubernetes| {
            let answer =
                kubernetes.machine.sh(&format!("curl -sf --max-time 5 http://{address}:9090/")).ok()?;
            (answer == "hello from the app\n").then_some(())
        })?;
        let out = self.kubernetes.kubectl(
            &["exec", "mesh", "-c", "app", "--", "/bin/busybox", "wget", "-qO-", &format!("http://{WEB}/")],
            "",
        )?;
        ensure!(out == "hello from the node\n", "outbound: {out}");
        self.kubernetes.wait("both in Envoy's log", |kubernetes| {
            let log = kubernetes.kubectl(&["logs", "mesh", "-c", "istio-proxy"], "").ok()?;
            let has = |what: &str| log.lines().any(|line| line.starts_with(what) && line.ends_with(" 200"));
            (has(&format!("IN {address}:9090 GET")) && has(&format!("OUT {WEB} GET"))).then_some(())
        })
    }

    /// A pod with an annotation that cannot be meant does not start, and an event on it says why.
    pub fn wrong_annotation(&self) -> anyhow::Result<String> {
        let mut wrong = pod("wrong", &[sleeper("istio-proxy"), sleeper("app")], "Always");
        wrong["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeOutboundPorts"] = json!("http");
        self.kubernetes.apply(&wrong.to_string())?;
        let note = self.kubernetes.wait("an event of the agent", |kubernetes| {
            let events = kubernetes.get(&["events", "--field-selector=involvedObject.name=wrong"]).ok()?;
            let mine = |event: &&Value| event["reportingComponent"] == "redirector";
            Some(events["items"].as_array()?.iter().find(mine)?["message"].as_str()?.to_owned())
        })?;
        let phase = self.kubernetes.get(&["pod", "wrong"])?["status"]["phase"].clone();
        ensure!(phase == "Pending", "it is {phase}");
        self.kubernetes.kubectl(&["delete", "pod", "wrong", "--grace-period=1"], "")?;
        self.no_orphans()?;
        Ok(note)
    }

    /// The address of the pod with Envoy.
    fn mesh(&self) -> anyhow::Result<Ipv4Addr> {
        let mesh = self.kubernetes.ready("app=mesh", 1)?;
        Kubernetes::address(mesh.first().context("a pod")?)
    }

    /// It is served at the address that it has now.
    pub(super) fn answers_now(&self) -> anyhow::Result<()> {
        self.answers(self.mesh()?, "now")
    }

    /// How many connections have reached the service.
    pub(super) fn accepted(&self) -> usize {
        self.service.accepted().len()
    }

    fn answers(&self, mesh: Ipv4Addr, when: &str) -> anyhow::Result<()> {
        let answer = self.kubernetes.machine.sh(&format!("curl -sf --max-time 5 http://{mesh}:9090/"));
        let answer = answer.with_context(|| self.state()).with_context(|| when.to_owned())?;
        ensure!(answer == "hello from the app\n", "{when}: {answer}");
        Ok(())
    }

    /// For messages: the pods, and what is captured.
    fn state(&self) -> String {
        let pods = self.kubernetes.kubectl(&["get", "pods", "--all-namespaces", "--output=wide"], "");
        let names = deployment::instances(&self.kubernetes).unwrap_or_default();
        let shown = names.iter().map(|name| {
            let mut command = self.kubernetes.machine.command(redirector_tests::harness::product::binary());
            let shown = redirector_tests::harness::command::output(command.args(["show", name, "-v"]), "");
            shown.map(|shown| String::from_utf8_lossy(&shown.stdout).into_owned()).unwrap_or_default()
        });
        format!("{}\n{}", pods.unwrap_or_default(), shown.collect::<String>())
    }

    /// The pod with Envoy is still captured, and served.
    pub(super) fn served(&self, when: &str) -> anyhow::Result<()> {
        self.answers(self.mesh()?, when)?;
        let there = deployment::instances(&self.kubernetes)?;
        ensure!(there.len() == 1, "{when}: instances: {there:?}");
        Ok(())
    }

    /// The API server is away for a while: what is captured stays so, and goes on with its return.
    pub fn server_restarts(&mut self) -> anyhow::Result<()> {
        let mesh = self.mesh()?;
        self.kubernetes.stop("kube-apiserver")?;
        self.answers(mesh, "without the API server")?;
        self.kubernetes.apiserver()?;
        self.first_instructions("back", 3, |_, _| Ok(())).map(drop)
    }

    /// Starts `count` pods whose first instruction connects, while `disturb` works; no container may reach the service.
    pub fn first_instructions(
        &self,
        series: &str,
        count: usize,
        disturb: impl Fn(&Kubernetes, &AtomicBool) -> anyhow::Result<()> + Sync,
    ) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let over = AtomicBool::new(false);
        let before = self.accepted();
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let disturber = scope.spawn(|| disturb(&self.kubernetes, &over));
            let result = self.all_refused(series, count);
            over.store(true, Ordering::Relaxed);
            disturber.join().map_err(|_| anyhow::anyhow!("the disturbing thread panicked"))??;
            result
        })?;
        let reached = self.accepted() - before;
        ensure!(reached == 0, "{reached} connections reached the service past the proxy");
        self.delete(series)?;
        Ok(started.elapsed())
    }

    fn all_refused(&self, series: &str, count: usize) -> anyhow::Result<()> {
        // ECONNREFUSED: captured, and the proxy does not listen.
        self.all_end_with(111, series, count)
    }

    /// Starts pods with a sidecar whose first instruction connects, and waits for their ends.
    pub(super) fn all_end_with(&self, expected: i64, series: &str, count: usize) -> anyhow::Result<()> {
        let pods: Vec<Value> = (0..count)
            .map(|number| {
                let app = json!({"name": "app", "image": FIRST, "imagePullPolicy": "Never"});
                let mut pod = pod(&format!("{series}-{number}"), &[app, sleeper("istio-proxy")], "Never");
                pod["metadata"]["labels"] = json!({"series": series, "injected": "yes"});
                pod
            })
            .collect();
        self.kubernetes.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
        let codes = self.kubernetes.wait(&format!("{count} first instructions"), |kubernetes| {
            let codes = exit_codes(&kubernetes.get(&["pods", &format!("--selector=series={series}")]).ok()?);
            (codes.len() == count).then_some(codes)
        })?;
        ensure!(codes.iter().all(|code| *code == expected), "containers ended with {codes:?}");
        Ok(())
    }

    /// Deletes pods, and waits until their instances are gone, too.
    pub(super) fn delete(&self, series: &str) -> anyhow::Result<()> {
        let selector = format!("--selector=series={series}");
        self.kubernetes.kubectl(&["delete", "pods", &selector, "--grace-period=1", "--wait=true"], "")?;
        self.no_orphans()
    }

    /// As many instances as there are injected pods, and no other.
    pub fn no_orphans(&self) -> anyhow::Result<()> {
        let mut last = Vec::new();
        let none = self.kubernetes.wait("instances to be those of the pods", |kubernetes| {
            let pods = kubernetes.get(&["pods", "--selector=injected=yes"]).ok()?;
            let uids = pods["items"].as_array()?.iter().filter_map(|pod| pod["metadata"]["uid"].as_str());
            let mut wanted: Vec<String> = uids.map(|uid| format!("pod-{uid}")).collect();
            let mut there = deployment::instances(kubernetes).ok()?;
            wanted.sort();
            there.sort();
            last.clone_from(&there);
            (wanted == there).then_some(())
        });
        none.with_context(|| {
            format!("instances: {last:?}\nthe agent says:\n{}", deployment::log(&self.kubernetes))
        })
    }

    /// Kills the agent with SIGKILL again and again while pods start.
    pub fn killed(&self, count: usize) -> anyhow::Result<u32> {
        let kills = std::sync::atomic::AtomicU32::new(0);
        self.first_instructions("killed", count, |kubernetes, over| {
            // kubelet waits longer before each restart: 0, 10, 20 seconds.
            while !over.load(Ordering::Relaxed) && kills.load(Ordering::Relaxed) < 3 {
                if let Ok(pid) = deployment::pid(kubernetes) {
                    kubernetes.machine.sh(&format!("kill -9 {pid}"))?;
                    kills.fetch_add(1, Ordering::Relaxed);
                    kubernetes.wait("the agent to be back", |kubernetes| deployment::pid(kubernetes).ok())?;
                }
            }
            deployment::agent(kubernetes).map(drop)
        })?;
        let kills = kills.into_inner();
        ensure!(kills > 0, "the agent was never killed");
        Ok(kills)
    }

    /// The same two tests with a plugin that attaches after it has answered: how many connections escaped in each.
    pub fn late(&self, count: usize) -> anyhow::Result<[usize; 2]> {
        let machine = &self.kubernetes.machine;
        deployment::without_plugin(&self.kubernetes)?;
        let before = std::fs::read_to_string(machine.outside(Path::new(CONFLIST)))?;
        machine.write(CONFLIST, &late(machine, serde_json::from_str(&before)?)?.to_string())?;
        let mut escaped = [0, 0];
        for (series, escaped) in ["late", "killed"].into_iter().zip(&mut escaped) {
            let accepted = self.accepted();
            let found = match series {
                "late" => self
                    .with_agent_paused(|| self.first_instructions(series, count, |_, _| Ok(())))?
                    .map(drop),
                _ => self.killed(count).map(drop),
            };
            *escaped = self.accepted() - accepted;
            ensure!(found.is_err() && *escaped > 0, "{series}: no escape is seen where there must be one");
            self.delete(series)?;
        }
        machine.write(CONFLIST, &before)?;
        deployment::deploy(&self.kubernetes, "overlays/istio")?;
        Ok(escaped)
    }

    /// Does something while the agent does nothing: it would see the pods in the API and be quicker than the late plugin.
    fn with_agent_paused<T>(&self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        let pid = deployment::pid(&self.kubernetes)?;
        self.kubernetes.machine.sh(&format!("kill -STOP {pid}"))?;
        let result = work();
        self.kubernetes.machine.sh(&format!("kill -CONT {pid}"))?;
        Ok(result)
    }

    /// Replaces the agent by a rollout while pods start and a captured pod makes connections; none may fail.
    pub fn rollout(&self, count: usize) -> anyhow::Result<usize> {
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let failed = std::sync::Mutex::new(Vec::new());
        self.first_instructions("rollout", count, |kubernetes, over| {
            std::thread::scope(|scope| -> anyhow::Result<()> {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let script =
                            format!("for i in $(seq 20); do busybox wget -qO- http://{WEB}/ || exit 1; done");
                        let exec = ["exec", "mesh", "-c", "app", "--", "/bin/sh", "-c", &script];
                        match kubernetes.kubectl(&exec, "") {
                            Ok(_) => drop(calls.fetch_add(20, Ordering::Relaxed)),
                            Err(error) => {
                                failed.lock().map(|mut all| all.push(error.to_string())).unwrap_or(())
                            }
                        }
                    }
                });
                let namespace = "--namespace=redirector-system";
                let set = ["set", "env", namespace, "daemonset/redirector", "ROLLOUT=1"];
                kubernetes.kubectl(&set, "")?;
                let status = ["rollout", "status", namespace, "daemonset/redirector", "--timeout=120s"];
                kubernetes.kubectl(&status, "")?;
                deployment::agent(kubernetes).map(drop)
            })
        })?;
        let failed = failed.into_inner().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        ensure!(failed.is_empty(), "calls failed during the rollout: {failed:?}");
        let calls = calls.into_inner();
        ensure!(calls > 0, "nothing was called during the rollout");
        Ok(calls)
    }
}
