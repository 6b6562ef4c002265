//! Two system calls that no safe crate offers: a signal handler and the kernel's statistics of eBPF programs.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on Ctrl-C and SIGTERM are noticed between measurements, so that everything is cleaned up. Programs that are
/// started have the usual handling.
pub fn catch_interrupts() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        let before =
            unsafe { libc::signal(signal, note as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        if before == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Ends what was interrupted.
pub fn go_on() -> anyhow::Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

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
        // SAFETY: `attr` lives through the call and has the size given.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const attr, size_of::<Attr>()) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the call has just made for us.
        Ok(Self { _on: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}
