//! The binary under the name `istio-iptables`: the original's command line, inside the pod.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::binary;

/// The arguments of Istio's injector.
const SIDECAR: &str = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x  -b * -d 15090,15021,15020 --log_output_level=default:info";
const VALIDATE: [&str; 2] = ["--run-validation", "--skip-rule-apply"];
/// Exit code of the original's validation.
const NOT_CONTENT: i32 = 126;

fn sidecar_and<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SIDECAR.split(' ').chain(more.iter().copied()).collect()
}

/// A pod, and the binary under the other name. Whatever is attached is cleaned up.
struct PodOfIstio {
    fixture: Fixture,
    directory: tempfile::TempDir,
}

impl PodOfIstio {
    fn new() -> anyhow::Result<Option<Self>> {
        if !require_root() || require_program("bpftool").is_none() {
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
        // The build directory may be nobody else's business. Not copied by us: a process that another test starts
        // meanwhile would hold it open for writing, and it could not be run.
        run(Command::new("cp").arg(binary()).arg(directory.path().join("redirector")), "")?;
        symlink("redirector", directory.path().join("istio-iptables"))?;
        Ok(Some(Self { fixture: Fixture::new(Redirection::None)?, directory }))
    }

    fn pod(&self) -> &Pod {
        self.fixture.pod()
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("istio-iptables")
    }

    fn run(&self, owner: Owner, arguments: &[&str]) -> anyhow::Result<Run> {
        let mut command = self.pod().place(owner)?.program(&self.program());
        command.env_clear();
        Run::of(command.args(arguments))
    }

    fn connect(&self) -> anyhow::Result<String> {
        self.pod().connect(SERVICE)
    }

    fn expect_nothing(&self) -> anyhow::Result<()> {
        assert_eq!(links_of(self.pod())?, [0, 0]);
        assert!(!has_lo6(&self.pod().netns)?);
        assert_eq!(self.connect()?, "remote:8080");
        Ok(())
    }
}

impl Drop for PodOfIstio {
    fn drop(&mut self) {
        let netns = self.pod().netns.file().display().to_string();
        let _ = redirector(&["detach", "--netns", &netns, "--ignore-missing"], &[]);
    }
}

/// As the containers istio-init and istio-validation of a pod call it, one after the other.
#[test]
fn as_istios_containers_call_it() -> anyhow::Result<()> {
    let Some(tested) = PodOfIstio::new()? else { return Ok(()) };
    // Nothing is captured without flags: the original's defaults.
    let run = tested.run(ROOT, &[])?.expect(exit::OK)?;
    assert!(run.stdout.contains(&tested.pod().cgroup.directory().display().to_string()), "{run:?}");
    assert_eq!(tested.connect()?, "remote:8080");

    let run = tested.run(ROOT, &sidecar_and(&["--run-validation"]))?.expect(exit::OK)?;
    assert!(run.stdout.contains("does what its policy says") && run.stdout.contains("changed n"), "{run:?}");
    assert!(run.stderr.contains("--log_output_level"), "{run:?}");
    assert_eq!(tested.connect()?, "proxy:15001 original 10.96.0.10:8080");

    tested.run(ROOT, &["--cleanup-only"])?.expect(exit::OK)?;
    tested.expect_nothing()?;
    // As in the original that is no error.
    let run = tested.run(ROOT, &["--cleanup-only"])?.expect(exit::OK)?;
    assert!(run.stderr.contains("no instance is attached"), "{run:?}");
    Ok(())
}

/// The namespace says enough: who cleans up may be outside the pod's cgroup, so that no cgroup holds all its processes.
#[test]
fn cleanup_needs_no_cgroup() -> anyhow::Result<()> {
    let Some(tested) = PodOfIstio::new()? else { return Ok(()) };
    tested.run(ROOT, &sidecar_and(&[]))?.expect(exit::OK)?;
    let from_outside = |arguments: &[&str]| {
        let mut command = tested.pod().netns.command(tested.program());
        Run::of(command.env_clear().args(arguments))
    };
    from_outside(&["-n"])?.expect(exit::USAGE)?;
    let run = from_outside(&["--cleanup-only", "-n"])?.expect(exit::OK)?;
    assert!(run.stderr.contains("would detach"), "{run:?}");
    let run = from_outside(&["--cleanup-only"])?.expect(exit::OK)?;
    assert!(run.stdout.contains("detached"), "{run:?}");
    tested.expect_nothing()
}

/// Without privileges, as the proxy's user, before the proxy.
#[test]
fn validation_alone() -> anyhow::Result<()> {
    let Some(mut tested) = PodOfIstio::new()? else { return Ok(()) };
    tested.fixture.proxy = None;
    // The pause container of a pod: without it the cgroup of the one container would be all there is.
    let _pause = tested.pod().serve(PROXY, "pause", Vec::new())?;
    // IPv6 is on by the first address of the pod, or by any.
    for (more, families) in [(None, vec!["127.0.0.6"]), (Some("--dual-stack"), vec!["127.0.0.6", "::6"])] {
        let flags = sidecar_and(more.as_slice());
        tested.run(ROOT, &flags)?.expect(exit::OK)?;
        for _ in 0..2 {
            let run = tested.run(PROXY, &[&flags[..], &VALIDATE].concat())?.expect(exit::OK)?;
            let passed = |to: &&str| run.stderr.contains(&format!("connection to {to} is redirected"));
            let tried: Vec<&str> = ["127.0.0.6", "::6"].into_iter().filter(passed).collect();
            assert_eq!(tried, families, "{run:?}");
        }
    }
    tested.run(ROOT, &["--cleanup-only"])?.expect(exit::OK)?;
    tested.expect_nothing()?;
    let patience = ["--probe-timeout", "500ms", "--iptables-probe-port", "7777"];
    let run = tested.run(PROXY, &[&VALIDATE[..], &patience].concat())?.expect(NOT_CONTENT)?;
    assert!(run.stderr.contains("127.0.0.6:7777") && run.stderr.contains("timed out"), "{run:?}");
    Ok(())
}

#[test]
fn what_it_refuses() -> anyhow::Result<()> {
    let Some(tested) = PodOfIstio::new()? else { return Ok(()) };
    for flag in [["--ipv6", "off"], ["--no-such", "flag"], ["attach", "-n"]] {
        tested.run(ROOT, &flag)?.expect(exit::USAGE)?;
    }
    // Without the privileges of istio-init.
    tested.run(APP, &sidecar_and(&[]))?.expect(exit::CANNOT)?;
    tested.expect_nothing()?;

    // The machine's own namespace, and another one from there.
    let mut command = Command::new(tested.program());
    let run = Run::of(command.env_clear().arg("-n"))?.expect(exit::USAGE)?;
    assert!(run.stderr.contains("the machine's own network namespace"), "{run:?}");
    let netns = tested.pod().netns.file().display().to_string();
    let mut command = Command::new(tested.program());
    let run = Run::of(command.env_clear().args(["-n", "--network-namespace", &netns]))?.expect(exit::OK)?;
    assert!(!run.stderr.contains("--netns"), "a flag this name does not have: {run:?}");
    assert!(run.stdout.contains(&tested.pod().cgroup.directory().display().to_string()), "{run:?}");
    tested.expect_nothing()
}
