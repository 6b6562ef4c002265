//! Parity of the default policy: `redirector attach` beside real iptables with the sidecar's rules.

use redirector_tests::harness::pair::matrix;
use redirector_tests::harness::prelude::*;

/// All connections out of the pod and within it.
#[test]
fn outbound() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    pair.check(&share::parts(matrix::outbound(pair.reference.pod()))).map(drop)
}

/// Connections from the network.
#[test]
fn inbound() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup::default())?;
    pair.check(&[matrix::inbound(pair.reference.pod())]).map(drop)
}

/// The same policy spelled out in the flags of istio-iptables.
#[test]
fn spelled_out() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::with(Options::sidecar(), &Setup::default())?;
    pair.check(&matrix::all(pair.reference.pod())).map(drop)
}

/// A pod with IPv6 addresses but no way out by IPv6: programs that try IPv6 first rely on the error.
#[test]
fn without_ipv6_default_route() -> anyhow::Result<()> {
    require_root!();
    let pod = PodOptions { without_ipv6_default_route: true, ..PodOptions::default() };
    let pair = Pair::of_sidecars(&Setup { pod, ..Setup::default() })?;
    pair.check(&share::parts(matrix::outbound(pair.reference.pod()))).map(drop)
}

/// A pod with a second interface: the source address depends on the route.
#[test]
fn second_interface() -> anyhow::Result<()> {
    require_root!();
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    let pair = Pair::of_sidecars(&Setup { pod, ..Setup::default() })?;
    pair.check(&matrix::all(pair.reference.pod())).map(drop)
}

/// Nobody listens on the proxy's ports: refused, never let through.
#[test]
fn without_a_proxy() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::of_sidecars(&Setup { proxy: Vec::new(), ..Setup::default() })?;
    pair.check(&matrix::all(pair.reference.pod())).map(drop)
}
