//! What the kernel counts of an instance's programs and maps: runs, run time, memory, calls of helpers.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use super::objects::{Objects, ask, ask_text};

/// Has the kernel count runs and run time of eBPF programs (BPF_ENABLE_STATS, Linux 5.8) until this is dropped. As
/// `kernel.bpf_stats_enabled=1`, but it ends with us even when we are killed.
pub struct ProgramStats {
    _on: OwnedFd,
}

impl ProgramStats {
    pub fn on() -> io::Result<Self> {
        const BPF_ENABLE_STATS: libc::c_long = 32;
        /// `struct { __u32 type; } enable_stats`; BPF_STATS_RUN_TIME is 0.
        #[repr(C)]
        struct Attr {
            kind: u32,
        }
        let attr = Attr { kind: 0 };
        Ok(Self { _on: bpf(BPF_ENABLE_STATS, &attr)? })
    }
}

/// A command of bpf(2) that makes a descriptor.
pub fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` has the layout that the command reads, its size is given, and what it points to lives on.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the call has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The object of a pin.
pub fn pinned_object(path: &Path) -> anyhow::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    /// The head of `union bpf_attr` for BPF_OBJ_GET.
    #[repr(C)]
    struct Attr {
        path: u64,
        descriptor_and_flags: [u32; 2],
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    Ok(bpf(BPF_OBJ_GET, &Attr { path: path.as_ptr() as u64, descriptor_and_flags: [0; 2] })?)
}

/// What the kernel says of an object's descriptor.
pub fn fdinfo(object: &OwnedFd, name: &str) -> anyhow::Result<Option<u64>> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.map(|line| line.trim().parse()).transpose()?)
}

/// The kernel's counts of a program while [`ProgramStats`] are on.
#[derive(Clone, Copy, Debug)]
pub struct RunCount {
    pub runs: u64,
    pub nanoseconds: u64,
}

impl RunCount {
    /// Of a program, by its id.
    pub fn of(program: u64) -> anyhow::Result<Self> {
        let shown = ask(&["prog", "show", "id", &program.to_string()])?;
        // bpftool is silent about zeros.
        let number = |name: &str| shown[name].as_u64().unwrap_or(0);
        Ok(Self { runs: number("run_cnt"), nanoseconds: number("run_time_ns") })
    }
}

/// Name and program id of each hook, from `redirector show`.
pub fn hooks(shown: &Value) -> anyhow::Result<Vec<(String, u64)>> {
    let hooks = shown["hooks"].as_array().context("`redirector show` lists no hooks")?;
    hooks
        .iter()
        .map(|hook| {
            let id = hook["program"].as_u64().with_context(|| format!("a hook without a program: {hook}"))?;
            Ok((hook["hook"].as_str().unwrap_or("?").to_owned(), id))
        })
        .collect()
}

/// Bytes of kernel memory that programs and maps are charged for.
pub fn memory(objects: &Objects) -> anyhow::Result<u64> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
    const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
    let ids = [(BPF_PROG_GET_FD_BY_ID, &objects.programs), (BPF_MAP_GET_FD_BY_ID, &objects.maps)];
    let each = ids.iter().flat_map(|(command, ids)| ids.iter().map(move |id| (*command, *id as u32)));
    each.map(|(command, id)| {
        // The head of `union bpf_attr`: the id, the one to go on from, flags.
        let object = bpf(command, &[id, 0, 0]).with_context(|| format!("object {id}"))?;
        fdinfo(&object, "memlock")?.with_context(|| format!("object {id} without memory"))
    })
    .sum()
}

/// How many calls of each helper stand in a program as the kernel runs it; look-ups in arrays are no calls there.
pub fn helper_calls(program: u64) -> anyhow::Result<BTreeMap<String, usize>> {
    let dump = ask_text(&["prog", "dump", "xlated", "id", &program.to_string()])?;
    let mut calls = BTreeMap::new();
    for line in dump.lines() {
        if let Some((_, name)) = line.split_once(" call ") {
            let name = name.split(['#', '(', ' ']).next().unwrap_or(name);
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    Ok(calls)
}
