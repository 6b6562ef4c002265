//! Annotations from a file: a downward-API volume, a JSON map, or a Pod object in JSON.

use std::collections::BTreeMap;
use std::path::Path;

use super::pod::Pod;
use crate::base::input;
use crate::policy::error::ConfigError;

/// Reads a file of annotations or of a pod.
pub fn load(path: &Path) -> Result<Pod, ConfigError> {
    let refuse = |why: String, remedy: &str| ConfigError::AnnotationsFile {
        path: path.into(),
        why,
        remedy: remedy.into(),
    };
    let text = input::text(path).map_err(|error| refuse(error.to_string(), "name a readable file"))?;
    parse(&text).map_err(|why| {
        refuse(
            input::brief(&why),
            "write lines of key=\"value\" as a downward-API volume has them, a JSON map, or a pod \
             (kubectl get pod NAME -o json)",
        )
    })
}

/// Reads annotations: JSON if the first thing in it is a brace, lines of a downward-API volume otherwise. The
/// error says where and why.
pub fn parse(text: &str) -> Result<Pod, String> {
    if text.trim_start().starts_with('{') { json(text) } else { downward(text) }
}

fn json(text: &str) -> Result<Pod, String> {
    let value: serde_json::Value = input::json(text)?;
    let is_pod = value.get("metadata").is_some_and(serde_json::Value::is_object);
    match value.get("kind").and_then(serde_json::Value::as_str) {
        Some("Pod") => {}
        Some(kind) if is_pod || value.get("items").is_some() => {
            return Err(format!("it is a {kind} and no Pod"));
        }
        _ if is_pod => {}
        _ => {
            let annotations = serde_json::from_value(value).map_err(|error| error.to_string())?;
            return Ok(Pod { annotations, ..Pod::default() });
        }
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// `key="value"` lines; the value is quoted as by Go's `strconv.Quote` (`FormatMap` in the kubelet's
/// `fieldpath`).
fn downward(text: &str) -> Result<Pod, String> {
    let mut annotations = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refuse = |why: &str| format!("line {}: {why}", number + 1);
        let (key, value) = line.split_once('=').ok_or_else(|| refuse("has no `=`"))?;
        if key.is_empty() {
            return Err(refuse("has no key"));
        }
        let quoted = value.trim_end().strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = quoted.and_then(unquote).ok_or_else(|| refuse("the value is not a quoted string"))?;
        if annotations.insert(key.to_owned(), value).is_some() {
            return Err(refuse(&format!("{key:?} for the second time")));
        }
    }
    Ok(Pod { annotations, ..Pod::default() })
}

/// What is between the quotes, or nothing if `strconv.Quote` writes no such thing.
fn unquote(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char == '"' {
            return None;
        }
        if char != '\\' {
            bytes.extend(char.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        let simple = match chars.next()? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            '"' => b'"',
            'x' => u8::try_from(hex(&mut chars, 2)?).ok()?,
            'u' => {
                bytes.extend(char::from_u32(hex(&mut chars, 4)?)?.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            'U' => {
                bytes.extend(char::from_u32(hex(&mut chars, 8)?)?.encode_utf8(&mut [0; 4]).bytes());
                continue;
            }
            _ => return None,
        };
        bytes.push(simple);
    }
    String::from_utf8(bytes).ok()
}

fn hex(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let mut value: u32 = 0;
    for _ in 0..digits {
        value = value.checked_mul(16)?.checked_add(chars.next()?.to_digit(16)?)?;
    }
    Some(value)
}
