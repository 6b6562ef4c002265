//! Programs that only return, at every hook that the product uses: what any redirector by these hooks must cost.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Context;
use redirector_tests::harness::product::runs::bpf;
use redirector_tests::harness::world::Pod;

/// Commands of bpf(2), from `<linux/bpf.h>`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;

/// Program type and attach type of each hook of a cgroup: sock_addr (connect, getpeername, getsockname of both
/// families), sock_ops, getsockopt, setsockopt.
const CGROUP_HOOKS: [(u32, u32); 9] =
    [(18, 10), (18, 11), (18, 29), (18, 30), (18, 31), (18, 32), (13, 3), (25, 21), (25, 22)];
/// sk_lookup, a hook of the namespace.
const NETNS_HOOK: (u32, u32) = (30, 36);

/// `r0 = 1; exit`: every one of these hooks goes on as without a program.
const GO_ON: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

/// The links of the programs; they go with it.
pub struct EmptyHooks {
    _links: Vec<OwnedFd>,
}

impl EmptyHooks {
    /// Attaches to a pod.
    pub fn attach(pod: &Pod) -> anyhow::Result<Self> {
        let open = |path: &std::path::Path| std::fs::File::open(path).context(path.display().to_string());
        let (cgroup, netns) = (open(pod.cgroup.directory())?, open(pod.netns.file())?);
        let hooks = CGROUP_HOOKS.into_iter().map(|hook| (hook, cgroup.as_fd()));
        let links = hooks.chain([(NETNS_HOOK, netns.as_fd())]).map(|((program, attach), target)| {
            let program = load(program, attach).with_context(|| format!("an empty program for {attach}"))?;
            let attr = LinkCreate {
                program: program.as_raw_fd() as u32,
                target: target.as_raw_fd() as u32,
                attach,
                flags: 0,
            };
            bpf(BPF_LINK_CREATE, &attr).with_context(|| format!("attaching an empty program at {attach}"))
        });
        Ok(Self { _links: links.collect::<anyhow::Result<_>>()? })
    }
}

/// `struct { … } link_create` of `union bpf_attr`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// What BPF_PROG_LOAD reads, up to `expected_attach_type`.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

fn load(kind: u32, expected_attach_type: u32) -> io::Result<OwnedFd> {
    // sock_ops programs are of one kind, and an older kernel refuses to be told which.
    let expected_attach_type = if kind == 13 { 0 } else { expected_attach_type };
    let attr = ProgLoad {
        kind,
        instructions: GO_ON.len() as u32,
        code: GO_ON.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        expected_attach_type,
    };
    bpf(BPF_PROG_LOAD, &attr)
}
