//! Making system calls of the product fail, or killing it at one, with `strace`.

use anyhow::Context;

use crate::harness::product::Run;
use crate::harness::share;

/// A fault injected into one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with EPERM.
    Fail,
    /// It fails with this errno.
    Errno(&'static str),
    /// The process is killed instead of making it.
    Kill,
}

/// A system call by name, and the how many-th of it, beginning with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub call: &'static str,
    pub number: usize,
}

/// `strace` with its arguments, to run a program in which this happens.
pub fn injecting(fault: Fault, at: At) -> Vec<String> {
    let (fault, fast) = match fault {
        Fault::Fail => ("error=EPERM".to_owned(), Some("--seccomp-bpf")),
        Fault::Errno(errno) => (format!("error={errno}"), Some("--seccomp-bpf")),
        // A signal cannot be injected where seccomp stops the process.
        Fault::Kill => ("signal=KILL".to_owned(), None),
    };
    let At { call, number } = at;
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{fault}:when={number}"));
    let words = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    words.into_iter().chain(fast).map(str::to_owned).collect()
}

/// Runs something by `strace`, in which this happens.
pub fn with(fault: Fault, at: At, run: impl FnOnce(&[&str]) -> anyhow::Result<Run>) -> anyhow::Result<Run> {
    let words = injecting(fault, at);
    run(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The numbers of a system call that the first thread of a command makes: of many with the same first argument one after
/// the other, only the first and the last.
pub fn steps(
    call: &'static str,
    run: impl FnOnce(&[&str]) -> anyhow::Result<Run>,
) -> anyhow::Result<(Run, Vec<At>)> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().context("a path")?;
    let run = run(&["strace", "-f", "--seccomp-bpf", "-o", path, "-e", &format!("trace={call}")])?;
    let kinds = kinds(&std::fs::read_to_string(path)?, call);
    let same =
        |one: usize, other: Option<usize>| other.is_some_and(|other| kinds.get(other) == kinds.get(one));
    let inner = |index: usize| same(index, index.checked_sub(1)) && same(index, Some(index + 1));
    let steps = (0..kinds.len()).filter(|index| !inner(*index)).map(|index| At { call, number: index + 1 });
    Ok((run, steps.collect()))
}

/// The first argument of each call of the first thread. Each line begins with the thread's id; a call that was
/// interrupted by another's line is continued in a third.
fn kinds(trace: &str, call: &str) -> Vec<String> {
    let begin = format!(" {call}(");
    let mut calls = trace.lines().filter_map(|line| line.split_once(&begin)).peekable();
    let Some(first) = calls.peek().map(|(thread, _)| *thread) else { return Vec::new() };
    let ours = calls.filter(|(thread, _)| *thread == first);
    ours.map(|(_, rest)| rest.split([',', ')']).next().unwrap_or_default().to_owned()).collect()
}

/// All, if they are few; else `few` of them, evenly chosen, and the last ten; of both this machine's share.
pub fn chosen(steps: &[At], few: usize) -> Vec<At> {
    let (few, at_the_end) = (share::times(few, 2), share::times(10, 3));
    let last = steps.len().saturating_sub(at_the_end);
    if steps.len() <= few + at_the_end {
        return steps.to_vec();
    }
    let even = (0..few).map(|index| index * last / few);
    even.chain(last..steps.len()).filter_map(|index| steps.get(index).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_by_their_first_argument() {
        let trace = "7 bpf(A, {x=1}) = 0\n8 bpf(C, 1) = 0\n7 bpf(A, 2 <unfinished ...>\n7 <... bpf resumed>) = 0\n\
                     7 bpf(A) = 0\n7 bpf(B, 3) = 0\n7 +++ exited with 0 +++\n";
        assert_eq!(kinds(trace, "bpf"), ["A", "A", "A", "B"]);
        assert_eq!(kinds("", "bpf"), Vec::<String>::new());
    }

    #[test]
    fn the_last_are_always_chosen() {
        let steps = |count| (1..=count).map(|number| At { call: "bpf", number }).collect::<Vec<_>>();
        assert_eq!(chosen(&steps(3), 30), steps(3));
        let many = chosen(&steps(200), 30);
        assert_eq!((many.len(), many[0].number, many[39].number), (40, 1, 200));
        assert!(many.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert_eq!(many[30..], steps(200)[190..]);
    }
}
