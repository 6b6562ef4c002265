//! redsocks, unmodified: another program that takes the original destination from `SO_ORIGINAL_DST`, and asks an HTTP
//! proxy for it by name.

use std::io::Write;

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::connect_proxy::ProxyEvent;

const CONFIGURATION: &str = "base { log_info = on; log = \"stderr\"; daemon = off; redirector = iptables; }\n\
    redsocks { local_ip = 0.0.0.0; local_port = 15001; ip = 10.77.0.1; port = 3128; type = http-connect; }\n";

/// redsocks in the pod, and its upstream outside.
struct Redsocks {
    _redsocks: Daemon,
    upstream: Daemon,
    _config: tempfile::NamedTempFile,
}

impl Redsocks {
    fn start(program: &std::path::Path, fixture: &Fixture) -> anyhow::Result<Self> {
        let listen = ["connect-proxy", "10.77.0.1:3128"];
        let upstream = Daemon::start("connect-proxy", &mut fixture.world.outside().probe(&listen))?;
        upstream
            .wait_for(0, |line| matches!(serde_json::from_str(line), Ok(ProxyEvent::Ready)).then_some(()))?;
        let mut config = tempfile::Builder::new().prefix("redirtest-redsocks").tempfile()?;
        config.write_all(CONFIGURATION.as_bytes())?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(config.path(), readable)?;
        let mut command = fixture.pod().place(PROXY)?.program(program);
        let redsocks = Daemon::start("redsocks", command.arg("-c").arg(config.path()))?;
        if let Err(error) = fixture.pod().netns.wait_for_listener(15001) {
            return Err(error.context(redsocks.lines().join("\n")));
        }
        Ok(Self { _redsocks: redsocks, upstream, _config: config })
    }

    /// The destinations that the upstream was asked for, sorted.
    fn asked(&self) -> Vec<String> {
        let mut asked: Vec<String> = self
            .upstream
            .lines()
            .iter()
            .filter_map(|line| match serde_json::from_str(line) {
                Ok(ProxyEvent::Asked(target)) => Some(target),
                _ => None,
            })
            .collect();
        asked.sort();
        asked
    }
}

#[test]
fn asks_for_the_original_destination() -> anyhow::Result<()> {
    let (true, Some(program)) = (require_root(), require_program("redsocks")) else { return Ok(()) };
    let pair = Pair::of_sidecars(&Setup { proxy: Vec::new(), ..Setup::default() })?;
    let oracles = Redsocks::start(&program, &pair.reference)?;
    let subjects = Redsocks::start(&program, &pair.subject)?;
    let scenarios = vec![
        Scenario::to(SERVICE),
        Scenario::to(at(VIP4, 15008)),
        Scenario::to(at(SECOND4, SERVED)),
        Scenario::new("mapped", Family::Mapped, at(VIP4, 15020)),
    ];
    let seen = pair.check(&[Part::of(APP, scenarios)])?;
    for observation in &seen {
        assert!(observation.summary().starts_with("remote:"), "{observation:#?}");
    }
    let expected = ["10.94.0.10:8080", "10.96.0.10:15008", "10.96.0.10:15020", "10.96.0.10:8080"];
    assert_eq!(oracles.asked(), expected);
    assert_eq!(subjects.asked(), expected);
    Ok(())
}
