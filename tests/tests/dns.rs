//! DNS capture as the resolvers of real programs see it: glibc, musl, dig; real servers; beside real iptables.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::requirements::repository;

/// A name that the proxy's DNS server and the one outside answer differently.
const NAME: &str = "service.test";
/// The answer of the proxy's server.
const PROXYS: [&str; 2] = ["10.1.1.1", "fd00:1::1"];
/// The answer of the server outside.
const OUTSIDES: [&str; 2] = ["10.2.2.2", "fd00:2::2"];
/// A server that is not in resolv.conf.
const STRANGER: &str = "10.96.0.77";
/// Texts of an answer that does not fit into a datagram of 512 bytes, so that resolvers ask again by TCP.
const TEXTS: usize = 8;

/// Which programs exist here; `None` if one is missing.
struct Programs {
    dnsmasq: PathBuf,
    dig: PathBuf,
    getent: PathBuf,
    unshare: PathBuf,
    setpriv: PathBuf,
    musl: Musl,
}

/// A program that resolves its argument, linked with musl: `REDIRECTOR_TESTS_RESOLVE`, else compiled now.
struct Musl {
    program: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

impl Musl {
    fn find() -> anyhow::Result<Option<Self>> {
        if let Some(program) = std::env::var_os("REDIRECTOR_TESTS_RESOLVE") {
            return Ok(Some(Self { program: program.into(), _directory: None }));
        }
        let Some(gcc) = require_program("musl-gcc") else { return Ok(None) };
        let directory = tempfile::Builder::new().prefix("redirtest-musl").tempdir()?;
        // The app's user must be able to run it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open)?;
        let program = directory.path().join("resolve");
        let source = repository().join("tests/fixtures/resolve.c");
        run(Command::new(gcc).args(["-static", "-o"]).arg(&program).arg(source), "")?;
        Ok(Some(Self { program, _directory: Some(directory) }))
    }
}

impl Programs {
    fn find() -> anyhow::Result<Option<Self>> {
        let all = ["dnsmasq", "dig", "getent", "unshare", "setpriv"].map(require_program);
        let ([Some(dnsmasq), Some(dig), Some(getent), Some(unshare), Some(setpriv)], Some(musl)) =
            (all, Musl::find()?)
        else {
            return Ok(None);
        };
        Ok(Some(Self { dnsmasq, dig, getent, unshare, setpriv, musl }))
    }

    /// A DNS server that answers [`NAME`] with these addresses and knows nothing else.
    fn server(&self, place: &Place, addresses: [&str; 2], arguments: &[&str]) -> anyhow::Result<Daemon> {
        let mut command = place.program(&self.dnsmasq);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]);
        command.args(["--pid-file=", "--user=root", "--group=root", "--log-facility=-"]).args(arguments);
        command.args(addresses.map(|address| format!("--address=/{NAME}/{address}")));
        let text = "x".repeat(100);
        command.arg(format!("--txt-record=big.test{}", format!(",{text}").repeat(TEXTS)));
        let server = Daemon::start("dnsmasq", &mut command)?;
        server.wait_for(0, |line| line.contains("started").then_some(()))?;
        Ok(server)
    }
}

/// A pod with a DNS server in its proxy and another outside, and a container with a resolv.conf of its own.
struct Scene {
    container: Daemon,
    resolv_conf: tempfile::NamedTempFile,
    _servers: [Daemon; 2],
    world: World,
}

impl Scene {
    fn new(programs: &Programs) -> anyhow::Result<Self> {
        let world = World::new()?;
        // dnsmasq takes TCP only at addresses of an interface.
        world.client.ip(&format!("address add {STRANGER}/32 dev lo\n"))?;
        let pod = world.pod();
        let local = ["--port=15053", "--listen-address=127.0.0.1,::1", "--bind-interfaces"];
        let servers = [
            programs.server(&pod.place(PROXY)?, PROXYS, &local)?,
            programs.server(&world.outside(), OUTSIDES, &[])?,
        ];
        let mut resolv_conf = tempfile::Builder::new().prefix("redirtest-resolv").tempfile()?;
        writeln!(
            resolv_conf,
            "nameserver {VIP4}\nnameserver {VIP6}\nnameserver 10.96.0.11\noptions timeout:2"
        )?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(resolv_conf.path(), readable)?;
        let place = Place { owner: ROOT, ..pod.place(APP)? };
        let mut command = place.program(&programs.unshare);
        command.args(["--mount", "sh", "-c", MOUNT]).arg(resolv_conf.path()).arg("cat");
        let container = Daemon::start("container", &mut command)?;
        container.wait_for(0, |line| (line == "ready").then_some(()))?;
        Ok(Self { container, resolv_conf, _servers: servers, world })
    }

    fn pod(&self) -> &Pod {
        self.world.pod()
    }

