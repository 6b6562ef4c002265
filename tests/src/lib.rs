//! End-to-end tests of `redirector` on the real kernel, with real iptables as the oracle.
//!
//! The property: whatever the app, the proxy and the network can observe of a connection under our eBPF instance
//! equals, field by field, what they observe under the rules `istio-iptables` installs, on the same kernel.
//!
//! * [`pod`] builds throw-away worlds: a "client" network namespace standing for the rest of the cluster, and pods.
//! * [`probe`] is the one program that runs inside them (as servers, as the proxy's stand-in, as an app), and reports
//!   what it saw as an [`observation`].
//! * [`iptables`] writes and loads the oracle's rules, [`redirector`] drives the product's binary.
//! * [`twin`] puts the same [`matrix`] of connections through two worlds and [`compare`]s.

pub mod agent;
pub mod apiserver;
pub mod bench;
pub mod bpftool;
pub mod cgroup;
pub mod cluster;
pub mod command;
pub mod compare;
pub mod documented;
pub mod iptables;
pub mod istio;
pub mod kernel;
pub mod kubelet;
pub mod load;
pub mod mangle;
pub mod matrix;
pub mod mesh;
pub mod names;
pub mod netns;
pub mod node;
pub mod observation;
pub mod older;
pub mod parity;
pub mod pod;
pub mod privileged;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod redirector;
pub mod retry;
pub mod scenario;
pub mod share;
pub mod side;
pub mod strace;
pub mod twin;
