//! A short run of `cargo xtask campaign`, and that it finds faults.

use std::time::Duration;

use anyhow::Context;
use redirector_tests::harness::campaign::{planted, run};
use redirector_tests::harness::prelude::*;

#[test]
fn a_short_campaign() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    let report = run(1, Duration::from_secs(30), None)?;
    println!("{report}");
    assert!(report.violation.is_none(), "{report}");
    assert!(report.steps >= 5 && report.connections > 1000, "{report}");
    Ok(())
}

/// Bugs of each kind are found; `cargo xtask campaign --planted` tries all of them.
#[test]
fn planted_bugs_are_found() -> anyhow::Result<()> {
    require_root!("strace", "bpftool");
    for (name, how) in [
        ("leave sk_lookup out", "past the proxy"),
        ("leave getsockopt out", "wrong"),
        ("drop the namespace check", "Straight"),
        ("skip one undo: ::6 on lo", "the end"),
    ] {
        let planted = planted::ALL.iter().find(|planted| planted.name == name).context(name)?;
        let report = run(1, Duration::from_secs(60), Some(planted))?;
        let violation = report.violation.as_deref().unwrap_or("nothing");
        assert!(violation.contains(how), "{name}: {report}");
    }
    Ok(())
}
