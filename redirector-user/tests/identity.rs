//! An instance is told from a later one of the same name.

use std::path::PathBuf;

use redirector_user::instance::{detach::detach_only, directory::Directory};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A bpffs that goes away with its value.
struct Bpffs(PathBuf);

impl Bpffs {
    /// `None`, with a message, without the privileges for it.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var_os("CI").is_some()
                || std::env::var("REDIRECTOR_TESTS_PRIVILEGED").is_ok_and(|value| value == "required");
            assert!(!required, "this test mounts a bpffs and must run as root here");
            eprintln!("SKIPPED: mounting a bpffs takes root");
            return None;
        }
        let dir = std::env::temp_dir().join(format!("redirector-identity-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let this = Self(dir);
        mount("bpf", &this.0, "bpf", MountFlags::empty(), None).unwrap();
        Some(this)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The pod's next sandbox has an instance of the same name, which the end of the one before must leave alone.
#[test]
fn a_later_instance_of_the_name_stays() {
    let Some(bpffs) = Bpffs::new() else { return };
    let root = Directory::at(&bpffs.0);
    let make = |name: &str| std::fs::create_dir_all(root.instance(name)).unwrap();
    make("pod-a");
    let first = root.identity("pod-a").unwrap();
    std::fs::rename(root.instance("pod-a"), root.instance("pod-b")).unwrap();
    make("pod-a");
    assert!(detach_only(&root, "pod-a", first).unwrap().is_none());
    assert!(detach_only(&root, "pod-c", first).unwrap().is_none());
    assert!(root.instance("pod-a").exists());
    assert!(detach_only(&root, "pod-b", first).unwrap().is_some());
    assert!(!root.instance("pod-b").exists());
}
