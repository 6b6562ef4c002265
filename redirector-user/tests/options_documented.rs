//! docs/options.md has a row for every flag, variable and annotation of Istio, with a test that exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use redirector_user::policy::options::{all, docs};

/// Flags of istio-iptables (`tools/istio-iptables/pkg/constants/constants.go`), with their letters.
const FLAGS: [&str; 37] = [
    "-p",
    "--envoy-port",
    "-z",
    "--inbound-capture-port",
    "-e",
    "--inbound-tunnel-port",
    "-u",
    "--proxy-uid",
    "-g",
    "--proxy-gid",
    "-m",
    "--istio-inbound-interception-mode",
    "-b",
    "--istio-inbound-ports",
    "-d",
    "--istio-local-exclude-ports",
    "-c",
    "--istio-exclude-interfaces",
    "-i",
    "--istio-service-cidr",
    "-x",
    "--istio-service-exclude-cidr",
    "-q",
    "--istio-outbound-ports",
    "-o",
    "--istio-local-outbound-ports-exclude",
    "-k",
    "--kube-virt-interfaces",
    "-t",
    "--istio-inbound-tproxy-mark",
    "-r",
    "--istio-inbound-tproxy-route-table",
    "--redirect-dns",
    "--capture-all-dns",
    "--drop-invalid",
    "--dual-stack",
    "-n",
];

/// Operational flags; their variables follow from the names.
const OPERATIONAL: [&str; 12] = [
    "--dry-run",
    "--skip-rule-apply",
    "--run-validation",
    "--iptables-probe-port",
    "--probe-timeout",
    "--network-namespace",
    "--cni-mode",
    "--reconcile",
    "--cleanup-only",
    "--force-apply",
    "--native-nftables",
    "--force-iptables-binary",
];

/// Variables without a flag of their own.
const VARIABLES: [&str; 7] = [
    "ISTIO_OUTBOUND_OWNER_GROUPS",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
    "ISTIO_META_DNS_CAPTURE",
    "INVALID_DROP",
    "ISTIO_DUAL_STACK",
    "ENVOY_USER",
];

/// Annotations that the CNI plugin knows (`cni/pkg/plugin/sidecar_redirect.go`), and what it reads of the proxy.
const ANNOTATIONS: [&str; 15] = [
    "sidecar.istio.io/interceptionMode",
    "status.sidecar.istio.io/port",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "istio.io/reroute-virtual-interfaces",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "DISABLE_ENVOY",
    "INVALID_DROP",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// The cells of a row; `\|` is no border.
fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_matches('|').replace(r"\|", "\u{0}");
    inner.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// All rows of options.md but those of headings.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/options.md")).expect("docs/options.md");
    let lines: Vec<&str> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with("|---");
    let of_table = |(index, line): (usize, &&str)| {
        let heading = lines.get(index + 1).is_some_and(|next| is_rule(next));
        (line.starts_with('|') && !is_rule(line) && !heading).then(|| cells(line))
    };
    lines.iter().enumerate().filter_map(of_table).collect()
}

/// What is between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Names of all test files and functions.
fn tests(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            tests(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
            let text = fs::read_to_string(&path).expect("text");
            let functions =
                text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
            names.extend(functions.map(str::to_owned));
        }
    }
}

#[test]
fn every_option_has_a_row() {
    let rows = rows();
    let words: BTreeSet<String> = rows
        .iter()
        .flat_map(|row| row.iter().take(2))
        .flat_map(|cell| cell.split([' ', ',', '`', '(', ')']))
        .map(str::to_owned)
        .collect();
    let all = FLAGS.iter().chain(&OPERATIONAL).chain(&VARIABLES).chain(&ANNOTATIONS);
    let missing: Vec<_> = all.filter(|name| !words.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for flag in FLAGS.iter().filter(|flag| flag.starts_with("--") && **flag != "--envoy-port") {
        let variable = flag[2..].to_uppercase().replace('-', "_");
        assert!(words.contains(&variable), "{variable}");
    }
}

#[test]
fn every_row_has_a_test_that_exists() {
    let mut names = BTreeSet::new();
    for directory in
        ["tests/tests", "redirector-user/src", "redirector-user/tests", "redirector-common/tests"]
    {
        tests(&root().join(directory), &mut names);
    }
    let rows = rows();
    assert!(rows.len() > 50, "{} rows", rows.len());
    for row in rows {
        let cell = row.last().expect("a cell");
        let is_name =
            |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let named: Vec<&str> = quoted(cell).filter(is_name).collect();
        assert!(!named.is_empty(), "no test: {row:?}");
        let unknown: Vec<_> = named.into_iter().filter(|name| !names.contains(*name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}: {row:?}");
    }
}

#[test]
fn flags_and_letters_are_istios() {
    let mut expected: BTreeSet<(Option<String>, &str)> = BTreeSet::new();
    let mut letter = None;
    for name in FLAGS.iter().chain(&OPERATIONAL) {
        match name.strip_prefix("--") {
            Some(long) => drop(expected.insert((letter.take(), long))),
            None => letter = Some(name[1..].to_owned()),
        }
    }
    let actual = all()
        .filter_map(|option| Some((option.short.map(String::from), option.long?)))
        .collect::<BTreeSet<_>>();
    assert_eq!(actual, expected);
    let variables: BTreeSet<&str> = all()
        .flat_map(|option| [option.second_variable, option.variable.filter(|_| option.long.is_none())])
        .flatten()
        .collect();
    assert_eq!(variables, VARIABLES.into_iter().collect());
}

/// With REDIRECTOR_WRITE_DOCS the tables are written instead.
#[test]
fn the_tables_are_those_of_the_options() {
    let path = root().join("docs/options.md");
    let text = fs::read_to_string(&path).expect("docs/options.md");
    let mut expected = text.clone();
    for (name, table) in [
        ("capture", docs::capture_table()),
        ("operation", docs::operation_table()),
        ("annotations", docs::annotation_table()),
    ] {
        let begin = format!("<!-- {name}: from redirector-user/src/policy/options -->\n");
        let from = expected.find(&begin).expect(&begin) + begin.len();
        let to = from + expected[from..].find("<!-- end -->").expect("an end");
        expected.replace_range(from..to, &table);
    }
    if std::env::var_os("REDIRECTOR_WRITE_DOCS").is_some() {
        fs::write(&path, &expected).expect("docs/options.md");
    } else {
        assert_eq!(text, expected, "write it by REDIRECTOR_WRITE_DOCS=1");
    }
}
