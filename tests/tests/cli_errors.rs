//! Wrong input is refused before anything is touched: exit code 2, and the message names the object and the remedy.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::binary;
use redirector_tests::harness::world::cgroup::mount_point;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;

/// No process has a number that high (PID_MAX_LIMIT).
const NO_PID: &str = "4194305";

fn expect_untouched(bpffs: &Bpffs, pod: &Pod) -> anyhow::Result<()> {
    bpffs.expect_empty()?;
    ensure!(links_of(pod)? == [0, 0], "programs are attached");
    ensure!(!has_lo6(&pod.netns)?, "::6 is on lo");
    Ok(())
}

/// A hierarchy of cgroup v1, which even a machine of v2 can have; unmounted on drop.
struct Version1(tempfile::TempDir);

impl Version1 {
    fn new() -> anyhow::Result<Option<Self>> {
        let directory = tempfile::tempdir()?;
        let options = std::ffi::CString::new(format!("none,name={}", names::unique()))?;
        match mount("cgroup", directory.path(), "cgroup", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Ok(Some(Self(directory))),
            Err(error) => {
                println!("this kernel has no cgroup v1: {error}");
                Ok(None)
            }
        }
    }
}

impl Drop for Version1 {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.0.path(), UnmountFlags::DETACH) {
            eprintln!("clean-up: {error}");
        }
    }
}

#[test]
fn targets() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let [_, netns, _, cgroup] = target(pod);
    let refused = |arguments: &[&str], words: &[&str]| -> anyhow::Result<()> {
        let mut all = vec!["attach"];
        all.extend(arguments);
        bpffs.run(&all)?.refused(exit::USAGE, words).map(drop)
    };
    refused(&["--pid", NO_PID], &[NO_PID, "give the pid as the host sees it"])?;
    refused(&["--pid", &std::process::id().to_string()], &["machine's own", "give the namespace of a pod"])?;
    refused(&["--pid", "1", "--netns", &netns], &["--pid", "--netns"])?;
    // The error names the missing option and both ways to give a target.
    let ways = "give --pid PID, or --netns FILE and --cgroup DIR";
    refused(&["--netns", &netns], &["--netns takes --cgroup", ways])?;
    refused(&["--cgroup", &cgroup], &["--cgroup takes --netns", ways])?;
    refused(&[], &[ways])?;

    let fifo = tempfile::tempdir()?;
    let fifo = fifo.path().join("fifo");
    run(Command::new("mkfifo").arg(&fifo), "")?;
    let fifo = fifo.display().to_string();
    for (file, words) in [
        ("/nowhere/net", ["/nowhere/net", "does not exist"]),
        ("/etc/passwd", ["/etc/passwd", "not a network namespace"]),
        ("/tmp", ["/tmp", "not a network namespace"]),
        ("/proc/self/ns/mnt", ["/proc/self/ns/mnt", "not a network namespace"]),
        (fifo.as_str(), [fifo.as_str(), "not a network namespace"]),
    ] {
        refused(&["--netns", file, "--cgroup", &cgroup], &words)?;
        refused(&["--netns", file, "--cgroup", &cgroup], &["/run/netns/NAME"])?;
    }
    refused(&["--netns", "/proc/self/ns/net", "--cgroup", &cgroup], &["/proc/self/ns/net", "machine's own"])?;

    let tree = mount_point()?.display().to_string();
    let elsewhere = ["give a cgroup v2 directory", tree.as_str()];
    refused(&["--netns", &netns, "--cgroup", "/nowhere"], &["/nowhere", "does not exist"])?;
    refused(&["--netns", &netns, "--cgroup", "/tmp"], &["/tmp is not a cgroup", elsewhere[0], elsewhere[1]])?;
    refused(&["--netns", &netns, "--cgroup", &tree], &[&tree, "root cgroup", "give the cgroup of the pod"])?;
    let procs = format!("{cgroup}/cgroup.procs");
    refused(&["--netns", &netns, "--cgroup", &procs], &[&procs])?;
    if let Some(old) = Version1::new()? {
        let path = old.0.path().display().to_string();
        refused(&["--netns", &netns, "--cgroup", &path], &[&path, "cgroup v1", elsewhere[0], elsewhere[1]])?;
    }

    for name in ["", "Pod", "a.b", "a/b", "..", "pod 1", &"x".repeat(64)] {
        bpffs.attach(pod, name, &[])?.refused(exit::USAGE, &["name", "a-z, 0-9, _ and -"])?;
        for verb in ["show", "refresh", "original-dst"] {
            bpffs.run(&[verb, name])?.refused(exit::USAGE, &["a-z, 0-9, _ and -"])?;
        }
        bpffs.run(&["detach", "--name", name])?.refused(exit::USAGE, &["a-z, 0-9, _ and -"])?;
    }
    for verb in ["detach", "verify"] {
        bpffs.run(&[verb, "--pid", NO_PID])?.refused(exit::USAGE, &["there is no process", NO_PID])?;
    }
    bpffs.run(&["detach", "--netns", "/etc/passwd"])?.refused(exit::USAGE, &["/etc/passwd"])?;
    bpffs.run(&["detach"])?.refused(exit::USAGE, &["nothing says which instance", "--pid"])?;
    expect_untouched(&bpffs, pod)
}

