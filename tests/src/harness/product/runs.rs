//! What the kernel counts of an instance's programs and maps: runs, run time, memory, calls of helpers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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
    let ids = [("prog", &objects.programs), ("map", &objects.maps)];
    let each = ids.iter().flat_map(|(kind, ids)| ids.iter().map(move |id| (kind, id)));
    each.map(|(kind, id)| {
        let shown = ask(&[kind, "show", "id", &id.to_string()])?;
        shown["bytes_memlock"].as_u64().with_context(|| format!("{kind} {id} without memory: {shown}"))
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
