//! Offsets of kernel structs from the kernel's own BTF.
//!
//! Only some numbers are needed, so this is one pass over the type section that keeps
//! nothing (Documentation/bpf/btf.rst has the format).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::error::{Context, Error, Result};

/// Offsets in bytes on the way from a socket to its owner, and what else the kernel's types tell of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// `sock.sk_socket`.
    pub sock_socket: u32,
    /// `socket.file`.
    pub socket_file: u32,
    /// `file.f_cred`.
    pub file_cred: u32,
    /// `cred.fsuid`.
    pub cred_fsuid: u32,
    /// `cred.fsgid`.
    pub cred_fsgid: u32,
    /// To its cgroup, where the kernel has it as we know it.
    pub cgroup: Option<CgroupOffsets>,
    /// `sock_common.skc_net`, and `net.ns.inum`: to its network namespace. Needed only before 5.15.
    pub netns: Option<(u32, u32)>,
    /// Whether sk_lookup knows the interface (5.17).
    pub has_ingress_ifindex: bool,
}

/// Offsets in bytes on the way from a socket to its cgroup, from there to the cgroup above, and to the id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupOffsets {
    /// `sock.sk_cgrp_data.cgroup` (a pointer since 5.15).
    pub sock_cgroup: u32,
    /// `cgroup.self.parent`, which points to `self` of the parent.
    pub parent: u32,
    /// `cgroup.kn`.
    pub node: u32,
    /// `kernfs_node.id`.
    pub node_id: u32,
}

/// Struct, member; in the order of [`Offsets`], with those of [`CgroupOffsets`] in between.
const WANTED: [(&str, &str); 15] = [
    ("sock", "sk_socket"),
    ("socket", "file"),
    ("file", "f_cred"),
    ("cred", "fsuid"),
    ("cred", "fsgid"),
    ("sock", "sk_cgrp_data"),
    ("sock_cgroup_data", "cgroup"),
    ("cgroup", "self"),
    ("cgroup_subsys_state", "parent"),
    ("cgroup", "kn"),
    ("kernfs_node", "id"),
    ("sock_common", "skc_net"),
    ("net", "ns"),
    ("ns_common", "inum"),
    ("bpf_sk_lookup_kern", "ingress_ifindex"),
];
/// How many of them there must be.
const NEEDED: usize = 5;

/// Reads them from a BTF file, normally `/sys/kernel/btf/vmlinux`.
///
/// # Errors
///
/// [`Error::unsupported`] if the file is missing or does not describe the structs.
pub fn offsets(path: &Path) -> Result<Offsets> {
    let data = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::unsupported(format!(
                "{} is missing: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y, so that the owner of a \
                 socket can be found",
                path.display()
            )));
        }
        other => other.context(|| format!("read {}", path.display()))?,
    };
    let mut found = [None; WANTED.len()];
    scan(&data, &mut found).ok_or_else(|| {
        Error::unsupported(format!("{}: not BTF that this version understands", path.display()))
    })?;
    let [.., net, ns, inum, ingress_ifindex] = found;
    let netns = net.zip(ns.zip(inum)).map(|(net, (ns, inum))| (net, ns + inum));
    let has_ingress_ifindex = ingress_ifindex.is_some();
    let cgroup = cgroup_offsets(&found[NEEDED..NEEDED + 6]);
    let mut offsets = [0; NEEDED];
    for ((offset, found), (of, member)) in offsets.iter_mut().zip(found).zip(WANTED) {
        *offset = found.ok_or_else(|| {
            Error::unsupported(format!("{}: no member {member} in struct {of}", path.display()))
        })?;
    }
    let [sock_socket, socket_file, file_cred, cred_fsuid, cred_fsgid] = offsets;
    Ok(Offsets {
        sock_socket,
        socket_file,
        file_cred,
        cred_fsuid,
        cred_fsgid,
        cgroup,
        netns,
        has_ingress_ifindex,
    })
}

fn cgroup_offsets(found: &[Option<u32>]) -> Option<CgroupOffsets> {
    let all: Vec<u32> = found.iter().copied().collect::<Option<_>>()?;
    let [data, pointer, itself, parent, node, node_id] = all.try_into().ok()?;
    // What points to `self` of a cgroup points to the cgroup.
    (itself == 0).then_some(CgroupOffsets { sock_cgroup: data + pointer, parent, node, node_id })
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn is(strings: &[u8], at: u32, name: &str) -> bool {
    let at = at as usize;
    strings.get(at..at + name.len()) == Some(name.as_bytes()) && strings.get(at + name.len()) == Some(&0)
}

/// Fills in the offsets of [`WANTED`]; None if the data is malformed.
fn scan(data: &[u8], found: &mut [Option<u32>; WANTED.len()]) -> Option<()> {
    const MAGIC: u16 = 0xeb9f;
    if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header = u32_at(data, 4)? as usize;
    let section = |off: usize, len: usize| -> Option<&[u8]> {
        let start = header + u32_at(data, off)? as usize;
        data.get(start..start + u32_at(data, len)? as usize)
    };
    let (types, strings) = (section(8, 12)?, section(16, 20)?);

    let mut at = 0;
    while at < types.len() && found.iter().any(Option::is_none) {
        let name = u32_at(types, at)?;
        let info = u32_at(types, at + 4)?;
        let (kind, vlen, bitfields) = ((info >> 24) & 0x1f, (info & 0xffff) as usize, info >> 31 == 1);
        at += 12;
        const STRUCT: u32 = 4;
        if kind == STRUCT {
            for (slot, (of, member)) in found.iter_mut().zip(WANTED) {
                if slot.is_none() && is(strings, name, of) {
                    *slot = member_offset(types, strings, at, vlen, bitfields, member);
                }
            }
        }
        at += trailing(kind, vlen)?;
    }
    Some(())
}

fn member_offset(
    types: &[u8],
    strings: &[u8],
    start: usize,
    vlen: usize,
    bitfields: bool,
    name: &str,
) -> Option<u32> {
    (0..vlen).find_map(|i| {
        let member = start + 12 * i;
        if !is(strings, u32_at(types, member)?, name) {
            return None;
        }
        let bits = u32_at(types, member + 8)?;
        Some(if bitfields { bits & 0x00ff_ffff } else { bits } / 8)
    })
}

/// Bytes that follow the 12 bytes every type has.
fn trailing(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        1 | 14 | 17 => 4,                            // INT, VAR, DECL_TAG
        3 => 12,                                     // ARRAY
        4 | 5 | 15 | 19 => 12 * vlen,                // STRUCT, UNION, DATASEC, ENUM64
        6 | 13 => 8 * vlen,                          // ENUM, FUNC_PROTO
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0, // PTR, FWD, TYPEDEF, modifiers, FUNC, FLOAT, TYPE_TAG
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_is_understood() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            eprintln!("skipped: this kernel has no BTF");
            return;
        }
        let o = offsets(path).unwrap();
        assert!(o.sock_socket > 0 && o.socket_file > 0 && o.cred_fsuid > 0);
        assert!(o.cgroup.is_some_and(|c| c.sock_cgroup > 0 && c.parent > 0 && c.node > 0), "{:?}", o.cgroup);
        assert_eq!(o.cred_fsgid, o.cred_fsuid + 4, "kuid_t and kgid_t stand side by side");
    }

    #[test]
    fn malformed_data_is_refused_without_a_panic() {
        for data in
            [&b""[..], b"\x9f\xeb", &[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]]
        {
            assert_eq!(scan(data, &mut [None; WANTED.len()]), None);
        }
    }
}
