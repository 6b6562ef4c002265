//! bpf(2) for links, pins and sockmaps.
//!
//! aya loads objects and programs; links are ours, because aya can neither pin every kind we
//! need nor update one in place.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};

const BPF_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_UPDATE: i32 = 29;
const BPF_LINK_DETACH: i32 = 34;
const BPF_NOEXIST: u64 = 1;

/// Where a program is attached (`enum bpf_attach_type`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum AttachType {
    Ingress = 0,
    Egress = 1,
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getsockopt = 21,
    Setsockopt = 22,
    Getpeername4 = 29,
    Getpeername6 = 30,
    Getsockname4 = 31,
    Getsockname6 = 32,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// `bpf(2)` with an attribute struct of our own; unused fields of the union are zero.
pub(super) fn bpf<T>(cmd: i32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is repr(C), valid for its size, and every pointer in it is valid for the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Does what counts against RLIMIT_MEMLOCK before Linux 5.11: if the kernel refuses it, once more without a limit.
pub(super) fn counted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match call() {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            // A process that may not raise it hears of the first refusal.
            let none = Rlimit { current: None, maximum: None };
            setrlimit(Resource::Memlock, none).map_or(Err(e), |()| call())
        }
        other => other,
    }
}

pub(super) fn owned(fd: i64) -> OwnedFd {
    // SAFETY: a descriptor that bpf(2) has just made for us.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// An attachment. Dropping it detaches, unless it is pinned.
#[derive(Debug)]
#[must_use = "dropping a link that is not pinned detaches its program"]
pub struct Link(OwnedFd);

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Id of the link.
    pub id: u32,
    /// Id of the program it runs.
    pub program: u32,
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
    /// Id of the cgroup or inode of the network namespace; 0 once that is gone.
    pub target: u64,
}

impl Link {
    /// Attaches a program to a cgroup directory or a network namespace.
    pub fn create(program: BorrowedFd<'_>, target: BorrowedFd<'_>, at: AttachType) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            prog_fd: u32,
            target_fd: u32,
            attach_type: u32,
            flags: u32,
        }
        let mut attr = Attr {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: target.as_raw_fd() as u32,
            attach_type: at as u32,
            flags: 0,
        };
        bpf(BPF_LINK_CREATE, &mut attr).map(|fd| Self(owned(fd)))
    }

    /// Opens a pinned link.
    pub fn open(path: &Path) -> io::Result<Self> {
        obj_get(path).map(Self)
    }

    /// Pins it, so that it outlives this process.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        obj_pin(self.0.as_fd(), path)
    }

    /// Makes it run another program from now on, without a moment in which none runs. The kernel
    /// compares the kinds of the programs, not their attach types: that is up to the caller.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
            new_prog_fd: u32,
            flags: u32,
            old_prog_fd: u32,
        }
        let mut attr = Attr {
            link_fd: self.0.as_raw_fd() as u32,
            new_prog_fd: program.as_raw_fd() as u32,
            flags: 0,
            old_prog_fd: 0,
        };
        bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
    }

    /// Detaches at once and for good; without it the kernel does so some time after the last
    /// reference has gone.
    pub fn detach(&self) -> io::Result<()> {
        let mut link_fd = self.0.as_raw_fd() as u32;
        bpf(BPF_LINK_DETACH, &mut link_fd).map(drop)
    }

    /// The program it runs.
    pub fn program(&self) -> io::Result<OwnedFd> {
        const BPF_PROG_GET_FD_BY_ID: i32 = 13;
        // {prog_id, next_id, open_flags}
        let mut attr = [self.info()?.program, 0, 0];
        bpf(BPF_PROG_GET_FD_BY_ID, &mut attr).map(owned)
    }

    /// What it is attached to and what it runs.
    pub fn info(&self) -> io::Result<LinkInfo> {
        // struct bpf_link_info; cgroup: {cgroup_id, attach_type}, netns: {netns_ino, attach_type}.
        const BPF_LINK_TYPE_CGROUP: u32 = 3;
        #[repr(C, align(8))]
        #[derive(Default)]
        struct Info {
            kind: u32,
            id: u32,
            prog_id: u32,
            pad: u32,
            words: [u32; 4],
        }
        let mut info = Info::default();
        info_by_fd(self.0.as_fd(), &mut info)?;
        let (target, attach_type) = if info.kind == BPF_LINK_TYPE_CGROUP {
            (u64::from(info.words[0]) | u64::from(info.words[1]) << 32, info.words[2])
        } else {
            (u64::from(info.words[0]), info.words[1])
        };
        Ok(LinkInfo { id: info.id, program: info.prog_id, attach_type, target })
    }
}

