//! End-to-end tests of `redirector` on the real kernel, with real iptables as the oracle.
//!
//! The property: whatever the app, the proxy and the network can observe of a connection under our eBPF instance
//! equals, field by field, what they observe under the rules `istio-iptables` installs, on the same kernel.
//!
//! * [`harness`] is what the tests share. The tests are in `tests/`, one file for each subject.
//! * The rigs that people run are apart: `tools/{demo,node,parity,probe}`, `benches`, `examples/mesh`.

#![expect(missing_docs, reason = "of most items of a harness the name says everything")]

pub mod harness;
