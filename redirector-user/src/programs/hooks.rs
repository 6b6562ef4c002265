//! The hooks of an instance: program, where it is attached, names of its pins.

use redirector_common::abi::flag;

use crate::policy::{Dns, Policy};
use crate::sys::bpf::AttachType;

/// One hook.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program in the object and in the kernel.
    pub program: &'static str,
    /// Attach type.
    pub at: AttachType,
    /// Attached to the network namespace; else to the cgroup.
    pub netns: bool,
    /// Attached only while the policy captures DNS: it runs for every datagram.
    pub dns: bool,
}

impl Hook {
    /// Whether a policy needs this hook.
    pub fn is_needed_by(&self, policy: &Policy) -> bool {
        !self.dns || policy.dns != Dns::Off
    }

    /// What is done there, for people.
    pub fn what(&self) -> &'static str {
        match self.short() {
            "getsockopt" => "SO_ORIGINAL_DST",
            "setsockopt" => "refusal of source routing",
            "sk_lookup" => "inbound capture",
            "sockops" => "handing over the original destination",
            "connect4" | "connect6" => "outbound capture",
            _ if self.dns => "DNS over UDP",
            _ => "names of sockets",
        }
    }

    /// Name of the pinned program.
    pub fn program_pin(&self) -> String {
        format!("prog_{}", self.short())
    }

    /// Name of the pinned link.
    pub fn link_pin(&self) -> String {
        format!("link_{}", self.short())
    }

    /// The name without the prefix.
    pub fn short(&self) -> &'static str {
        self.program.trim_start_matches("rd_")
    }
}

const fn cgroup(program: &'static str, at: AttachType) -> Hook {
    Hook { program, at, netns: false, dns: false }
}

const fn dns(program: &'static str, at: AttachType) -> Hook {
    Hook { program, at, netns: false, dns: true }
}

/// What happens to TCP sockets.
pub const SOCKOPS: Hook = cgroup("rd_sockops", AttachType::SockOps);

/// All hooks. Those that read a socket's state come before connect, which writes it.
pub const ALL: [Hook; 14] = [
    cgroup("rd_getsockopt", AttachType::Getsockopt),
    cgroup("rd_setsockopt", AttachType::Setsockopt),
    cgroup("rd_peername4", AttachType::Getpeername4),
    cgroup("rd_peername6", AttachType::Getpeername6),
    cgroup("rd_sockname4", AttachType::Getsockname4),
    cgroup("rd_sockname6", AttachType::Getsockname6),
    Hook { program: "rd_sk_lookup", at: AttachType::SkLookup, netns: true, dns: false },
    dns("rd_recvmsg4", AttachType::Recvmsg4),
    dns("rd_recvmsg6", AttachType::Recvmsg6),
    dns("rd_sendmsg4", AttachType::Sendmsg4),
    dns("rd_sendmsg6", AttachType::Sendmsg6),
    SOCKOPS,
    cgroup("rd_connect4", AttachType::Connect4),
    cgroup("rd_connect6", AttachType::Connect6),
];

/// The hooks that a policy needs.
pub fn needed_by(policy: &Policy) -> impl Iterator<Item = Hook> {
    ALL.into_iter().filter(|hook| hook.is_needed_by(policy))
}

/// The hooks that policies of these flags may need.
pub fn possible_for(flags: u32) -> impl Iterator<Item = Hook> {
    ALL.into_iter().filter(move |hook| !hook.dns || flags & flag::DNS != 0)
}

/// The classifier of virtual interfaces. It has no link: netdev/classifier.rs attaches it to the interfaces, and takes it back.
pub const GUEST: &str = "rd_guest";
/// Its pin.
pub const GUEST_PIN: &str = "prog_guest";

/// Whether programs loaded for these flags are asked for virtual interfaces.
pub const fn has_guests(flags: u32) -> bool {
    flags & flag::HAS_VIRTUAL_INTERFACES != 0
}
