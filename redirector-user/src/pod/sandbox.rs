//! Pods whose processes have a kernel of their own: gVisor's, or that of a virtual machine (Kata Containers). Their sockets
//! are not this kernel's, and no hook sees them.

use std::path::Path;

use super::cgroup::Cgroup;
use super::process;
use crate::base::error::Result;

/// What to do about one.
pub const REMEDY: &str = "run the pod with a runtime that shares the node's kernel, or redirect inside of the sandbox (istio-init)";

/// How the programs are called in which such a kernel runs, and whose they are. The kernel cuts names of processes after
/// 15 bytes.
const SANDBOXES: [(&str, &str); 8] = [
    ("runsc", "gVisor"),
    ("runsc-sandbox", "gVisor"),
    ("qemu-system-", "QEMU"),
    ("qemu-kvm", "QEMU"),
    ("cloud-hyperviso", "Cloud Hypervisor"),
    ("firecracker", "Firecracker"),
    ("stratovirt", "StratoVirt"),
    ("dragonball", "Dragonball"),
];

/// A process of the cgroup in which such a kernel runs, for people: `pid 4711 runsc-sandbox (gVisor)`.
///
/// # Errors
///
/// If the cgroup cannot be read.
pub fn of(cgroup: &Cgroup) -> Result<Option<String>> {
    let told = |pid: u32| {
        let (name, whose) = names(pid).iter().find_map(|name| known(name))?;
        Some(format!("pid {pid} {name} ({whose})"))
    };
    Ok(cgroup.processes()?.into_iter().find_map(told))
}

fn known(name: &str) -> Option<(String, &'static str)> {
    let is_it = |known: &str| if known.ends_with('-') { name.starts_with(known) } else { name == known };
    let (_, whose) = SANDBOXES.iter().find(|(known, _)| is_it(known))?;
    Some((name.to_owned(), whose))
}

/// The name of a process, of its first argument and of its program: gVisor's is started by way of /proc/self/exe.
fn names(pid: u32) -> [String; 3] {
    let last = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    [process::name(pid), last(Path::new(String::from_utf8_lossy(first).as_ref())), last(&program)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_are_known_by_their_programs() {
        for (name, whose) in [
            ("runsc-sandbox", Some("gVisor")),
            ("qemu-system-x86", Some("QEMU")),
            ("cloud-hyperviso", Some("Cloud Hypervisor")),
            ("qemu", None),
            ("runscript", None),
            ("", None),
        ] {
            assert_eq!(known(name).map(|(_, whose)| whose), whose, "{name}");
        }
    }
}
