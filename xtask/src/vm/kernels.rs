//! Which kernels to boot, and where their files are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    archive::{self, Archive, Wanted},
    exit, project,
};

/// Suites that together have every kernel series.
const SUITES: [(&str, &str); 4] = [
    ("debian-security", "bullseye-security"),
    ("debian-security", "bookworm-security"),
    ("debian-security", "trixie-security"),
    ("debian", "trixie-backports"),
];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What was asked for: a series, or the name of a file.
    pub series: String,
    /// Its release, as `uname -r` says it; the file's name for an image.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`; None if there are none.
    pub modules: Option<PathBuf>,
}

/// The kernels of series or exact versions: the newest point release of each, because older ones leave the mirror.
pub fn of_series(series: &[String], arch: &'static str) -> Result<Vec<Kernel>> {
    let cache = project::cache("vm");
    let wanted = Wanted { arch, suites: &SUITES, sources: false };
    let archive = Archive::open(&cache.join(format!("apt-{arch}")), wanted)?;
    let mut names = archive.names("linux-image-")?;
    names.extend(archive.names("linux-binary-")?);
    names.extend(archive.names("linux-modules-")?);
    series.iter().map(|series| fetch(&archive, &cache, &names, series, arch)).collect()
}

fn fetch(archive: &Archive, cache: &Path, names: &[String], series: &str, arch: &str) -> Result<Kernel> {
    let Some(release) = newest(names, series, arch) else {
        return Err(exit::with_code(
            exit::CANNOT,
            format!("the package lists have no kernel {series} (linux-image-{series}*-cloud-{arch})"),
        ));
    };
    let dir = cache.join(&release);
    if !dir.is_dir() {
        let debs: Result<Vec<_>> =
            packages(names, &release).iter().map(|package| archive.download(package)).collect();
        // Beside its final place and renamed: what was interrupted is not taken for finished.
        let fresh = cache.join(format!("{release}.new"));
        unpack(&debs?, &fresh)?;
        fs::rename(&fresh, &dir).with_context(|| format!("cannot rename {}", fresh.display()))?;
    }
    in_dir(&dir, series)
}

/// The newest release of a series: `6.1` is not `6.12`.
fn newest(names: &[String], series: &str, arch: &str) -> Option<String> {
    let end = format!("-cloud-{arch}");
    let releases = names.iter().filter_map(|name| {
        let release = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"))?;
        let version = release.strip_suffix(&end)?;
        let rest = version.strip_prefix(series)?;
        let of_series = rest.is_empty() || rest.starts_with(['.', '+', '-']);
        // `linux-image-6.1-cloud-amd64` has no kernel; it depends on one.
        (of_series && version.matches('.').count() >= 2).then_some(release)
    });
    releases.max_by_key(|release| numbers(release)).map(str::to_owned)
}

fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// From 6.19 on, linux-image-* is empty and two packages have its parts.
fn packages(names: &[String], release: &str) -> Vec<String> {
    let split: Vec<String> = ["binary", "modules"]
        .iter()
        .map(|part| format!("linux-{part}-{release}"))
        .filter(|name| names.contains(name))
        .collect();
    if split.is_empty() { vec![format!("linux-image-{release}")] } else { split }
}

/// The kernel in package files.
pub fn of_debs(debs: &[PathBuf]) -> Result<Kernel> {
    let dir = project::cache("vm").join("given");
    unpack(debs, &dir)?;
    let file = debs[0].file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    in_dir(&dir, &file)
}

/// A kernel image by itself.
pub fn of_image(image: &Path, modules: Option<&Path>) -> Result<Kernel> {
    ensure!(image.is_file(), "no such file: {}", image.display());
    let name = image.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let release = modules
        .and_then(Path::file_name)
        .map_or_else(|| name.clone(), |dir| dir.to_string_lossy().into_owned());
    Ok(Kernel { series: name, release, image: image.to_owned(), modules: modules.map(Path::to_owned) })
}

fn unpack(debs: &[PathBuf], dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    archive::unpack(debs, dir)
}

/// Finds the image and the modules in unpacked packages; they have moved over the years.
fn in_dir(dir: &Path, series: &str) -> Result<Kernel> {
    let sub = |path: &str| {
        fs::read_dir(dir.join(path)).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    let modules = sub("lib/modules").chain(sub("usr/lib/modules")).find(|dir| dir.is_dir());
    let in_boot = sub("boot")
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    let Some(image) =
        in_boot.or_else(|| modules.as_ref().map(|dir| dir.join("vmlinuz")).filter(|file| file.is_file()))
    else {
        bail!("no kernel image in {}", dir.display());
    };
    let release = match image.file_name().and_then(|name| name.to_str()?.strip_prefix("vmlinuz-")) {
        Some(release) => release.to_owned(),
        None => modules
            .as_deref()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    let modules = modules.filter(|dir| dir.join("kernel").is_dir());
    Ok(Kernel { series: series.to_owned(), release, image, modules })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let names = names(&[
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-0.deb11.99-cloud-amd64",
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ]);
        let newest = |series| newest(&names, series, "amd64");
        assert_eq!(newest("6.1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12").as_deref(), Some("6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest("6.12.9").as_deref(), Some("6.12.9+deb13-cloud-amd64"));
        assert_eq!(newest("7.3"), None);
        assert_eq!(packages(&names, &newest("7.2").unwrap()).len(), 2);
        assert_eq!(packages(&names, "6.1.0-56-cloud-amd64"), ["linux-image-6.1.0-56-cloud-amd64"]);
    }
}
