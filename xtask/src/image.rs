//! A container image of one file, as an OCI archive: no image builder is needed, and the same binary gives the same
//! bytes. `deploy/Dockerfile` makes the same image with one.
//!
//! Layout: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::cmd::Cmd;
use crate::sources::sha256;
use crate::vm::Arch;

/// Writes an archive with an image called `name` that holds `/redirector`, for each architecture.
pub fn write(binaries: &[(Arch, PathBuf)], name: &str, archive: &Path) -> Result<()> {
    let layout = Layout::new(archive.with_extension("layout"))?;
    let manifests = binaries.iter().map(|(arch, binary)| layout.image(*arch, binary));
    let mut manifests = manifests.collect::<Result<Vec<Value>>>()?;
    // One image stands for itself, several under an index of their own, which then has the name.
    let mut named = if manifests.len() == 1 {
        manifests.remove(0)
    } else {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        layout.blob(INDEX, &serde_json::to_vec(&index)?)?
    };
    // The first is the standard's, the second is what containerd names the image by.
    named["annotations"] =
        json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
    fs::write(layout.directory.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar(&layout.directory, archive, &["oci-layout", "index.json", "blobs"])
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// <https://github.com/opencontainers/image-spec/blob/v1.1.0/annotations.md>
fn labels() -> Value {
    json!({
        "org.opencontainers.image.title": "redirector",
        "org.opencontainers.image.description": "What istio-init does with iptables, with eBPF",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": "(MIT OR Apache-2.0) AND (GPL-2.0-only OR MIT)",
    })
}

/// The directory while it is made; removed on drop.
struct Layout {
    directory: PathBuf,
}

impl Layout {
    fn new(directory: PathBuf) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(directory.join("blobs/sha256"))
            .with_context(|| directory.display().to_string())?;
        Ok(Self { directory })
    }

    /// The image of one architecture; its manifest's description.
    fn image(&self, arch: Arch, binary: &Path) -> Result<Value> {
        let files = self.directory.join("files");
        fs::create_dir_all(&files)?;
        fs::copy(binary, files.join("redirector")).context("copying the binary")?;
        let layer = self.directory.join("layer.tar");
        tar(&files, &layer, &["--mode=0755", "redirector"])?;
        let config = json!({
            "architecture": arch.debian(), "os": "linux",
            "config": {"Entrypoint": ["/redirector"], "Cmd": ["agent"], "Labels": labels()},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&fs::read(&layer)?))]}
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&layer)?)?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "annotations": labels()
        });
        let mut manifest = self.blob(MANIFEST, &serde_json::to_vec(&manifest)?)?;
        manifest["platform"] = json!({"architecture": arch.debian(), "os": "linux"});
        Ok(manifest)
    }

    /// Stores bytes under their hash and describes them.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let hash = sha256(bytes);
        fs::write(self.directory.join("blobs/sha256").join(&hash), bytes)?;
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{hash}"), "size": bytes.len()}))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The compressed file, without its name and time.
pub fn gzip(file: &Path) -> Result<Vec<u8>> {
    Cmd::new("gzip").args(["--no-name", "--best", "--stdout"]).arg(file).quiet(true).read_bytes()
}

/// Names in order, no times, no owners: the same files make the same bytes.
pub fn tar(directory: &Path, archive: &Path, what: &[&str]) -> Result<()> {
    Cmd::new("tar")
        .args(["--create", "--format=ustar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
        .arg("--numeric-owner")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(directory)
        .args(what)
        .quiet(true)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_binary_makes_the_same_image() {
        let directory = std::env::temp_dir().join(format!("xtask-image-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let binary = directory.join("binary");
        let make = |name: &str, arches: &[Arch]| {
            fs::write(&binary, "program").unwrap();
            let archive = directory.join(name);
            let binaries: Vec<_> = arches.iter().map(|arch| (*arch, binary.clone())).collect();
            write(&binaries, "localhost/redirector:test", &archive).unwrap();
            fs::read(archive).unwrap()
        };
        let both = [Arch::X86, Arch::Aarch64];
        let (first, second, one) = (make("a.tar", &both), make("b.tar", &both), make("c.tar", &both[..1]));
        assert!(first == second && !first.is_empty());
        let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        assert!(has(&first, "localhost/redirector:test") && has(&first, r#""/redirector""#));
        for arch in [r#""architecture":"amd64""#, r#""architecture":"arm64""#] {
            assert!(has(&first, arch));
        }
        assert!(has(&one, "amd64") && !has(&one, "arm64"));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 4, "only the binary and three archives");
        fs::remove_dir_all(&directory).unwrap();
    }
}
