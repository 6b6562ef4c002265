//! What the running kernel offers.

pub mod btf;
mod cache;
pub mod privileges;

use std::path::Path;

use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use aya_obj::generated::bpf_func_id;
use redirector_common::abi::{ProgramConstants, flag};
use serde::{Deserialize, Serialize};

use crate::base::error::{Error, Result, chain};

/// Facts of the running kernel that programs are loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub(crate) offsets: btf::Offsets,
    pub(crate) has_set_retval: bool,
    pub(crate) has_netns_cookie: bool,
}

/// Whether softirqs may be preempted (PREEMPT_RT).
pub fn is_realtime() -> bool {
    // Only the patches before 6.12 had a file of its own (/sys/kernel/realtime).
    rustix::system::uname().version().to_string_lossy().contains("PREEMPT_RT")
}

impl Kernel {
    /// Asks the running kernel.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] without BTF (CONFIG_DEBUG_INFO_BTF), or if there is no way to tell the
    /// network namespace of a socket.
    pub fn probe() -> Result<Self> {
        cache::facts(Self::ask)
    }

    fn ask() -> Result<Self> {
        let offsets = btf::offsets(Path::new("/sys/kernel/btf/vmlinux"))?;
        let has = |kind, helper, name| {
            is_helper_supported(kind, helper)
                .map_err(|e| Error::failed(format!("cannot probe the helper {name}: {}", chain(&e))))
        };
        // 5.18; before, a refused connect() reads EPERM.
        let has_set_retval =
            has(ProgramType::CgroupSockAddr, bpf_func_id::BPF_FUNC_set_retval, "bpf_set_retval")?;
        // 5.15; before, the namespace's inode number has to do.
        let has_netns_cookie =
            has(ProgramType::SockOps, bpf_func_id::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie")?;
        if !has_netns_cookie && offsets.netns.is_none() {
            return Err(Error::unsupported(
                "this kernel's sockops has no bpf_get_netns_cookie (use Linux 5.15 or newer), and its BTF does not \
                 tell where a socket's network namespace is",
            ));
        }
        Ok(Self { offsets, has_set_retval, has_netns_cookie })
    }

    /// Refuses what this kernel cannot look up.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] for the cgroup of a socket, and the interface a connection arrives on.
    pub fn require(&self, flags: u32) -> Result<()> {
        if flags & flag::PROXY_CGROUP != 0 && self.offsets.cgroup.is_none() {
            return Err(Error::unsupported(
                "--proxy-cgroup: this kernel's sockets do not lead to their cgroup as they do since 5.15",
            )
            .usage("use -u or -g"));
        }
        let interfaces = flag::HAS_EXCLUDE_INTERFACES | flag::HAS_VIRTUAL_INTERFACES;
        if flags & interfaces != 0 && !self.offsets.has_ingress_ifindex {
            return Err(Error::unsupported(
                "-c and -k (interfaces) need Linux 5.17 or newer: before, sk_lookup does not tell the \
                 interface a connection arrives on",
            )
            .usage("leave them out, or exclude ports (-d) or addresses (-x)"));
        }
        Ok(())
    }

    /// Load-time constants for instances whose policies set no other flags than these: for the one of this number, or
    /// [`ProgramConstants::SHARED`].
    pub fn constants(&self, instance: u32, flags: u32) -> ProgramConstants {
        let o = self.offsets;
        let (sock_net, net_inum) = o.netns.unwrap_or_default();
        let c = o.cgroup.unwrap_or_default();
        ProgramConstants {
            instance,
            has_netns_cookie: u32::from(self.has_netns_cookie),
            sock_net,
            net_inum,
            has_ingress_ifindex: u32::from(o.has_ingress_ifindex),
            sock_socket: o.sock_socket,
            socket_file: o.socket_file,
            file_cred: o.file_cred,
            cred_fsuid: o.cred_fsuid,
            cred_fsgid: o.cred_fsgid,
            sock_cgroup: c.sock_cgroup,
            cgroup_parent: c.parent,
            cgroup_node: c.node,
            node_id: c.node_id,
            has_set_retval: u32::from(self.has_set_retval),
            flags,
        }
    }
}
