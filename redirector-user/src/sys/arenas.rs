//! How glibc gives memory to threads.

/// One arena for all threads: each that allocates gets one of its own else, 128 MiB of addresses of which pages stay, and
/// most threads of this program do next to nothing.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes no pointers. Where it fails each thread has its arena.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
