//! Container images for tests, from files of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::json;

use crate::harness::command::run;

/// An image to be made.
pub struct Image {
    /// Its name with tag.
    pub name: String,
    /// Files: where from, where to (absolute), executable as they are.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The program of a container that names none.
    pub entrypoint: Vec<String>,
}

/// The shell and tools of busybox, in one static file.
pub const BUSYBOX: &str = "/bin/busybox";

impl Image {
    /// Busybox, waiting for ever: it serves as the pause image, too.
    pub fn busybox(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            files: vec![(BUSYBOX.into(), "/bin/busybox".into()), (BUSYBOX.into(), "/bin/sh".into())],
            entrypoint: vec!["/bin/busybox".into(), "tail".into(), "-f".into(), "/dev/null".into()],
        }
    }

    /// With a program and the libraries it asks the loader for.
    pub fn with(mut self, program: &Path, to: &str) -> anyhow::Result<Self> {
        self.files.push((program.to_owned(), to.into()));
        // `ldd` fails for a static program: that one needs nothing.
        let output = Command::new("ldd").arg(program).output().context("ldd")?;
        for word in
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            self.files.push((std::fs::canonicalize(word)?, word.into()));
        }
        Ok(self)
    }

    /// Writes it as an archive of the form of `docker save`, which containerd imports.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let work = tempfile::Builder::new().prefix("redirtest-image").tempdir()?;
        let root = work.path().join("root");
        for directory in ["tmp", "proc", "sys", "dev", "etc", "bin"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        for (from, to) in &self.files {
            let to = root.join(to.strip_prefix("/").unwrap_or(to));
            std::fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            std::fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
        let layer = work.path().join("layer.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&layer).arg("."), "")?;
        let sum = run(Command::new("sha256sum").arg(&layer), "")?;
        let hash = sum.split_whitespace().next().context("a hash")?;
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hash}")]}
        });
        std::fs::write(work.path().join("config.json"), config.to_string())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [self.name], "Layers": ["layer.tar"]}]);
        std::fs::write(work.path().join("manifest.json"), manifest.to_string())?;
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(work.path()).arg("-cf").arg(archive);
        run(tar.args(["manifest.json", "config.json", "layer.tar"]), "")?;
        Ok(())
    }
}
