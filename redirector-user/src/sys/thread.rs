//! Threads whose namespaces or directories differ from those of the process.

use std::io;

/// Runs `f` on a thread of its own that finds no file: its root directory is one without any that could be meant. Where
/// that is not allowed it finds what it always does.
pub fn without_files<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        // SAFETY: the thread is ours alone; afterwards its root directory is, too.
        let alone = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) };
        let _ = alone.and_then(|()| rustix::process::chroot("/proc/self/fdinfo"));
        Ok(f())
    })
}

pub(super) fn on_a_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("apart".into()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
