//! The schemas that the product ships of what it prints: whatever a test reads has to be of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, ensure};
use serde_json::{Map, Value};

use super::binary;

static SCHEMAS: LazyLock<anyhow::Result<BTreeMap<String, Value>>> = LazyLock::new(|| {
    let directory = tempfile::tempdir()?;
    let wrote =
        Command::new(binary()).args(["generate", "schemas"]).arg(directory.path()).env_clear().status()?;
    ensure!(wrote.success(), "generate schemas: {wrote}");
    let read = |path: &Path| -> anyhow::Result<(String, Value)> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace(".schema.json", "");
        Ok((name, serde_json::from_slice(&std::fs::read(path)?)?))
    };
    std::fs::read_dir(directory.path())?.map(|entry| read(&entry?.path())).collect()
});

/// Requires what a command line printed to be of the schema of its verb; the words of some have none.
pub fn check_output(command: &str, printed: &Value) -> anyhow::Result<()> {
    let binary = binary().display().to_string();
    let Some((_, arguments)) = command.split_once(&format!("{binary} ")) else { return Ok(()) };
    let schemas = all()?;
    let verb = arguments.split(' ').find(|word| schemas.contains_key(*word));
    // A validation alone, or one that fails, is printed as `verify` prints it (docs/cli.md).
    let is_validation = arguments.contains("--run-validation") && !printed["probes"].is_null();
    let verb = if is_validation { Some("verify") } else { verb };
    verb.map_or(Ok(()), |verb| check(verb, printed))
}

/// Requires a value to be of a schema.
pub fn check(name: &str, value: &Value) -> anyhow::Result<()> {
    let root = all()?.get(name).with_context(|| format!("there is no schema {name}"))?;
    matches(root, root, value).with_context(|| format!("not of the schema {name}: {value:#}"))
}

fn all() -> anyhow::Result<&'static BTreeMap<String, Value>> {
    SCHEMAS.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

/// As much of JSON Schema as the product's have; a key that the schema does not name is an error, too.
fn matches(root: &Value, schema: &Value, value: &Value) -> anyhow::Result<()> {
    if let Some(reference) = schema["$ref"].as_str() {
        let place = reference.strip_prefix('#').and_then(|place| root.pointer(place));
        return matches(root, place.with_context(|| reference.to_owned())?, value);
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(list) = schema[several].as_array() {
            ensure!(list.iter().any(|one| matches(root, one, value).is_ok()), "{value} is none of {list:?}");
        }
    }
    if let Some(list) = schema["enum"].as_array() {
        ensure!(list.contains(value), "{value} is not in {list:?}");
    }
    ensure!(schema["const"].is_null() || schema["const"] == *value, "{value} is not {}", schema["const"]);
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    ensure!(kinds.iter().any(|kind| is_a(kind, value)), "{value} is no {kinds:?}");
    if let Some(items) = value.as_array() {
        items.iter().try_for_each(|item| matches(root, &schema["items"], item))?;
    }
    match value.as_object() {
        Some(object) => properties(root, schema, object),
        None => Ok(()),
    }
}

fn properties(root: &Value, schema: &Value, object: &Map<String, Value>) -> anyhow::Result<()> {
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        ensure!(object.contains_key(required), "{required} is not there");
    }
    for (key, value) in object {
        let (own, others) = (&schema["properties"][key], &schema["additionalProperties"]);
        let of = if own.is_null() { others } else { own };
        if own.is_null() && ["anyOf", "oneOf"].iter().any(|several| schema[several].is_array()) {
            continue;
        }
        ensure!(!of.is_null() && *of != Value::Bool(false), "{key} is not in the schema");
        matches(root, of, value).with_context(|| key.clone())?;
    }
    Ok(())
}

fn is_a(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        None => true,
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("null") => value.is_null(),
        Some(_) => false,
    }
}
