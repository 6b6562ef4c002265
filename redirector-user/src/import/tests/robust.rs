//! Nothing that is read makes the reader fail.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::import;
use super::PRINTED;

/// Something that was done to a printout.
#[derive(Debug, Clone)]
enum Edit {
    Drop(Index),
    Double(Index),
    Swap(Index, Index),
    Cut(Index),
    Put(Index, String),
    Byte(Index, u8),
    Replace(Index, &'static str),
}

const WORDS: [&str; 30] = [
    "!",
    "-A",
    "-I",
    "-j",
    "-d",
    "-s",
    "-p",
    "tcp",
    "udp",
    "--dport",
    "--dports",
    "0",
    "65536",
    "-1",
    "99999999999999999999",
    "0.0.0.0/0",
    "::/0",
    "127.0.0.0/4",
    "255.255.255.255/33",
    "ISTIO_OUTPUT",
    "ISTIO_REDIRECT",
    "REDIRECT",
    "--to-ports",
    "\"",
    "0x",
    "*nat",
    "Chain",
    "owner",
    "--uid-owner",
    "4294967295",
];

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<Index>().prop_map(Edit::Drop),
        any::<Index>().prop_map(Edit::Double),
        any::<(Index, Index)>().prop_map(|(a, b)| Edit::Swap(a, b)),
        any::<Index>().prop_map(Edit::Cut),
        (any::<Index>(), ".{0,12}").prop_map(|(at, text)| Edit::Put(at, text)),
        any::<(Index, u8)>().prop_map(|(at, byte)| Edit::Byte(at, byte)),
        (any::<Index>(), proptest::sample::select(WORDS.to_vec()))
            .prop_map(|(at, word)| Edit::Replace(at, word)),
    ]
}

/// Edits of lines, words and bytes.
fn edited(text: &str, edits: &[Edit]) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for edit in edits.iter().filter(|_| text.len() > 1) {
        if lines.is_empty() {
            break;
        }
        let len = lines.len();
        match edit {
            Edit::Drop(at) => drop(lines.remove(at.index(len))),
            Edit::Double(at) => lines.insert(at.index(len), lines[at.index(len)].clone()),
            Edit::Swap(a, b) => lines.swap(a.index(len), b.index(len)),
            Edit::Cut(at) => lines.truncate(at.index(len) + 1),
            Edit::Put(at, text) => lines[at.index(len)].push_str(text),
            Edit::Byte(at, byte) => {
                let mut bytes = std::mem::take(&mut lines[at.index(len)]).into_bytes();
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                lines[at.index(len)] = String::from_utf8_lossy(&bytes).into_owned();
            }
            Edit::Replace(at, word) => {
                let line = &mut lines[at.index(len)];
                let mut words: Vec<&str> = line.split(' ').collect();
                let count = words.len();
                words[at.index(count)] = word;
                *line = words.join(" ");
            }
        }
    }
    lines.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..512)) {
        let _ = import(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_words(words in vec(proptest::sample::select(WORDS.to_vec()), 0..40), ends in vec(any::<bool>(), 40)) {
        let mut text = String::new();
        for (word, end) in words.iter().zip(ends) {
            text.push_str(word);
            text.push(if end { '\n' } else { ' ' });
        }
        let _ = import(&text);
    }

    /// What is imported is a policy, and as flags a command.
    #[test]
    fn edited_printouts(of in any::<Index>(), edits in vec(edit(), 0..8)) {
        let (_, text) = PRINTED[of.index(PRINTED.len())];
        if let Ok(import) = import(&edited(text, &edits)) {
            prop_assert_eq!(import.policy.validate(), Ok(()));
            let mut normal = import.policy.clone();
            normal.normalise();
            prop_assert_eq!(&normal, &import.policy);
            prop_assert!(import.flags.to_string().contains("redirector attach"));
        }
    }
}
