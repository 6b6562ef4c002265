//! Real Envoy, unmodified: it takes the original destination from `SO_ORIGINAL_DST`, as in a sidecar.
//!
//! Beside the same Envoy with real iptables: what the clients, the servers and Envoy's own access log say.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use redirector_tests::harness::oracle::options::Tproxy;
use redirector_tests::harness::pair::matrix::SIDECAR_PORTS;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::probe::storm::{End, last_ack};
use redirector_tests::harness::world::TRANSPARENT_PROXY;

/// How Envoy listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listening {
    /// On 0.0.0.0.
    V4,
    /// On [::], for IPv4, too.
    DualStack,
    /// As `DualStack`, and with the client's address on both legs, as Istio configures it for TPROXY.
    Tproxy,
}

/// An Envoy with the two listeners of a sidecar, both passing everything on to its original destination.
struct Envoy {
    daemon: Daemon,
    _config: tempfile::NamedTempFile,
}

impl Envoy {
    fn start(envoy: &Path, fixture: &Fixture, kind: Listening) -> anyhow::Result<Self> {
        let mut config = tempfile::Builder::new().prefix("redirtest-envoy").suffix(".yaml").tempfile()?;
        config.write_all(configuration(kind).as_bytes())?;
        // Envoy runs as another user.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(config.path(), readable)?;
        let owner = if kind == Listening::Tproxy { TRANSPARENT_PROXY } else { PROXY };
        let mut command = fixture.pod().place(owner)?.program(envoy);
        command.arg("-c").arg(config.path());
        // Hot restart would share memory with every other Envoy on the machine.
        command.args(["--concurrency", "2", "--disable-hot-restart", "--file-flush-interval-msec", "50"]);
        command.args(["--log-level", "warning"]);
        let daemon = Daemon::start("envoy", &mut command)?;
        for port in [15001, 15006] {
            if let Err(error) = fixture.pod().netns.wait_for_listener(port) {
                return Err(error.context(daemon.lines().join("\n")));
            }
        }
        Ok(Self { daemon, _config: config })
    }

    /// The access log, sorted and without the ports that the kernel picked, once it has as many lines as expected.
    fn log(&self, expected: usize) -> anyhow::Result<Vec<String>> {
        let lines = || -> Vec<String> {
            let log = self
                .daemon
                .lines()
                .into_iter()
                .filter(|line| line.starts_with("OUT ") || line.starts_with("IN "));
            log.map(|line| line.split(' ').map(without_picked_port).collect::<Vec<_>>().join(" ")).collect()
        };
        let mut log =
            retry::until("Envoy's access log", || Some(lines()).filter(|log| log.len() >= expected))
                .map_err(|error| error.context(self.daemon.lines().join("\n")))?;
        log.sort();
        Ok(log)
    }
}

fn without_picked_port(word: &str) -> String {
    match word.rsplit_once(':') {
        Some((start, port)) if port.parse::<u16>().is_ok_and(|port| port >= 32768) => format!("{start}:*"),
        _ => word.to_owned(),
    }
}

