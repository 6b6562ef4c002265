//! What the tests and the rigs share.
//!
//! * [`world`] makes throw-away worlds: a "client" network namespace for the rest of the cluster, and pods.
//! * [`probe`] is the one program that runs inside them, as server, as proxy, as application. It reports what it saw.
//! * [`oracle`] writes the rules of `istio-iptables` and loads them into real netfilter.
//! * [`product`] runs the `redirector` binary as a user does.
//! * [`pair`] puts the same connections through two worlds, the reference and the subject, and compares every field.
//! * [`parity`] does so for many combinations of options.
//! * [`campaign`] injects faults under load.
//! * [`endure`] counts what is wrong or has grown after very many connections and attaches.
//! * [`kubelet`], [`apiserver`] and [`machine`] stand for the parts of a Kubernetes node.

pub mod apiserver;
pub mod campaign;
pub mod command;
pub mod endure;
pub mod envoy;
pub mod image;
pub mod kernel;
pub mod kubelet;
pub mod load;
pub mod machine;
pub mod names;
pub mod oracle;
pub mod pair;
pub mod parity;
pub mod prelude;
pub mod probe;
pub mod process;
pub mod product;
pub mod requirements;
pub mod retry;
pub mod server;
pub mod share;
pub mod strace;
pub mod world;
