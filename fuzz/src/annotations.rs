//! A pod's annotations.

use std::fmt::Write as _;
use std::net::IpAddr;

use redirector_user::policy::annotations::{Pod, parse};
use redirector_user::policy::{CaptureFlags, TargetDetails, resolve_pod};

use super::{connections, round_trip};

/// Annotations survive being printed as a downward-API volume has them; what is accepted is a valid policy.
pub fn run(text: &str) {
    let Ok(pod) = parse(text) else { return };
    let _ = pod.membership(&["kube-system"]);
    assert_eq!(parse(&downward(&pod)).expect("what the kubelet writes").annotations, printable(&pod));
    let facts =
        TargetDetails { addresses: Some(vec![IpAddr::from([10, 0, 0, 1])]), ..TargetDetails::default() };
    if let Ok(resolved) = resolve_pod(&pod, &CaptureFlags::default(), &facts) {
        round_trip::check(&resolved.policy);
        connections::check(&resolved.policy, text);
    }
}

/// Keys as the API server allows them; a JSON map may have others.
fn printable(pod: &Pod) -> std::collections::BTreeMap<String, String> {
    let plain = |key: &str| {
        !key.is_empty() && !key.starts_with('{') && key.bytes().all(|b| b.is_ascii_graphic() && b != b'=')
    };
    pod.annotations.iter().filter(|(key, _)| plain(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// As Go's `%q` does it: `FormatMap` of the kubelet.
fn downward(pod: &Pod) -> String {
    let mut text = String::new();
    for (key, value) in printable(pod) {
        let _ = write!(text, "{key}=\"");
        for char in value.chars() {
            let _ = match char {
                '"' | '\\' => write!(text, "\\{char}"),
                '\u{7}' => write!(text, "\\a"),
                '\u{8}' => write!(text, "\\b"),
                '\u{b}' => write!(text, "\\v"),
                '\u{c}' => write!(text, "\\f"),
                '\n' => write!(text, "\\n"),
                '\r' => write!(text, "\\r"),
                '\t' => write!(text, "\\t"),
                char if char.is_ascii_control() => write!(text, "\\x{:02x}", char as u32),
                char if char.is_control() || char == '\u{2028}' => write!(text, "\\u{:04x}", char as u32),
                char if char as u32 > 0xf_0000 => write!(text, "\\U{:08x}", char as u32),
                char => write!(text, "{char}"),
            };
        }
        text.push_str("\"\n");
    }
    text
}
