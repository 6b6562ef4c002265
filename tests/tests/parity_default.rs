//! Parity of the default policy: `redirector attach` beside real iptables with the sidecar's rules.

use redirector_tests::harness::oracle::options::Options;
use redirector_tests::harness::pair::Twin;
use redirector_tests::harness::pair::fixture::{By, Setup};
use redirector_tests::harness::pair::matrix;
use redirector_tests::harness::requirements::require_root;
use redirector_tests::harness::share;
use redirector_tests::harness::world::PodOptions;

/// All connections out of the pod and within it.
#[test]
fn outbound() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let twin = Twin::of_redirector(&Setup::default())?;
    twin.check(&share::parts(matrix::outbound(twin.oracle.pod())))?;
    Ok(())
}

/// Connections from the network.
#[test]
fn inbound() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let twin = Twin::of_redirector(&Setup::default())?;
    twin.check(&[matrix::inbound(twin.oracle.pod())])?;
    Ok(())
}

/// The same policy spelled out in the flags of istio-iptables.
#[test]
fn spelled_out() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let options = Options::sidecar();
    let twin = Twin::new(options.clone(), By::RedirectorWith(options), &Setup::default())?;
    let mut parts = matrix::outbound(twin.oracle.pod());
    parts.push(matrix::inbound(twin.oracle.pod()));
    twin.check(&share::parts(parts))?;
    Ok(())
}

/// A pod with IPv6 addresses but no way out by IPv6: programs that try IPv6 first rely on the error.
#[test]
fn without_ipv6_default_route() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let pod = PodOptions { ipv6_default_route: false, ..PodOptions::default() };
    let twin = Twin::of_redirector(&Setup { pod, ..Setup::default() })?;
    twin.check(&share::parts(matrix::outbound(twin.oracle.pod())))?;
    Ok(())
}

/// A pod with a second interface: the source address depends on the route.
#[test]
fn second_interface() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let pod = PodOptions { second_interface: true, ..PodOptions::default() };
    let twin = Twin::of_redirector(&Setup { pod, ..Setup::default() })?;
    let mut parts = matrix::outbound(twin.oracle.pod());
    parts.push(matrix::inbound(twin.oracle.pod()));
    twin.check(&share::parts(parts))?;
    Ok(())
}

/// Nobody listens on the proxy's ports: refused, never let through.
#[test]
fn without_a_proxy() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let twin = Twin::of_redirector(&Setup { proxy: Vec::new(), ..Setup::default() })?;
    let mut parts = matrix::outbound(twin.oracle.pod());
    parts.push(matrix::inbound(twin.oracle.pod()));
    twin.check(&share::parts(parts))?;
    Ok(())
}
