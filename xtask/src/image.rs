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

use crate::{cmd::Cmd, sources::sha256};

/// Writes an archive with an image called `name` that holds `/redirector`.
pub fn write(binary: &Path, name: &str, archive: &Path) -> Result<()> {
    let layout = Layout::new(archive.with_extension("layout"))?;
    let files = layout.directory.join("files");
    fs::create_dir_all(&files)?;
    fs::copy(binary, files.join("redirector")).context("copying the binary")?;
    let layer = layout.directory.join("layer.tar");
    tar(&files, &layer, &["--mode=0755", "redirector"])?;
    let layer = fs::read(&layer)?;

    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/redirector"], "Cmd": ["agent"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]}
    });
    let config = layout.blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar", &layer)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]
    });
    let mut manifest = layout.blob(MANIFEST, &serde_json::to_vec(&manifest)?)?;
    manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
    // The first is the standard's, the second is what containerd names the image by.
    manifest["annotations"] =
        json!({"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    fs::write(layout.directory.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar(&layout.directory, archive, &["oci-layout", "index.json", "blobs"])
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

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

/// Names in order, no times, no owners: the same files make the same bytes.
fn tar(directory: &Path, archive: &Path, what: &[&str]) -> Result<()> {
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
        let make = |name: &str| {
            fs::write(&binary, "program").unwrap();
            let archive = directory.join(name);
            write(&binary, "localhost/redirector:test", &archive).unwrap();
            fs::read(archive).unwrap()
        };
        let (first, second) = (make("a.tar"), make("b.tar"));
        assert!(first == second && !first.is_empty());
        let text = String::from_utf8_lossy(&first).into_owned();
        assert!(text.contains("localhost/redirector:test") && text.contains(r#""/redirector""#));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "only the binary and two archives");
        fs::remove_dir_all(&directory).unwrap();
    }
}