    /// What each program finds, by what was asked; lines sorted, because servers rotate them.
    fn ask_everything(&self, programs: &Programs) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let servers = [VIP4.to_string(), VIP6.to_string(), STRANGER.to_owned()];
        let mut seen = Vec::new();
        for (who, owner) in [("app", APP), ("proxy", PROXY)] {
            let mut ask = |what: String, program: &PathBuf, arguments: &[&str]| -> anyhow::Result<()> {
                let mut command = self.program(programs, owner, program)?;
                let output = output(command.args(arguments), "").with_context(|| format!("{who}: {what}"))?;
                let printed = String::from_utf8_lossy(&output.stdout);
                // dig prints why it failed, with a random number in it.
                let lines: BTreeSet<String> = match output.status.success() {
                    true => printed.lines().map(str::to_owned).collect(),
                    false => BTreeSet::from([output.status.to_string()]),
                };
                seen.push((format!("{who}: {what}"), lines.into_iter().collect()));
                Ok(())
            };
            for database in ["ahostsv4", "ahostsv6"] {
                ask(format!("getent {database}"), &programs.getent, &[database, NAME])?;
            }
            ask("musl".to_owned(), &programs.musl.program, &[NAME])?;
            for server in &servers {
                let at = format!("@{server}");
                for way in ["+notcp", "+tcp"] {
                    for kind in ["A", "AAAA"] {
                        ask(
                            format!("dig {at} {way} {kind}"),
                            &programs.dig,
                            &["+short", "+tries=1", "+nocookie", way, &at, NAME, kind],
                        )?;
                    }
                }
                let big = ["+short", "+tries=1", "+noedns", &at, "big.test", "TXT"];
                ask(format!("dig {at} truncated"), &programs.dig, &big)?;
            }
            // A port of each: conntrack would give the second what it found out for the first.
            let from = format!("0.0.0.0#{}", 5353 + owner.uid);
            let bound = ["+short", "+tries=1", "-b", &from, &format!("@{VIP4}"), NAME];
            ask("dig from a port".to_owned(), &programs.dig, &bound)?;
        }
        Ok(seen)
    }

    /// A program as a user of the app's container, which has its own resolv.conf.
    fn program(&self, programs: &Programs, owner: Owner, program: &PathBuf) -> anyhow::Result<Command> {
        let place = Place { owner: ROOT, ..self.pod().place(owner)? };
        let mut command = place.program(&programs.unshare);
        command
            .args(["--mount", "sh", "-c", MOUNT_QUIETLY])
            .arg(self.resolv_conf.path())
            .arg(&programs.setpriv);
        command.args([
            "--clear-groups",
            "--reuid",
            &owner.uid.to_string(),
            "--regid",
            &owner.gid.to_string(),
        ]);
        command.arg(program);
        Ok(command)
    }
}

/// `$0` is the file, then the program with its arguments.
const MOUNT_QUIETLY: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
const MOUNT: &str = "mount --bind \"$0\" /etc/resolv.conf && echo ready && exec \"$@\"";

fn lines(addresses: &[&str]) -> Vec<String> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

/// Runs the comparison under one kind of capture.
fn compare(all: bool) -> anyhow::Result<()> {
    require_root!();
    let Some(programs) = Programs::find()? else { return Ok(()) };
    let options = Options {
        redirect_dns: true,
        capture_all_dns: all,
        dns_servers: vec![VIP4.to_string(), VIP6.to_string(), "10.96.0.11".to_owned()],
        ..Options::sidecar()
    };
    let oracle = Scene::new(&programs)?;
    oracle::install(&oracle.pod().netns, &options)?;
    let expected = oracle.ask_everything(&programs)?;

    let (bpffs, subject) = (Bpffs::new()?, Scene::new(&programs)?);
    let pid = subject.container.pid().to_string();
    let flags = options.flags();
    let mut arguments = vec!["attach", "--pid", &pid, "--name", "dns"];
    arguments.extend(flags.iter().map(String::as_str));
    bpffs.run(&arguments)?.expect(exit::OK)?;
    let seen = subject.ask_everything(&programs)?;
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!(seen, expected, "redirector, then iptables");
    }

    // The oracle saw what this test is about.
    let answer = |what: &str| {
        expected
            .iter()
            .find(|(question, _)| question == what)
            .map(|(_, lines)| lines.clone())
            .unwrap_or_default()
    };
    for way in ["+notcp", "+tcp"] {
        assert_eq!(answer(&format!("app: dig @{VIP4} {way} A")), lines(&PROXYS[..1]));
        assert_eq!(answer(&format!("app: dig @{VIP6} {way} AAAA")), lines(&PROXYS[1..]));
        assert_eq!(answer(&format!("proxy: dig @{VIP4} {way} A")), lines(&OUTSIDES[..1]));
    }
    // Another server's TCP is a connection like any other, and no proxy listens on 15001 here.
    let strangers: [&[&str]; 2] =
        if all { [&PROXYS[..1], &PROXYS[..1]] } else { [&OUTSIDES[..1], &["exit status: 9"]] };
    for (way, expected) in ["+notcp", "+tcp"].into_iter().zip(strangers) {
        assert_eq!(answer(&format!("app: dig @{STRANGER} {way} A")), lines(expected));
    }
    assert_eq!(answer("app: musl"), lines(&PROXYS));
    assert!(answer("app: getent ahostsv4").iter().all(|line| line.starts_with(PROXYS[0])));
    assert!(answer("app: getent ahostsv4").len() > 1, "{expected:#?}");
    assert_eq!(answer(&format!("app: dig @{VIP4} truncated")).len(), 1, "{expected:#?}");
    Ok(())
}

/// `--redirect-dns`: queries to the servers of the target's resolv.conf, by glibc, musl and dig.
#[test]
fn resolvers_ask_the_proxy() -> anyhow::Result<()> {
    compare(false)
}

/// `--capture-all-dns`: queries to any server.
#[test]
fn resolvers_that_ask_others_ask_the_proxy() -> anyhow::Result<()> {
    compare(true)
}
