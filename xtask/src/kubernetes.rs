//! The Kubernetes of the node tests.
//!
//! No registry here has its binaries, but Debian's source package still holds the whole tree, and Debian's Go builds it
//! without the network. That takes minutes, so the result stays in `.cache`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    apt,
    archive::{Archive, Wanted},
    cmd::Cmd,
    deps, project,
};

const VERSION: &str = "1.20.2";
const SUITE: &str = "bookworm";
const GO: &str = "1.19";
const BINARIES: [&str; 5] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];

/// Where the binaries are, if they have been built.
pub fn built() -> Option<PathBuf> {
    let directory = project::cache(&format!("kubernetes-{VERSION}"));
    BINARIES.iter().all(|name| directory.join(name).is_file()).then_some(directory)
}

/// The directory of the binaries, which are built first if need be.
pub fn ensure() -> Result<PathBuf> {
    if let Some(directory) = built() {
        return Ok(directory);
    }
    eprintln!("note: building Kubernetes {VERSION} from Debian's source; five to fifteen minutes, once");
    let started = Instant::now();
    apt::install(&missing_tools(), true)?;
    let work = project::cache("kubernetes.build");
    let tree = prepare(&work)?;
    let build = Build { work: &work, tree: &tree };
    build.command("make", &["generated_files"]).run().context("generating code")?;
    let made = work.join("made");
    for name in BINARIES {
        let start = Instant::now();
        build
            .command("go", &["build", "-ldflags", &linker_flags()])
            .arg("-o")
            .arg(made.join(name))
            .arg(format!("./cmd/{name}"))
            .quiet(true)
            .run()
            .with_context(|| format!("building {name}"))?;
        eprintln!("kubernetes: built {name} in {} s", start.elapsed().as_secs());
    }
    // Renamed when whole: an interrupted build is not taken for a finished one.
    let directory = project::cache(&format!("kubernetes-{VERSION}"));
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::rename(made, &directory).with_context(|| directory.display().to_string())?;
    fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
    eprintln!("kubernetes: done in {} s", started.elapsed().as_secs());
    Ok(directory)
}

fn missing_tools() -> Vec<&'static str> {
    let tools = ["make", "patch", "rsync", "jq"];
    tools.into_iter().filter(|tool| apt::find_program(tool).is_none()).collect()
}

/// Downloads and unpacks sources and compiler; the source tree at the place that a build without modules wants.
fn prepare(work: &Path) -> Result<PathBuf> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| work.display().to_string())?;
    }
    let wanted = Wanted { arch: deps::DEBIAN_ARCH, suites: &[("debian", SUITE)], sources: true };
    let archive = Archive::open(&work.join("archive"), wanted)?;
    archive.unpack(&[&format!("golang-{GO}-go"), &format!("golang-{GO}-src")], &work.join("go"))?;
    archive.source("kubernetes")?;
    let tree = work.join("path/src/k8s.io/kubernetes");
    fs::create_dir_all(&tree)?;
    let unpack = |archive: &Path, to: &Path, strip: &str| {
        Cmd::new("tar").arg("-C").arg(to).arg(strip).arg("-xf").arg(archive).quiet(true).run()
    };
    unpack(&archive.source_file("kubernetes_", ".orig.tar.gz")?, &tree, "--strip-components=1")?;
    unpack(&archive.source_file("kubernetes_", ".debian.tar.xz")?, work, "--strip-components=0")?;
    let patches = work.join("debian/patches");
    for name in fs::read_to_string(patches.join("series"))?.lines().filter(|name| !name.is_empty()) {
        Cmd::new("patch").args(["-p1", "-s", "-i"]).arg(patches.join(name)).dir(&tree).quiet(true).run()?;
    }
    Ok(tree)
}

fn linker_flags() -> String {
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let packages = ["component-base/version", "client-go/pkg/version"].map(|package| {
        let package = format!("k8s.io/kubernetes/vendor/k8s.io/{package}");
        format!(
            "-X {package}.gitVersion=v{VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean"
        )
    });
    format!("-s -w {}", packages.join(" "))
}

struct Build<'a> {
    work: &'a Path,
    tree: &'a Path,
}

impl Build<'_> {
    /// A program in the tree with Go's settings: nothing is downloaded, nothing is linked to libc.
    fn command(&self, program: &str, arguments: &[&str]) -> Cmd {
        let go = self.work.join(format!("go/usr/lib/go-{GO}"));
        Cmd::new("nice")
            .args(["-n", "10", program])
            .args(arguments)
            .hidden_env("GOROOT", &go)
            .hidden_env("GOPATH", self.work.join("path"))
            .hidden_env("GOCACHE", self.work.join("cache"))
            .hidden_env("GOFLAGS", "")
            .hidden_env("GO111MODULE", "off")
            .hidden_env("GOPROXY", "off")
            .hidden_env("CGO_ENABLED", "0")
            .hidden_env("PATH", crate::cmd::path_with(&go.join("bin")))
            .dir(self.tree)
    }
}
