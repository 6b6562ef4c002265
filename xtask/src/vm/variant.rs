//! The ways in which a guest is set up.

use clap::ValueEnum;

use super::programs;

/// How a guest is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// IPv6, cgroup v2 alone
    Plain,
    /// No IPv6 in the kernel (`ipv6.disable=1`)
    Ipv6Off,
    /// cgroup v1 controllers beside cgroup v2, as older systemd has it
    Hybrid,
    /// The JIT compiler hides constants (`net.core.bpf_jit_harden=2`)
    JitHarden,
    /// A node: Debian 13, containerd 1.7
    NodeTrixie,
    /// A node: Debian's newest, containerd 2
    NodeSid,
}

/// What `--node` boots.
pub const NODES: [Variant; 2] = [Variant::NodeTrixie, Variant::NodeSid];

impl Variant {
    /// What it adds to the kernel's command line; what the kernel does not know goes to init's environment.
    pub fn words(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::NodeTrixie | Self::NodeSid => "cgroup_no_v1=all systemd.show_status=no",
            Self::Ipv6Off => "ipv6.disable=1",
            Self::Hybrid => "VM_CGROUP=hybrid",
            Self::JitHarden => "VM_SYSCTL=net.core.bpf_jit_harden=2",
        }
    }

    /// The tests of a run that names none: those on which the variant has a bearing.
    pub fn tests(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Plain => None,
            Self::NodeTrixie | Self::NodeSid => Some(&[programs::CRI]),
            Self::Ipv6Off => Some(&["kernel"]),
            Self::Hybrid | Self::JitHarden => Some(&["kernel", "lifecycle", "original_dst", "sockets"]),
        }
    }

    /// The test that cannot be there: the kubelet that can be built speaks a version of CRI that containerd 2 has forgotten.
    pub fn left_out(self) -> Option<&'static str> {
        (self == Self::NodeSid).then_some("a_pod_of_the_kubelet")
    }

    /// The release of Debian that a node has.
    pub fn suite(self) -> Option<&'static str> {
        match self {
            Self::NodeTrixie => Some("trixie"),
            Self::NodeSid => Some("sid"),
            _ => None,
        }
    }

    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}
