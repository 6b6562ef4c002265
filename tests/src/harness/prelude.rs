//! Names that nearly every test uses.

pub use super::command::{output, run};
pub use super::oracle::options::Options;
pub use super::pair::Pair;
pub use super::pair::fixture::{Fixture, Redirection, Setup};
pub use super::pair::matrix::{Caller, Part, SERVED, UNSERVED};
pub use super::probe::hold::Held;
pub use super::probe::many::Load;
pub use super::probe::observation::{Observation, captured};
pub use super::probe::scenario::{Family, Owner, Scenario};
pub use super::process::{Daemon, Place};
pub use super::product::bpffs::{Bpffs, has_or_refuses, target};
pub use super::product::objects::{Objects, has_lo6, links_of};
pub use super::product::test_pod::{NAME, TestPod, counter};
pub use super::product::{Instance, Run, exit, redirector};
pub use super::requirements::{require_envoy, require_program, require_root};
pub use super::server::{INBOUND, OUTBOUND, Server, everywhere, proxy_listeners};
pub use super::world::{
    APP, PROXY, Pod, PodOptions, ROOT, SECOND4, SERVICE, VIP4, VIP6, World, at, observe, observe_one,
};
pub use super::{kernel, names, oracle, retry, share};
pub use crate::require_root;
