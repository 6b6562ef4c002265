//! Files of /proc, part of which any process chooses: its name, its cgroups, its mounts.

use std::path::Path;

use redirector_user::netlink::proc_net;
use redirector_user::netlink::sock_diag::Kind;
use redirector_user::pod::descriptors::{Descriptor, from_fdinfo};
use redirector_user::pod::{boundary, cgroup, process};

const KINDS: [Kind; 3] = [Kind::TcpListeners, Kind::TcpConnections, Kind::UdpServers];

/// The text stands where others than the kernel choose what it is. It changes nothing of what the kernel says.
pub fn run(text: &str) {
    mounts(text);
    processes(text);
    for line in text.lines() {
        cgroups(line);
        for kind in KINDS {
            let sockets = [false, true].map(|v6| proc_net::parse(line, v6, kind));
            assert_eq!(sockets[0].is_some(), sockets[1].is_some());
        }
    }
}

/// Who mounts a FUSE file system chooses the source, in which the kernel hides white space.
fn mounts(text: &str) {
    let _ = cgroup::find_mount(text);
    let source = text.replace([' ', '\n', '\t'], "\\040");
    let mounts = format!(
        "9 8 0:7 / /mnt rw - fuse {source} rw\n29 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
    );
    assert_eq!(cgroup::find_mount(&mounts).as_deref(), Some(Path::new("/sys/fs/cgroup")));
}

fn processes(text: &str) {
    let name: String = text.chars().take(15).collect();
    for (flags, ending) in [(0x40_0040, false), (0x40_0044, true)] {
        let stat = format!("8136 ({name}) R 8130 8120 8120 0 -1 {flags} 59 0 0 0");
        assert_eq!(process::says_exiting(&stat), ending, "{stat}");
    }
    process::says_exiting(text);
    let fdinfo = format!("pos:\t0\nflags:\t02\nmnt_id:\t10\nino:\t77\n{text}");
    assert_eq!(from_fdinfo(&fdinfo, 10), Descriptor::Socket(77));
    from_fdinfo(text, 10);
}

/// Of a container's processes the cgroup is the pod's, whatever the container names those below.
fn cgroups(line: &str) {
    const POD: &str = "kubepods/burstable/pod0f8b7c1e-1c2d-4e3f-8a9b-0123456789ab";
    let mount = Path::new("/m");
    let below = |inner: &Path| boundary::bounded(mount, inner, |_| false);
    let path = Path::new(line.strip_prefix("0::").unwrap_or(line));
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.is_relative() {
        if let Ok(found) = below(relative) {
            assert!(found.starts_with(mount) && mount.join(relative).starts_with(&found), "{found:?}");
        }
        assert_eq!(below(&Path::new(POD).join(relative)).expect("a pod"), mount.join(POD));
    }
}
