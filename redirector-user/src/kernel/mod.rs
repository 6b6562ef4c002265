//! What the running kernel offers.

pub mod btf;
pub mod check;
pub mod privileges;

use crate::error::{Error, Result, chain};
use aya::programs::ProgramType;
use aya::sys::is_helper_supported;
use aya_obj::generated::bpf_func_id;
use redirector_common::abi::Target;
use redirector_common::policy::flag;

/// Facts of the running kernel that programs are loaded with.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    offsets: btf::OwnerOffsets,
    has_set_retval: bool,
}

impl Kernel {
    /// Asks the running kernel.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] without BTF (CONFIG_DEBUG_INFO_BTF).
    pub fn probe() -> Result<Self> {
        let offsets = btf::owner_offsets(std::path::Path::new("/sys/kernel/btf/vmlinux"))?;
        // 5.18; before, a refused connect() reads EPERM.
        let has_set_retval =
            is_helper_supported(ProgramType::CgroupSockAddr, bpf_func_id::BPF_FUNC_set_retval).map_err(
                |e| Error::Failed(format!("cannot probe the helper bpf_set_retval: {}", chain(&e))),
            )?;
        Ok(Self { offsets, has_set_retval })
    }

    /// Refuses what this kernel cannot look up.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for the cgroup of a socket.
    pub fn require(&self, flags: u32) -> Result<()> {
        if flags & flag::PROXY_CGROUP != 0 && self.offsets.cgroup.is_none() {
            return Err(Error::Unsupported(
                "--proxy-cgroup: this kernel's sockets do not lead to their cgroup as they do since 5.15; use -u or -g"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Load-time constants for an instance in a network namespace and on a cgroup, whose policies
    /// set no other flags than these.
    pub fn target(&self, netns_cookie: u64, cgroup_id: u64, flags: u32) -> Target {
        let o = self.offsets;
        let c = o.cgroup.unwrap_or_default();
        Target {
            netns_cookie,
            cgroup_id,
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
            _pad: 0,
        }
    }
}
