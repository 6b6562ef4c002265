//! A short run of `cargo xtask campaign`, and that it finds faults.

use std::time::Duration;

use redirector_tests::harness::campaign::{Sabotage, run};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::objects::detach_link;

#[test]
fn a_short_campaign() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let report = run(1, Duration::from_secs(30), None)?;
    println!("{report}");
    assert!(report.violation.is_none(), "{report}");
    assert!(report.steps >= 5 && report.connections > 1000, "{report}");
    Ok(())
}

/// A hook that is lost under load is found in the same step.
#[test]
fn a_lost_hook_is_found() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let lost: [(Sabotage, &str); 3] = [
        (|tested| detach_link(&tested.bpffs.instance(NAME).join("link_connect4")), "past the proxy"),
        (|tested| detach_link(&tested.bpffs.instance(NAME).join("link_sk_lookup")), "past the proxy"),
        (|tested| detach_link(&tested.bpffs.instance(NAME).join("link_getsockopt")), "wrong"),
    ];
    for (sabotage, how) in lost {
        let report = run(1, Duration::from_secs(30), Some(sabotage))?;
        let violation = report.violation.as_deref().unwrap_or("nothing");
        assert!(violation.contains(how), "{how}: {report}");
    }
    Ok(())
}
