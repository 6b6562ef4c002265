//! The example: two versions of an app behind weighted routing, a gateway by host name, and rewritten prefixes, with
//! real Envoys. Static configuration stands in for istiod, a namespace and a cgroup for each pod.
//!
//! ```text
//!   outside ──► gateway :31221   user-app.com        /v1 → v1   /v2 → v2   / → 90 % v1, 10 % v2
//!                  │
//!                  ├──► user-app-v1   Envoy 15006 ──► app :80
//!                  └──► user-app-v2   Envoy 15006 ──► app :80
//!                                     app ──► user-app-svc:80 ──► Envoy 15001 ──► 90 % v1, 10 % v2
//! ```
//!
//! Nobody answers at the service's address: what is not captured is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use redirector_tests::harness::envoy::{self, GATEWAY_PORT};
use redirector_tests::harness::product::{attach_run, exit, redirector};
use redirector_tests::harness::world::netns::Netns;
use redirector_tests::harness::world::{PROXY, Pod, PodOptions, ROOT, World};
use serde_json::Value;

/// The pods, by their number in the world.
pub const PODS: [&str; 3] = ["user-app-v1", "user-app-v2", "gateway"];

/// A mesh by name: what it is called, whether it is up or not.
pub struct Mesh {
    pub name: String,
    directory: PathBuf,
}

impl Mesh {
    /// The mesh of this name.
    pub fn new(name: &str) -> Self {
        let name = format!("redirmesh-{name}");
        let directory = std::env::temp_dir().join(&name);
        Self { name, directory }
    }

    /// Starts everything and leaves it running; on an error nothing stays.
    pub fn up(&self, envoy: &Path) -> anyhow::Result<()> {
        if let Some(left) = self.left()?.first() {
            bail!("the mesh `{}` is up already ({left}): tear it down first", self.name);
        }
        self.start(envoy).inspect_err(|_| {
            if let Err(error) = self.down() {
                eprintln!("clean-up: {error:#}");
            }
        })
    }

    fn start(&self, envoy: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(&self.directory).with_context(|| self.directory.display().to_string())?;
        readable(&self.directory, 0o755)?;
        let world = World::named(&self.name, &PODS.map(|_| PodOptions::default()))?;
        world.client.sysctl(&[("ipv4/ip_forward", "1")])?;
        let backends = [world.pods[0].v4(), world.pods[1].v4()];
        for (pod, name) in world.pods.iter().zip(PODS).take(2) {
            // Before anything runs in the pod, as the CNI plugin does. These Envoys listen on IPv4 alone.
            let flags = ["--ipv6", "off"].map(str::to_owned);
            attach_run(pod, &self.instance(name), &flags, &[])?.expect(exit::OK)?;
            self.app(pod, name)?;
            self.envoy(envoy, pod, name, &envoy::sidecar(backends))?;
        }
        self.envoy(envoy, &world.pods[2], PODS[2], &envoy::gateway(backends))?;
        for (pod, ports) in
            world.pods.iter().zip([&[80, 15001, 15006][..], &[80, 15001, 15006], &[GATEWAY_PORT]])
        {
            for port in ports {
                pod.netns
                    .wait_for_listener(*port)
                    .with_context(|| format!("see the logs in {}", self.directory.display()))?;
            }
        }
        world.keep();
        Ok(())
    }

    /// A web server as in the original example, on port 80, saying its version.
    fn app(&self, pod: &Pod, name: &str) -> anyhow::Result<()> {
        let pages = self.directory.join(name);
        std::fs::create_dir(&pages)?;
        readable(&pages, 0o755)?;
        let version = name.trim_start_matches("user-app-");
        std::fs::write(pages.join("index.html"), format!("user service for {version}\n"))?;
        let pages = pages.display().to_string();
        let arguments = ["-u", "-m", "http.server", "80", "--directory", &pages];
        pod.place(ROOT)?.leave(Path::new("/usr/bin/python3"), &arguments, &self.log(name))?;
        Ok(())
    }

    fn envoy(&self, envoy: &Path, pod: &Pod, name: &str, configuration: &Value) -> anyhow::Result<()> {
        let file = self.directory.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_string_pretty(configuration)?)?;
        readable(&file, 0o644)?;
        let file = file.display().to_string();
        let arguments =
            ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"];
        pod.place(PROXY)?.leave(envoy, &arguments, &self.log(&format!("{name}-envoy")))?;
        Ok(())
    }

    /// Removes everything, whatever of it is there; what cannot be removed is an error.
    pub fn down(&self) -> anyhow::Result<()> {
        for name in &PODS[..2] {
            let instance = self.instance(name);
            redirector(&["detach", "--name", &instance, "--ignore-missing"], &[])?.expect(exit::OK)?;
        }
        World::remove(&self.name, PODS.len())?;
        if self.directory.exists() {
            std::fs::remove_dir_all(&self.directory).with_context(|| self.directory.display().to_string())?;
        }
        let left = self.left()?;
        ensure!(left.is_empty(), "these stay: {}", left.join(", "));
        Ok(())
    }

    /// Everything left of it: instances, namespaces, cgroups (with all processes), files.
    pub fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let list = redirector(&["list"], &[])?.looked()?.json()?;
        for instance in list.as_array().context("a list of instances")? {
            left.extend(
                instance["name"].as_str().filter(|name| name.starts_with(&self.name)).map(str::to_owned),
            );
        }
        let tree = redirector_tests::harness::world::cgroup::mount_point()?;
        for directory in [Path::new("/run/netns"), &tree, &std::env::temp_dir()] {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name == self.name || name.starts_with(&format!("{}-", self.name)) {
                    left.push(directory.join(name).display().to_string());
                }
            }
        }
        Ok(left)
    }

    /// The namespace of the outside.
    pub fn outside(&self) -> anyhow::Result<Netns> {
        Netns::existing(&format!("{}-client", self.name)).context("the mesh is not up")
    }

    pub fn instance(&self, pod: &str) -> String {
        format!("{}-{pod}", self.name)
    }

    pub fn log(&self, who: &str) -> PathBuf {
        self.directory.join(format!("{who}.log"))
    }
}

/// Several users read the files.
fn readable(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| path.display().to_string())
}
