//! containerd with runc, inside a machine, with its default paths.

use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::command::run;
use redirector_tests::harness::image::Image;
use redirector_tests::harness::machine::{Inside, Machine};
use redirector_tests::harness::retry;

/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "local.test/pause:1";

/// As on any node, but for the pause image (there is no registry here) and the limits of this machine: no
/// `CAP_SYS_RESOURCE`, the hugetlb controller in another hierarchy than the rest.
const CONFIG: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local.test/pause:1"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#;

pub struct Containerd {
    pub process: Inside,
}

impl Containerd {
    /// Starts it, with the CNI plugins of the distribution at their usual place and the pause image.
    pub fn start(machine: &Machine) -> anyhow::Result<Self> {
        machine.write("/run/containerd.toml", CONFIG)?;
        machine.sh("mkdir -p /opt/cni/bin /etc/cni/net.d; cp /usr/lib/cni/* /opt/cni/bin/")?;
        let arguments = ["--config", "/run/containerd.toml", "--log-level", "warn"];
        let process = machine.daemon("containerd", &arguments)?;
        let containerd = Self { process };
        retry::until("containerd", || machine.sh("ctr version").ok())
            .with_context(|| containerd.process.daemon.lines().join("\n"))?;
        containerd.import(machine, &Image::busybox(PAUSE))?;
        Ok(containerd)
    }

    /// Makes an image and imports it for containers started by hand and by Kubernetes.
    pub fn import(&self, machine: &Machine, image: &Image) -> anyhow::Result<()> {
        let archive = machine.directory().join("image.tar");
        image.write(&archive)?;
        self.import_archive(machine, &archive)?;
        std::fs::remove_file(archive)?;
        Ok(())
    }

    /// Imports an archive that exists.
    pub fn import_archive(&self, machine: &Machine, archive: &Path) -> anyhow::Result<()> {
        let mut command = machine.command("ctr");
        command.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        run(&mut command, "")?;
        Ok(())
    }
}
