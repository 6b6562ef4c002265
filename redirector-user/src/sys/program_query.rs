//! Which programs are attached where: BPF_PROG_QUERY, and what the kernel knows of a program by its id.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::bpf::{AttachType, bpf};
use crate::base::text::nul_terminated;

const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_PROG_QUERY: i32 = 16;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// A cgroup takes 64 programs of one kind (`BPF_CGROUP_MAX_PROGS`), and has those of its ancestors.
const MAX_PROGRAMS: usize = 1024;

/// Ids of the programs that run at a hook of a cgroup, its parents' included, in the order in
/// which they run.
pub fn effective(cgroup: BorrowedFd<'_>, at: AttachType) -> io::Result<Vec<u32>> {
    query(cgroup, at, BPF_F_QUERY_EFFECTIVE).map(|attached| attached.ids)
}

/// What is attached somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Ids of the programs.
    pub ids: Vec<u32>,
    /// BPF_F_ALLOW_* with which they are attached to a cgroup.
    pub flags: u32,
}

/// The programs that are attached to a cgroup, or a network namespace, itself.
pub fn attached(target: BorrowedFd<'_>, at: AttachType) -> io::Result<Attached> {
    query(target, at, 0)
}

/// The programs at a hook of an interface of the calling thread's network namespace (6.6).
pub fn of_interface(index: u32, at: AttachType) -> io::Result<Vec<u32>> {
    query_of(index, at, 0).map(|attached| attached.ids)
}

fn query(target: BorrowedFd<'_>, at: AttachType, flags: u32) -> io::Result<Attached> {
    query_of(target.as_raw_fd() as u32, at, flags)
}

fn query_of(target: u32, at: AttachType, flags: u32) -> io::Result<Attached> {
    // All of it, though the last four are not asked for: Linux 6.18 writes `revision` whatever size it
    // is told, and with less room over what stands behind.
    #[repr(C)]
    struct Attr {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut attr = Attr {
        target,
        attach_type: at as u32,
        query_flags: flags,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        pad: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(Attached { ids, flags: attr.attach_flags })
}

/// A loaded program.
///
/// # Errors
///
/// ENOENT if it has been unloaded.
pub fn open(id: u32) -> io::Result<OwnedFd> {
    // {prog_id, next_id, open_flags}
    let mut by_id = [id, 0, 0];
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id)?;
    // SAFETY: a descriptor that bpf(2) has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Name of a loaded program; empty if it has none.
///
/// # Errors
///
/// ENOENT if it has been unloaded.
pub fn name(id: u32) -> io::Result<String> {
    let program = open(id)?;
    // The first 80 bytes of struct bpf_prog_info.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind_and_id: [u32; 2],
        tag: [u8; 8],
        lengths: [u32; 2],
        instructions: [u64; 2],
        load_time: u64,
        owner_and_maps: [u32; 2],
        map_ids: u64,
        name: [u8; 16],
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attr = Attr {
        fd: program.as_raw_fd() as u32,
        len: size_of::<Info>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(nul_terminated(&info.name))
}