#[test]
fn policies() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    let directory = tempfile::tempdir()?;
    let policy = directory.path().join("policy.toml");
    std::fs::write(&policy, "outbound_port = \"many\"\n")?;
    let policy = policy.to_str().context("a path")?;
    // Each with the object (the option and what was given), and a word of the remedy.
    let cases: [(&[&str], &[&str]); 17] = [
        (&["-p", "0"], &["--envoy-port", "\"0\"", "65535"]),
        (&["-p", "70000"], &["--envoy-port", "\"70000\"", "65535"]),
        (&["-b", "80,http"], &["--istio-inbound-ports", "\"http\"", "65535"]),
        (&["-b", "80,0"], &["--istio-inbound-ports", "\"0\""]),
        (&["-b", "80 81"], &["--istio-inbound-ports", "blank"]),
        (&["-d", "-1"], &["-1"]),
        (&["-o", "1-5"], &["--istio-local-outbound-ports-exclude", "\"1-5\""]),
        (&["-i", "10.0.0.0/33"], &["--istio-service-cidr", "10.0.0.0/33"]),
        (&["-i", "10.0.0"], &["--istio-service-cidr", "\"10.0.0\""]),
        (&["-x", "*"], &["--istio-service-exclude-cidr", "\"*\"", "leave the included networks empty"]),
        (&["-x", "example.org"], &["--istio-service-exclude-cidr", "example.org"]),
        (&["-u", "4294967295"], &["--proxy-uid", "4294967295", "4294967294"]),
        (&["-u", "-5"], &["-5"]),
        (&["-g", "1 2"], &["--proxy-gid", "blank"]),
        (&["-c", "an-interface-too-long"], &["--istio-exclude-interfaces", "an-interface-too-long"]),
        (&["--max-connections", "0"], &["--max-connections", "0"]),
        (&["--policy", policy], &[policy, "outbound_port"]),
    ];
    for (flags, words) in cases {
        let run = bpffs
            .attach(pod, "pod", flags)?
            .refused(exit::USAGE, words)
            .with_context(|| format!("{flags:?}"))?;
        let text = run.error()?["error"].as_str().unwrap_or_default().to_owned();
        // Whatever is wrong, the remedy is there once.
        let remedy = text.rsplit("; ").next().unwrap_or_default();
        ensure!(text.matches(remedy).count() == 1, "{flags:?}: said twice: {text}");
    }
    bpffs.attach(pod, "pod", &["--policy", "/nowhere.toml"])?.refused(exit::USAGE, &["/nowhere.toml"])?;
    // A field without effect is accepted with a warning.
    let file = directory.path().join("exclusions.toml");
    let text = "inbound_ports = [80]\ninbound_exclude_ports = [90]\nowner_groups = [1]\nowner_groups_exclude = [2]\n";
    std::fs::write(&file, text)?;
    let file = file.to_str().context("a path")?;
    let run = bpffs.run(&["explain", "--policy", file, "--to", "10.0.0.1:80"])?.expect(exit::OK)?;
    for field in ["inbound_exclude_ports", "owner_groups_exclude"] {
        ensure!(run.stderr.contains(&format!("{field}: has no effect")), "{run:?}");
    }
    // Endless files.
    for flag in ["--policy", "--annotations"] {
        bpffs
            .attach(pod, "pod", &[flag, "/dev/zero"])?
            .refused(exit::USAGE, &["/dev/zero", "more than 4 MiB"])?;
    }
    bpffs.run(&["import", "/dev/zero"])?.refused(exit::USAGE, &["/dev/zero", "more than 4 MiB"])?;
    expect_untouched(&bpffs, pod)
}

