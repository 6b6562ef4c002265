//! What the command line says to what it does not understand. Needs no privileges.

use std::process::{Command, Output};

fn redirector(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_redirector")).args(arguments).output().expect("the program")
}

/// Exit code and standard error.
fn refused(arguments: &[&str]) -> (i32, String) {
    let output = redirector(arguments);
    (output.status.code().expect("an exit code"), String::from_utf8(output.stderr).expect("UTF-8"))
}

fn stdout(arguments: &[&str]) -> String {
    String::from_utf8(redirector(arguments).stdout).expect("UTF-8")
}

/// What packages hold is written by the program itself.
#[test]
fn pages_completions_and_schemas() {
    let dir = std::env::temp_dir().join(format!("redirector-generate-{}", std::process::id()));
    let path = dir.to_str().expect("UTF-8");
    for kind in ["man", "completions", "schemas"] {
        assert!(redirector(&["generate", kind, path]).status.success(), "{kind}");
    }
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
    let page = read("redirector-detach.1");
    assert!(page.contains("Stop capturing") && page.contains("drain"), "{page}");
    assert!(!dir.join("redirector-generate.1").exists(), "it is hidden");
    for script in ["redirector", "redirector.fish", "_redirector"] {
        assert!(read(script).contains("REDIRECTOR_COMPLETE"), "{script}");
    }
    assert_eq!(read("redirector").trim(), stdout(&["completions", "bash"]).trim());

    let policy: serde_json::Value = serde_json::from_str(&read("policy.schema.json")).expect("JSON");
    assert_eq!(policy["additionalProperties"], false);
    std::fs::remove_dir_all(dir).expect("the directory");
}

/// As the script of bash asks.
#[test]
fn verbs_are_completed() {
    let output = Command::new(env!("CARGO_BIN_EXE_redirector"))
        .env("REDIRECTOR_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "1")
        .args(["--", "redirector", "sta"])
        .output()
        .expect("the program");
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8").trim(), "status");
}

#[test]
fn errors_have_one_prefix_and_the_remedy_on_its_own_line() {
    let rows: [(&[&str], &str, &str); 12] = [
        (&["list", "--all"], "there is no flag --all here", "see `redirector list --help`"),
        (&["lst"], "there is no verb lst", "did you mean list? Else see `redirector --help`"),
        (
            &["list", "--output", "xml"],
            "--output: \"xml\" is none of table, json",
            "see `redirector list --help`",
        ),
        (
            &["original-dst", "x", "--client", "10.0.0.1"],
            "--client: \"10.0.0.1\" is no address with a port, such as 10.1.2.3:80 or [fd00::1]:80",
            "see `redirector original-dst --help`",
        ),
        (
            &["attach", "--max-connections", "0"],
            "--max-connections: \"0\" is not a number from 1 to 16777216",
            "see `redirector attach --help`",
        ),
        (&["attach", "--pid", "x"], "--pid: \"x\" is not a number", "see `redirector attach --help`"),
        (
            &["attach", "-o", "1", "-o", "2"],
            "--istio-local-outbound-ports-exclude is given more than once",
            "see",
        ),
        (
            &["attach", "--redirect-dns=maybe"],
            "--redirect-dns: \"maybe\" is not a boolean",
            "write --redirect-dns=true",
        ),
        (
            &["detach", "--all", "--pid", "1"],
            "--all and --pid exclude each other",
            "see `redirector detach --help`",
        ),
        (&["show", "a", "--name", "b"], "exclude each other", "see `redirector show --help`"),
        (&["agent"], "nothing says what to capture", "give --config, --pods or --node-name"),
        (&["explain"], "--to <ADDR:PORT> is missing", "see `redirector explain --help`"),
    ];
    for (arguments, what, remedy) in rows {
        let (code, text) = refused(arguments);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((code, lines.len()), (2, 2), "{arguments:?}: {text}");
        assert!(lines[0].starts_with("redirector: ") && lines[0].contains(what), "{arguments:?}: {text}");
        assert!(lines[1].starts_with("  ") && lines[1].contains(remedy), "{arguments:?}: {text}");
    }
    let (code, text) = refused(&["list", "--all", "--output", "json"]);
    let error: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (code, &error["exit_code"], &error["remedy"]),
        (2, &2.into(), &"see `redirector list --help`".into())
    );
}

#[test]
fn directories_that_are_not_there_are_wrong_input() {
    for flag in ["--config", "--pods", "--cgroup-root"] {
        let (code, text) = refused(&["agent", "--node-name", "n", flag, "/nope"]);
        let wanted = if flag == "--pods" { "exclude each other" } else { "there is no such directory" };
        assert!(code == 2 && text.contains(flag) && text.contains(wanted), "{text}");
    }
    let (code, text) = refused(&["agent", "--pods", "/nope"]);
    assert!(code == 2 && text.contains("--pods /nope: there is no such directory"), "{text}");
}

#[test]
fn the_version_tells_object_and_abi() {
    let text = stdout(&["--version"]);
    assert!(
        text.starts_with("redirector ") && text.contains("eBPF object ") && text.contains("ABI "),
        "{text}"
    );
    let version: serde_json::Value =
        serde_json::from_str(&stdout(&["--version", "--output=json"])).expect("JSON");
    assert!(
        version["abi"].is_u64() && version["object"].as_str().is_some_and(|id| text.contains(id)),
        "{version}"
    );
}

#[test]
fn the_short_help_leaves_out_what_only_istio_iptables_needs() {
    assert!(!stdout(&["attach", "-h"]).contains("--cni-mode"));
    assert!(stdout(&["attach", "--help"]).contains("--cni-mode"));
}

#[test]
fn every_verb_takes_every_way_to_name_an_instance() {
    for verb in
        ["show", "status", "refresh", "upgrade", "detach", "verify", "trace", "original-dst", "explain"]
    {
        let help = stdout(&[verb, "--help"]);
        for way in ["[NAME]", "--pid <PID>", "--netns <FILE>", "--pod <NAMESPACE/NAME>"] {
            assert!(help.contains(way), "{verb}: {way}");
        }
    }
}

#[test]
fn a_pipe_gets_no_colours() {
    let output = redirector(&["check"]);
    assert!(!output.stdout.contains(&0x1b) && output.stdout.starts_with(b"this node can"), "{output:?}");
}
