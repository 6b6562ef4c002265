//! Istio's own check of a pod, the `istio-validation` init container, passes where redirector is attached.

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::validate::{FAILED, Validation};

/// Runs the validator in the pod as the proxy's user; its exit code, and the listener that was content.
fn validate(pod: &Pod, validation: Validation) -> anyhow::Result<(Option<i32>, String)> {
    let validation = serde_json::to_string(&validation)?;
    let output = output(&mut pod.place(PROXY)?.probe(&["validate", &validation]), "")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((output.status.code(), text))
}

/// The validator's listeners appear after the attach, and go; several times, by both families, with and without MPTCP.
#[test]
fn passes_attached_and_fails_detached() -> anyhow::Result<()> {
    require_root!();
    let world = World::new()?;
    let pod = world.pod();
    let instance = Instance::attach(pod, &[], &[])?;
    assert!(has_lo6(&pod.netns)?);
    for round in 0..3 {
        for (v6, mptcp) in [(false, false), (true, false), (false, true), (true, true)] {
            if mptcp && !kernel::has_mptcp() {
                println!("note: this kernel has no MPTCP");
                continue;
            }
            let seen = validate(pod, Validation { v6, mptcp, milliseconds: 5000 })?;
            let listener = if v6 { "[::1]:15006" } else { "127.0.0.1:15006" };
            assert_eq!(seen, (Some(0), listener.to_owned()), "round {round}, IPv6: {v6}, MPTCP: {mptcp}");
        }
    }
    instance.detach()?;
    for v6 in [false, true] {
        let seen = validate(pod, Validation { v6, mptcp: false, milliseconds: 1500 })?;
        assert_eq!(seen, (Some(FAILED), String::new()), "detached, IPv6: {v6}");
    }
    Ok(())
}