fn info_by_fd<T>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr =
        Attr { fd: fd.as_raw_fd() as u32, len: size_of::<T>() as u32, info: std::ptr::from_mut(info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link below a bpffs.
pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_bytes(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at `path`.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_bytes(path)?;
    let mut attr = ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

/// A command about the element of a map whose keys are numbers; some have no value.
fn element<T>(
    command: i32,
    map: BorrowedFd<'_>,
    key: u32,
    value: Option<&mut T>,
    flags: u64,
) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut attr = Attr {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const key) as u64,
        value: value.map_or(0, |value| std::ptr::from_mut(value) as u64),
        flags,
    };
    bpf(command, &mut attr).map(drop)
}

/// What is in an element, None if it is empty.
fn look_up<T: Default>(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<T>> {
    let mut value = T::default();
    match element(BPF_MAP_LOOKUP_ELEM, map, key, Some(&mut value), 0) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| Some(value)),
    }
}

fn delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    element(BPF_MAP_DELETE_ELEM, map, key, None::<&mut ()>, 0)
}

/// Puts a listening socket into an empty slot of a sockmap whose values are 8 bytes; EEXIST if it is not empty.
pub fn sockmap_fill(map: BorrowedFd<'_>, slot: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, map, slot, Some(&mut (socket.as_raw_fd() as u64)), BPF_NOEXIST)
}

/// Empties a slot; it is no error if it is empty already.
pub fn sockmap_clear(map: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
    match delete(map, slot) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Err(e),
        _ => Ok(()),
    }
}

/// Cookie of the socket in a slot, None if the slot is empty.
pub fn sockmap_cookie(map: BorrowedFd<'_>, slot: u32) -> io::Result<Option<u64>> {
    look_up(map, slot)
}

/// Makes an array that takes maps like this one.
pub fn create_array_of_maps(name: &str, entries: u32, like: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: i32 = 0;
    const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    let mut map_name = [0; 16];
    // The last byte ends it.
    let len = name.len().min(map_name.len() - 1);
    map_name[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut attr = Attr {
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: entries,
        map_flags: 0,
        inner_map_fd: like.as_raw_fd() as u32,
        numa_node: 0,
        map_name,
    };
    counted(|| bpf(BPF_MAP_CREATE, &mut attr).map(owned))
}

/// Puts a map or a program into an array of them. Of maps, it waits until no program uses what was there before.
pub fn array_put(array: BorrowedFd<'_>, index: u32, object: BorrowedFd<'_>) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, array, index, Some(&mut (object.as_raw_fd() as u32)), 0)
}

/// Takes out what is at an index. Of maps, it waits until no program uses it. It is no error if nothing is there.
pub fn array_take(array: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    match delete(array, index) {
        // Of an empty element it says EINVAL (`fd_array_map_delete_elem`).
        Err(e) if array_id(array, index)?.is_some() => Err(e),
        _ => Ok(()),
    }
}

/// Id of the map or program at an index, None if there is none.
pub fn array_id(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    look_up(array, index)
}

/// Waits until every program that was running has ended (an RCU grace period), so that what
/// it may have looked at can be changed.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: membarrier(2) takes no pointers. Where it is missing (nohz_full), the time of the
    // few system calls that follow has to do.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}
