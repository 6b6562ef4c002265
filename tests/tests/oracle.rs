//! placeholder dump
use redirector_tests::twin::*;
#[test]
fn dump() -> anyhow::Result<()> {
    let side = Side::new(By::iptables())?;
    std::thread::scope(|s| { for part in redirector_tests::matrix::outbound(side.pod()) { let side=&side; s.spawn(move || {
        for sc in part.scenarios {
            let t = std::time::Instant::now();
            let o = side.pod().observe(part.owner, &[sc]).unwrap().remove(0);
            println!("{:60} {} | local {} peer {} {}", o.scenario, o.summary(), o.local.as_ref().map_or(String::new(), |s| s.to_string()), o.peer.as_ref().map_or(String::new(), |s| s.to_string()), if t.elapsed().as_millis() > 500 {"SLOW"} else {""});
        }
    });}});
    Ok(())
}