fn configuration(kind: Listening) -> String {
    let address = if kind != Listening::V4 { "\"::\", ipv4_compat: true" } else { "0.0.0.0" };
    let listener = |name: &str, port: u16, how: &str, cluster: &str, word: &str| {
        format!(
            r#"
  - name: {name}
    address: {{ socket_address: {{ address: {address}, port_value: {port} }} }}
    {how}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: {cluster}
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {{ text_format_source: {{ inline_string: "{word} from %DOWNSTREAM_REMOTE_ADDRESS% to %DOWNSTREAM_LOCAL_ADDRESS% upstream %UPSTREAM_HOST%\n" }} }}"#
        )
    };
    let original_dst = r#"listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"#;
    let tproxy = r#"transparent: true
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst
    - name: envoy.filters.listener.original_src
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc
        mark: 1337"#;
    let original_dst = if kind == Listening::Tproxy { tproxy } else { original_dst };
    let passthrough = "upstream_bind_config:
      source_address: { address: 127.0.0.6, port_value: 0 }
      extra_source_addresses:
      - address: { address: \"::6\", port_value: 0 }";
    let passthrough = if kind == Listening::Tproxy { "" } else { passthrough };
    let outbound = listener("virtualOutbound", 15001, "use_original_dst: true", "passthrough", "OUT");
    let inbound = listener("virtualInbound", 15006, original_dst, "inbound_passthrough", "IN");
    format!(
        r#"
static_resources:
  listeners:{outbound}{inbound}
  clusters:
  - name: passthrough
    type: ORIGINAL_DST
    connect_timeout: 2s
    lb_policy: CLUSTER_PROVIDED
  - name: inbound_passthrough
    type: ORIGINAL_DST
    connect_timeout: 2s
    lb_policy: CLUSTER_PROVIDED
    {passthrough}
"#
    )
}

/// Connections by both families, or by IPv4 only, out of the pod, within it, and into it.
fn parts(fixture: &Fixture, dual_stack: bool) -> Vec<Part> {
    let pod = fixture.pod();
    let mut out = vec![
        Scenario::to(SERVICE),
        Scenario::to(at(VIP4, 15020)),
        Scenario::to(at(SECOND4, SERVED)),
        Scenario::to(SERVICE).bound(at(pod.v4(), 0)).named("from the pod's address"),
        Scenario::to(SERVICE).bound(at(Ipv4Addr::UNSPECIFIED, 20000)).named("from a port"),
        Scenario::new("mapped", Family::Mapped, SERVICE),
        Scenario::to(at(pod.v4(), SERVED)),
        Scenario::to(at(Ipv4Addr::LOCALHOST, SERVED)),
    ];
    let mut into: Vec<Scenario> =
        [SERVED].into_iter().chain(SIDECAR_PORTS).map(|port| Scenario::to(at(pod.v4(), port))).collect();
    if dual_stack {
        out.extend([Scenario::to(at(VIP6, SERVED)), Scenario::to(at(pod.v6(), SERVED))]);
        into.extend([Scenario::to(at(pod.v6(), SERVED)), Scenario::to(at(pod.v6(), 15021))]);
    }
    let as_proxy = vec![Scenario::to(SERVICE).named("proxy's own")];
    vec![Part::of(APP, out), Part::of(PROXY, as_proxy), Part { caller: Caller::Outside, scenarios: into }]
}

fn check(kind: Listening) -> anyhow::Result<()> {
    let dual_stack = kind != Listening::V4;
    let (true, Some(envoy)) = (require_root(), require_envoy()) else { return Ok(()) };
    let setup = Setup { proxy: Vec::new(), ..Setup::default() };
    let pair = if kind == Listening::Tproxy {
        let options = Options { tproxy: Some(Tproxy::default()), ..Options::sidecar() };
        Pair::with(options, &setup)?
    } else {
        Pair::of_sidecars(&setup)?
    };
    let oracles = Envoy::start(&envoy, &pair.reference, kind)?;
    let subjects = Envoy::start(&envoy, &pair.subject, kind)?;
    let seen = pair.check_through_proxy(&parts(&pair.reference, dual_stack))?;
    let find = |name: &str| seen.iter().find(|seen| seen.scenario == name).map(Observation::summary);
    assert_eq!(find("to 10.96.0.10:8080").as_deref(), Some("remote:8080"));
    // TPROXY mode captures 15008 from the network, too.
    let expected = match kind {
        Listening::V4 => 7,
        Listening::DualStack => 9,
        Listening::Tproxy => 10,
    };
    let (left, right) = (oracles.log(expected)?, subjects.log(expected)?);
    assert_eq!(left, right, "the access logs differ");
    let client = seen.iter().filter_map(|it| it.reached.as_ref()).any(|reached| {
        reached.role == "app"
            && reached.local.to_string() == "10.77.0.2:8080"
            && reached.accept_peer.to_string().starts_with("10.77.0.1:")
    });
    assert_eq!(client, kind == Listening::Tproxy, "whether the application sees the client");
    for line in [
        "OUT from 10.77.0.2:* to 10.96.0.10:8080 upstream 10.96.0.10:8080",
        "IN from 10.77.0.1:* to 10.77.0.2:8080 upstream 10.77.0.2:8080",
    ] {
        assert!(left.iter().any(|logged| logged == line), "{line} is not in {left:#?}");
    }
    verified(&pair.subject, dual_stack)
}

/// `redirector verify` tries an Envoy at work, and leaves it so.
fn verified(fixture: &Fixture, dual_stack: bool) -> anyhow::Result<()> {
    let instance = fixture.instance.as_ref().context("an instance")?;
    // One that listens on IPv4 alone is a fault in a pod that has IPv6, too.
    let scope: &[&str] = if dual_stack { &[] } else { &["--programs-only"] };
    let report =
        redirector(&[&["verify", instance.name()], scope].concat(), &[])?.expect(exit::OK)?.json()?;
    for probe in report["probes"].as_array().context("probes")? {
        let tried = dual_stack || probe["family"] == "ipv4";
        assert_eq!(probe["status"], if tried { "ok" } else { "skipped" }, "{probe:#}");
        assert!(!tried || probe["listener"] == "proxy", "{probe:#}");
    }
    assert_eq!(fixture.pod().connect(SERVICE)?, "remote:8080");
    Ok(())
}

/// Listeners on 0.0.0.0.
#[test]
fn ipv4() -> anyhow::Result<()> {
    check(Listening::V4)
}

/// Listeners on [::] that accept IPv4, too.
#[test]
fn dual_stack() -> anyhow::Result<()> {
    check(Listening::DualStack)
}

/// TPROXY mode: Envoy connects to the application from the client's address (its filter `original_src`).
#[test]
fn tproxy() -> anyhow::Result<()> {
    check(Listening::Tproxy)
}

/// The proxy's sockets get the last answer of IPv6 clients that have closed (T1 of docs/faults.md).
#[test]
fn closed_by_ipv6_clients() -> anyhow::Result<()> {
    const CONNECTIONS: usize = 1000;
    let (true, true, Some(envoy)) = (require_root(), kernel::has_ipv6(), require_envoy()) else {
        return Ok(());
    };
    let fixture = Fixture::with(Redirection::redirector(), &Setup { proxy: Vec::new(), ..Setup::default() })?;
    let envoy = Envoy::start(&envoy, &fixture, Listening::DualStack)?;
    let load = Load { end: End::Close, ..Load::to(vec![at(VIP6, SERVED); CONNECTIONS]) };
    let seen = fixture.pod().load(APP, &load)?;
    assert_eq!(seen.reached.get("remote:8080"), Some(&CONNECTIONS), "{seen:#?}");
    assert_eq!(fixture.pod().netns.enter(last_ack)?, 0);
    let through = |line: &String| line.starts_with("OUT ") && line.ends_with("upstream [fd00:96::10]:8080");
    assert_eq!(envoy.log(CONNECTIONS)?.iter().filter(|line| through(line)).count(), CONNECTIONS);
    Ok(())
}

/// What a user does first: curl out of the pod and curl into it, with web servers at both ends and no netfilter rule
/// anywhere.
#[test]
fn curl() -> anyhow::Result<()> {
    let all = (require_root(), require_envoy(), require_program("busybox"));
    let (true, Some(envoy), Some(busybox)) = all else { return Ok(()) };
    let fixture = Fixture::with(Redirection::redirector(), &Setup { proxy: Vec::new(), ..Setup::default() })?;
    let envoy = Envoy::start(&envoy, &fixture, Listening::V4)?;
    let pages = tempfile::Builder::new().prefix("redirtest-web").tempdir()?;
    std::fs::set_permissions(pages.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::write(pages.path().join("index.html"), "hello\n")?;
    let web = |name: &str, place: &Place| {
        let mut command = place.program(&busybox);
        command.args(["httpd", "-f", "-p", "9090", "-h"]).arg(pages.path());
        Daemon::start(name, &mut command)
    };
    let (app, outside) = (fixture.pod().place(APP)?, fixture.world.outside());
    let _servers = [web("web", &outside)?, web("app", &app)?];
    fixture.world.client.wait_for_listener(9090)?;
    fixture.pod().netns.wait_for_listener(9090)?;

    for (from, to) in [(&app, VIP4), (&outside, fixture.pod().v4())] {
        let mut command = from.program(Path::new("/usr/bin/curl"));
        command
            .args(["--silent", "--show-error", "--fail", "--max-time", "10"])
            .arg(format!("http://{to}:9090/"));
        assert_eq!(run(&mut command, "")?, "hello\n", "from {to}");
    }
    let log = envoy.log(2)?;
    assert_eq!(
        log,
        [
            "IN from 10.77.0.1:* to 10.77.0.2:9090 upstream 10.77.0.2:9090",
            "OUT from 10.77.0.2:* to 10.96.0.10:9090 upstream 10.96.0.10:9090",
        ]
    );
    let rules = run(&mut fixture.pod().netns.command("iptables-save"), "")?;
    assert!(!rules.contains("-A "), "{rules}");
    Ok(())
}
