//! The committed eBPF object belongs to the sources beside it.
//!
//! This needs no eBPF compiler: `cargo xtask ebpf` recorded the hashes of the object and of everything
//! it was made from. `cargo xtask ebpf --check` goes further and rebuilds it.

#[path = "../../xtask/src/sources.rs"]
mod sources;

use std::{fs, path::Path};

#[test]
fn the_object_matches_its_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let record = fs::read_to_string(root.join(sources::RECORD))
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask ebpf`", sources::RECORD));
    let (object_hash, source_hash) =
        record.trim_end().split_once('\n').unwrap_or_else(|| panic!("{} has not two lines", sources::RECORD));

    let object = fs::read(root.join(sources::OBJECT)).expect("the object is committed");
    assert_eq!(
        sources::sha256(&object),
        object_hash,
        "{} is not the object that was recorded: run `cargo xtask ebpf` and commit both files",
        sources::OBJECT
    );
    assert_eq!(
        sources::fingerprint(&root).expect("the sources are readable"),
        source_hash,
        "the sources of the eBPF object changed after it was built: run `cargo xtask ebpf` and commit what it writes"
    );
}