/// Errors are JSON for those who ask for JSON, also where the command line was not understood.
#[test]
fn formats() -> anyhow::Result<()> {
    require_root!("bpftool");
    let bpffs = Bpffs::new()?;
    let run = bpffs.run(&["attach", "--no-such-flag"])?.refused(exit::USAGE, &["--no-such-flag"])?;
    assert_eq!(run.stdout, "");
    bpffs.run(&["no-such-verb"])?.refused(exit::USAGE, &["no-such-verb"])?;
    let mistyped = bpffs.run(&["verfy"])?.refused(exit::USAGE, &["did you mean verify"])?;
    assert!(!mistyped.stderr.contains("helper"), "{mistyped:?}");
    bpffs.run(&["show", "nobody"])?.refused(exit::NOTHING, &["nobody"])?;

    let plain = |arguments: &[&str]| -> anyhow::Result<(Option<i32>, String, String)> {
        let output = output(Command::new(binary()).arg("--bpffs").arg(bpffs.path()).args(arguments), "")?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    let (code, stdout, stderr) = plain(&["show", "nobody"])?;
    assert_eq!((code, stdout.as_str()), (Some(exit::NOTHING), ""));
    assert!(stderr.starts_with("redirector: ") && stderr.contains("redirector list"), "{stderr}");
    let (code, _, stderr) = plain(&["attach", "--no-such-flag"])?;
    assert_eq!(code, Some(exit::USAGE));
    assert!(stderr.contains("--no-such-flag") && !stderr.contains('{'), "{stderr}");
    for help in ["--help", "--version"] {
        let (code, stdout, stderr) = plain(&[help])?;
        assert_eq!((code, stderr.as_str()), (Some(exit::OK), ""), "{help}");
        assert!(stdout.contains("redirector"), "{stdout}");
    }
    bpffs.expect_empty()
}

/// `--bpffs` with a directory that is none: nothing is mounted over it, and nothing in it is swept.
#[test]
fn a_directory_that_is_no_bpffs() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::not_mounted()?, World::new()?);
    let precious = bpffs.instance("src");
    std::fs::create_dir_all(&precious)?;
    std::fs::write(precious.join("main.rs"), "fn main() {}\n")?;
    let here = bpffs.path().display().to_string();
    bpffs.attach(world.pod(), "pod", &[])?.refused(exit::USAGE, &[&here, "not a bpffs", "--bpffs"])?;
    for verb in [["list", ""], ["detach", "--all"], ["detach", "--name=src"], ["refresh", "src"]] {
        let words: Vec<&str> = verb.into_iter().filter(|word| !word.is_empty()).collect();
        bpffs.run(&words)?.refused(exit::USAGE, &[&here, "is not a bpffs", "--bpffs"])?;
    }
    bpffs.run(&["show", "src"])?.refused(exit::USAGE, &[&here, "is not a bpffs"])?;
    let finding_of = |bpffs: &Bpffs| -> anyhow::Result<Value> {
        let check = bpffs.run(&["check"])?.json()?;
        let all = check.as_array().context("an array")?;
        all.iter().find(|one| one["name"] == "bpffs").cloned().context("a bpffs")
    };
    let finding = finding_of(&bpffs)?;
    assert!(finding["remedy"].as_str().is_some_and(|text| text.contains(&here)), "{finding}");
    assert_eq!(std::fs::read_to_string(precious.join("main.rs"))?, "fn main() {}\n");
    std::fs::remove_dir_all(bpffs.path().join("redirector"))?;
    // attach mounts one, others have nothing to look at.
    assert_eq!(finding_of(&bpffs)?["present"], true);
    bpffs.run(&["list"])?.refused(exit::USAGE, &[&here, "is not a bpffs"])?;
    for (place, words) in [("/nowhere", "does not exist"), ("/etc/passwd", "is not a bpffs")] {
        for verb in [&["list"][..], &["show", "pod"], &["explain", "--name=pod", "--to=10.0.0.1:80"]] {
            let mut command = redirector_tests::harness::product::command(&[]);
            command.args(["--bpffs", place, "--output", "json"]).args(verb);
            Run::of(&mut command)?.refused(exit::USAGE, &[place, words, "--bpffs"])?;
        }
    }

    let run = Run::of(
        redirector_tests::harness::product::command(&[])
            .args(["--bpffs", "/nowhere", "--output", "json"])
            .args(
                ["attach", "--name", "pod"].iter().map(|word| (*word).to_owned()).chain(target(world.pod())),
            ),
    )?;
    run.refused(exit::USAGE, &["/nowhere", "--bpffs"])?;
    expect_untouched(&bpffs, world.pod())
}

