//! The agent on nodes that are not as it would like them.

use redirector_tests::agent::{Agent, Home};
use redirector_tests::node::Node;
use redirector_tests::privileged::require_root;
use redirector_tests::redirector::{Run, exit};

/// What an agent in a container mounts would end with the container: it mounts nothing.
#[test]
fn the_bpffs_is_the_nodes() -> anyhow::Result<()> {
    if !require_root() {
        return Ok(());
    }
    let (node, home) = (Node::without_bpffs()?, Home::new()?);
    let words = ["is not a bpffs on this node", "mount -t bpf bpf", "sys-fs-bpf.mount"];
    Run::of(&mut Agent::command(&node, &home, &[], &[]))?.refused(exit::CANNOT, &words)?;
    node.expect_empty()?;
    assert!(!home.run().exists(), "nothing is made before");
    Ok(())
}
