//! Costs as counts, which no busy machine changes. A change that doubles one fails here; one that halves one, too, until
//! the count below is the new one.

use std::fmt::Debug;

use anyhow::ensure;
use redirector_tests::harness::prelude::*;
use redirector_tests::harness::product::runs::{ProgramStats, RunCount, helper_calls, hooks, memory};

/// Connections of which the runs are counted.
const CONNECTIONS: u64 = 20;

/// Runs of each hook for one outbound connection of a client and a server that ask for all names.
const OUTBOUND_RUNS: [(&str, u64); 7] = [
    ("connect4", 1),
    ("getsockopt", 4),
    ("peername4", 3),
    ("setsockopt", 4),
    ("sk_lookup", 1),
    ("sockname4", 3),
    ("sockops", 9),
];
/// The same inbound; the client is no process of the pod.
const INBOUND_RUNS: [(&str, u64); 6] = [
    ("getsockopt", 2),
    ("peername4", 2),
    ("setsockopt", 1),
    ("sk_lookup", 1),
    ("sockname4", 1),
    ("sockops", 4),
];

/// Calls of map operations that stand in the programs of these hooks, without look-ups in arrays.
const MAP_OPERATIONS: [(&str, u64); 5] =
    [("connect4", 25), ("getsockopt", 10), ("peername4", 3), ("sockname4", 6), ("sockops", 19)];

/// bpf(2) and all system calls of `attach` beside another instance, `refresh`, `list` and `detach`.
const CALLS: [(&[&str], u64, u64); 4] = [
    (&["attach"], 212, 1287),
    (&["refresh", NAME], 385, 1011),
    (&["list"], 1112, 2529),
    (&["detach", "--name", NAME], 92, 643),
];

/// Kernel memory of the programs and maps of one idle instance, in KiB.
const MEMORY_KIB: u64 = 35;

/// Less than twice what was counted, and more than half of it.
fn near(what: impl Debug, found: u64, recorded: u64) -> anyhow::Result<()> {
    ensure!(
        found < 2 * recorded && 2 * found > recorded,
        "{what:?}: {found}, recorded is {recorded}; if that is meant, record it in tests/tests/costs.rs"
    );
    Ok(())
}

#[test]
fn runs_of_hooks_for_a_connection() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    let hooks = hooks(&tested.show()?)?;
    let _on = ProgramStats::on()?;
    let runs = |connect: &dyn Fn() -> anyhow::Result<String>| -> anyhow::Result<Vec<(String, u64)>> {
        let count =
            || hooks.iter().map(|(_, id)| Ok(RunCount::of(*id)?.runs)).collect::<anyhow::Result<Vec<_>>>();
        let before = count()?;
        for _ in 0..CONNECTIONS {
            ensure!(connect()?.contains("proxy"), "not captured");
        }
        let runs = count()?.into_iter().zip(before).map(|(now, then)| (now - then).div_ceil(CONNECTIONS));
        Ok(hooks.iter().map(|(hook, _)| hook.clone()).zip(runs).filter(|(_, runs)| *runs > 0).collect())
    };
    let outbound = runs(&|| tested.connect())?;
    let inbound = runs(&|| tested.fixture.world.connect_to_pod())?;
    for (direction, found, recorded) in
        [("outbound", outbound, &OUTBOUND_RUNS[..]), ("inbound", inbound, &INBOUND_RUNS)]
    {
        let mut names: Vec<&str> = found.iter().map(|(hook, _)| hook.as_str()).collect();
        names.sort_unstable();
        ensure!(
            names.iter().eq(recorded.iter().map(|(hook, _)| hook)),
            "{direction}: other hooks: {found:?}"
        );
        for (hook, runs) in &found {
            let (_, recorded) = recorded.iter().find(|(name, _)| name == hook).unwrap_or(&("", 0));
            near((direction, hook), *runs, *recorded)?;
        }
    }
    Ok(())
}

#[test]
fn map_operations_and_memory_of_an_instance() -> anyhow::Result<()> {
    require_root!("bpftool");
    let tested = TestPod::attached(&[])?;
    let show = tested.show()?;
    for (hook, program) in hooks(&show)? {
        let calls = helper_calls(program)?;
        let of_map = |name: &str| ["map_", "trie_", "storage_get"].iter().any(|word| name.contains(word));
        let found: usize = calls.iter().filter(|(name, _)| of_map(name)).map(|(_, count)| count).sum();
        if let Some((_, recorded)) = MAP_OPERATIONS.iter().find(|(name, _)| *name == hook) {
            near((hook, &calls), found as u64, *recorded)?;
        }
    }
    near("KiB of kernel memory", memory(&Objects::of(&tested.bpffs, NAME)?)? / 1024, MEMORY_KIB)
}

#[test]
fn system_calls_of_commands() -> anyhow::Result<()> {
    require_root!("strace");
    let (tested, other) = (TestPod::new()?, World::new()?);
    tested.bpffs.attach(other.pod(), "other", &[])?.expect(exit::OK)?;
    for (arguments, bpf, all) in CALLS {
        let file = tempfile::NamedTempFile::new()?;
        let by = ["strace", "-f", "-o", &file.path().display().to_string()];
        if arguments == ["attach"] {
            tested.attach_by(&by, &[])?.expect(exit::OK)?;
        } else {
            Run::of(&mut tested.bpffs.command(&by, arguments))?.looked()?;
        }
        let trace = std::fs::read_to_string(file.path())?;
        // Each line begins with the thread's id; what is resumed or ends is no further call.
        let calls = trace.lines().filter_map(|line| line.split_once(' '));
        let calls: Vec<&str> = calls
            .map(|(_, call)| call.trim_start())
            .filter(|call| !call.starts_with(['<', '+', '-']))
            .collect();
        near(
            (arguments, "bpf(2)"),
            calls.iter().filter(|call| call.starts_with("bpf(")).count() as u64,
            bpf,
        )?;
        near((arguments, "all system calls"), calls.len() as u64, all)?;
        // The entry of the namespace. What helpers there are the first attach has asked.
        let loads = calls.iter().filter(|call| call.contains("BPF_PROG_LOAD")).count();
        ensure!(
            arguments != ["attach"] || loads == 1,
            "an attach beside another has loaded {loads} programs"
        );
    }
    Ok(())
}
