# README.md and values.schema.json of a chart, made from the comments, names and kinds of its values: DIRECTORY [--write].
# Without --write it ends with 1 if they are not as they would be made.
import json, pathlib, re, sys
import yaml

directory, write = pathlib.Path(sys.argv[1]), "--write" in sys.argv
text = (directory / "values.yaml").read_text()
values, chart = yaml.safe_load(text), yaml.safe_load((directory / "Chart.yaml").read_text())


def comments():
    """The comment above each key, by its path."""
    found, path, above = {}, [], []
    for line in text.splitlines():
        key = re.match(r"( *)([\w.]+):", line)
        if line.strip().startswith("#"):
            above.append(line.strip()[1:].strip())
        elif key:
            path = path[: len(key[1]) // 2] + [key[2]]
            found[tuple(path)] = " ".join(above)
            above = []
    return found


COMMENTS = comments()
ONE_OF = re.compile(r"\s*One of: (.*?)\.$")
KINDS = {str: "string", bool: "boolean", int: "integer", list: "array", dict: "object"}


def schema(value, path):
    told = COMMENTS.get(path, "")
    made = {"type": KINDS[type(value)]}
    if told:
        made["description"] = told
    if one_of := ONE_OF.search(told):
        made["enum"] = [word.strip() for word in one_of[1].split(",")]
    # A map of one line, or an empty one, holds keys of others' making.
    if isinstance(value, dict) and path + (next(iter(value), ""),) in COMMENTS:
        made["properties"] = {key: schema(inner, path + (key,)) for key, inner in value.items()}
        made["additionalProperties"] = False
    return made


def rows(value, path):
    for key, inner in value.items():
        at = path + (key,)
        if isinstance(inner, dict) and at + (next(iter(inner), ""),) in COMMENTS:
            if COMMENTS[at]:
                yield f"| `{'.'.join(at)}` | | {COMMENTS[at]} |"
            yield from rows(inner, at)
        else:
            missing.extend(["the value " + ".".join(at) + " has no comment"] if not COMMENTS.get(at) else [])
            yield f"| `{'.'.join(at)}` | `{json.dumps(inner)}` | {COMMENTS.get(at, '').replace('|', chr(92) + '|')} |"


missing = []
table = "\n".join(rows(values, ()))
root = {"$schema": "http://json-schema.org/draft-07/schema#", **schema(values, ())}
root["properties"] = {key: schema(value, (key,)) for key, value in values.items()}
# Helm gives subcharts and parents `global`.
root["properties"]["global"] = {"type": "object"}
root["additionalProperties"] = False
readme = f"""# {chart["name"]} (Helm chart)

{chart["description"]}. What the settings are for, platforms, and taking it off: [docs/node.md](../../../docs/node.md).

```sh
helm install redirector deploy/helm/redirector --namespace redirector-system --create-namespace --set image.repository=REGISTRY/redirector
helm uninstall redirector --namespace redirector-system
```

`helm uninstall` takes the CNI plugin off every node whose agent runs.

## Values

Made from `values.yaml` by `cargo xtask manifests --write`.

| Value | Default | |
|---|---|---|
{table}
"""
for name, made in [("README.md", readme), ("values.schema.json", json.dumps(root, indent=2) + "\n")]:
    file = directory / name
    if write:
        file.write_text(made)
    elif not file.exists() or file.read_text() != made:
        missing.append(f"{file} is not as its values make it; run `cargo xtask manifests --write`")
if missing:
    sys.exit("\n".join(missing))
