//! Reads a row of `iptables -vnL`.

use super::save;
use crate::rules::Spec;

/// The rule of a row; `None` if the row is no rule.
///
/// Columns are pkts, bytes, target, prot, opt (missing in old ip6tables), in, out, source, destination, and the rest in
/// the words of each match; with `--line-numbers` a number first.
pub(super) fn row(text: &str) -> Option<Result<Spec, String>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let counters = words.iter().take_while(|word| is_counter(word)).count().min(3);
    let words = words.get(counters..).filter(|words| counters >= 2 && !words.is_empty())?;
    Some(columns(words))
}

/// `148`, `12K`.
fn is_counter(word: &str) -> bool {
    let digits = word.trim_end_matches(['K', 'M', 'G', 'T']);
    word.len() <= digits.len() + 1 && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn columns(words: &[&str]) -> Result<Spec, String> {
    let few = || "its columns are not those of -vnL".to_owned();
    let [target, protocol, rest @ ..] = words else { return Err(few()) };
    let rest = match rest {
        [opt, rest @ ..] if matches!(*opt, "--" | "-f" | "!f") => rest,
        rest => rest,
    };
    let [input, output, source, destination, extra @ ..] = rest else { return Err(few()) };
    // The same in the words of iptables-save, so that there is one reader of options.
    let mut options: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| options.extend(words.iter().map(|word| (*word).to_owned()));
    for (flag, value, any) in [
        ("-i", *input, &["*", "any"][..]),
        ("-o", *output, &["*", "any"]),
        ("-s", *source, &["0.0.0.0/0", "::/0", "anywhere"]),
        ("-d", *destination, &["0.0.0.0/0", "::/0", "anywhere"]),
    ] {
        match value.strip_prefix('!') {
            Some(value) => add(&["!", flag, value]),
            None if any.contains(&value) => {}
            None => add(&[flag, value]),
        }
    }
    add(&["-p", protocol]);
    self::extra(extra, &mut add)?;
    add(&["-j", target]);
    add(&target_options(extra));
    let spec = save::spec(&options)?;
    Ok(spec)
}

/// Reads the last column, which each match fills in its own words.
fn extra(words: &[&str], add: &mut impl FnMut(&[&str])) -> Result<(), String> {
    let mut rest = words;
    while !rest.is_empty() {
        rest = match rest {
            ["tcp" | "udp", ports @ ..] if ports.first().is_some_and(|word| is_port(word)) => ports,
            [word, rest @ ..] if is_port(word) => {
                let (kind, value) = word.split_once(':').unwrap_or_default();
                let flag = if kind == "dpt" { "--dport" } else { "--sport" };
                negatable(flag, value, add);
                rest
            }
            ["multiport", "dports", ports, rest @ ..] => {
                negatable("--dports", ports, add);
                rest
            }
            ["!", "owner", kind @ ("UID" | "GID"), "match", id, rest @ ..] => {
                add(&["!", owner(kind), id]);
                rest
            }
            ["owner", kind @ ("UID" | "GID"), "match", id, rest @ ..] => {
                add(&[owner(kind), id]);
                rest
            }
            [module @ ("mark" | "connmark"), "match", "!", value, rest @ ..] => {
                add(&["-m", module, "!", "--mark", value]);
                rest
            }
            [module @ ("mark" | "connmark"), "match", value, rest @ ..] => {
                add(&["-m", module, "--mark", value]);
                rest
            }
            ["ctstate" | "state", states, rest @ ..] => {
                add(&["--ctstate", states]);
                rest
            }
            ["/*", rest @ ..] => match rest.iter().position(|word| *word == "*/") {
                Some(end) => &rest[end + 1..],
                None => return Err("a comment has no end".into()),
            },
            // The target's own words come last.
            ["redir" | "TPROXY" | "MARK" | "CONNMARK" | "CT", ..] => return Ok(()),
            [word, ..] => return Err(format!("`{word}` is not known here")),
            [] => return Ok(()),
        };
    }
    Ok(())
}

fn is_port(word: &str) -> bool {
    word.starts_with("dpt:") || word.starts_with("spt:")
}

fn negatable(flag: &str, value: &str, add: &mut impl FnMut(&[&str])) {
    match value.strip_prefix('!') {
        Some(value) => add(&["!", flag, value]),
        None => add(&[flag, value]),
    }
}

fn owner(kind: &str) -> &'static str {
    if kind == "UID" { "--uid-owner" } else { "--gid-owner" }
}

/// `redir ports 15006`, `MARK set 0x539`, `TPROXY redirect 0.0.0.0:15006 mark 0x539/0xffffffff`, `CONNMARK save`, `CT zone 1`.
fn target_options<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let Some(at) =
        words.iter().position(|word| matches!(*word, "redir" | "TPROXY" | "MARK" | "CONNMARK" | "CT"))
    else {
        return Vec::new();
    };
    match &words[at..] {
        ["redir", "ports", ports] => vec!["--to-ports", ports],
        ["MARK", "set", mark] => vec!["--set-mark", mark],
        ["CONNMARK", "save"] => vec!["--save-mark"],
        ["CONNMARK", "restore"] => vec!["--restore-mark"],
        ["CT", "zone", zone] => vec!["--zone", zone],
        ["TPROXY", "redirect", to, "mark", mark] => {
            let (ip, port) = to.rsplit_once(':').unwrap_or((to, ""));
            vec!["--on-ip", ip, "--on-port", port, "--tproxy-mark", mark]
        }
        _ => vec!["unreadable"],
    }
}