/// Somebody without privileges: every verb that changes something says what is missing, and `check` does too.
#[test]
fn without_privileges() -> anyhow::Result<()> {
    require_root!("bpftool", "setpriv");
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    // The build directory may be nobody else's business.
    let public = tempfile::tempdir()?;
    std::fs::set_permissions(public.path(), PermissionsExt::from_mode(0o755))?;
    let copy: PathBuf = public.path().join("redirector");
    // Not by us: a process that another test starts meanwhile would hold it open for writing, and it could not be run.
    run(Command::new("cp").arg(binary()).arg(&copy), "")?;
    let run = |arguments: &[&str]| -> anyhow::Result<Run> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"]).arg(&copy);
        Run::of(command.arg("--bpffs").arg(bpffs.path()).args(["--output", "json"]).args(arguments))
    };
    let [_, netns, _, cgroup] = target(pod);
    let refused = |arguments: &[&str], words: &[&str]| run(arguments)?.refused(exit::CANNOT, words).map(drop);
    let missing = ["CAP_BPF", "CAP_NET_ADMIN", "run as root"];
    refused(&["attach", "--netns", &netns, "--cgroup", &cgroup], &missing)?;
    refused(&["detach", "--all"], &missing)?;
    refused(&["refresh", "pod"], &missing)?;
    let check = run(&["check"])?.expect(exit::CANNOT)?.json()?;
    let privileges = check.as_array().and_then(|all| all.iter().find(|one| one["name"] == "privileges"));
    let privileges = privileges.context("`check` looks at privileges")?;
    assert_eq!(privileges["present"], false);
    assert!(privileges["remedy"].as_str().is_some_and(|text| text.contains("CAP_BPF")), "{privileges}");
    // check does not call missing what it may not probe.
    for name in ["sk_lookup programs", "sockmaps", "our programs load"] {
        let finding =
            check.as_array().and_then(|all| all.iter().find(|one| one["name"] == name)).context(name)?;
        let says = |text: &str| {
            // Of the kernel it speaks only where locked memory limits maps; no other one is the remedy.
            let text = text.replace("this is Linux before 5.11", "");
            text.contains("not probed") && text.contains("CAP_BPF") && !text.contains("Linux")
        };
        assert!(finding["remedy"].as_str().is_some_and(says), "{finding}");
    }
    // Root without two capabilities that only a validation needs.
    let bounded = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all", "--"];
    let verb = ["attach", "--netns", &netns, "--cgroup", &cgroup, "--run-validation"];
    Run::of(&mut bpffs.command(&bounded, &verb))?
        .refused(exit::CANNOT, &["CAP_SETGID, CAP_SETUID missing"])?;
    expect_untouched(&bpffs, pod)?;

    // Another user can neither read the instances nor hold the lock.
    bpffs.attach(pod, "pod", &[])?.expect(exit::OK)?;
    for arguments in [["list", ""], ["show", "pod"], ["original-dst", "pod"]] {
        let words: Vec<&str> = arguments.into_iter().filter(|word| !word.is_empty()).collect();
        refused(&words, &["redirector", "denied"])?;
    }
    let lock = Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--", "flock", "-n"])
        .arg(bpffs.path().join("redirector"))
        .arg("true")
        .output()?;
    assert!(!lock.status.success(), "anybody can lock the instances");
    assert_eq!(bpffs.show("pod")?["effective"], Value::Bool(true));

    Ok(())
}

#[test]
fn a_directory_of_somebody_elses_is_not_trusted() -> anyhow::Result<()> {
    require_root!("bpftool");
    let (bpffs, world) = (Bpffs::new()?, World::new()?);
    let pod = world.pod();
    bpffs.attach(pod, "pod", &[])?.expect(exit::OK)?;
    bpffs.run(&["detach", "--all"])?.expect(exit::OK)?;
    let planted = bpffs.path().join("redirector");
    plant(&planted)?;
    bpffs.attach(pod, "pod", &[])?.refused(exit::FAILED, &["user 1000", "not trusted", "remove it"])?;
    std::fs::remove_dir(&planted)?;
    expect_untouched(&bpffs, pod)
}

fn plant(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(directory)?;
    std::os::unix::fs::chown(directory, Some(1000), Some(1000)).context("giving it away")
}
