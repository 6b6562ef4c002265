//! The library with which runtimes call CNI plugins, called as CRI-O does (`tools/node/libcni.go`).

use crate::node::{CONFLIST, Node, OBJECTS, PROGRAMS, sh};

/// Calls a verb of the program.
pub fn call(verb: &str, words: &[&str]) -> anyhow::Result<String> {
    sh(&format!("{PROGRAMS}/libcni {verb} {}", words.join(" ")))
}

/// Collects what belongs to no sandbox of these.
pub fn collect(living: &[&str]) -> anyhow::Result<String> {
    call("gc", &[&[CONFLIST], living].concat())
}

/// What CRI-O has of a pod before its first container: a network namespace that a file keeps.
pub struct Sandbox {
    pub container: String,
    pod: [String; 3],
}

impl Sandbox {
    pub fn add(node: &mut Node) -> anyhow::Result<Self> {
        let pod = node.announce(&[])?;
        let [name, uid, _] = &pod;
        let container = format!("crio-{name}");
        // Not by `ip netns add`: since iproute2 7 it mounts over the runtime's own namespaces, which containerd then cannot remove.
        sh(&format!("touch /run/{container}; unshare --net=/run/{container} true"))?;
        call("add", &[CONFLIST, &container, &format!("/run/{container}"), "shop", name, uid])?;
        Ok(Self { container, pod })
    }

    /// Its namespace ends, and its pod; no plugin is called.
    pub fn remove(&self) -> anyhow::Result<()> {
        let ([name, _, slice], container) = (&self.pod, &self.container);
        sh(&format!(
            "umount /run/{container}; rm /run/{container} {OBJECTS}/{name}.json; systemctl stop {slice}"
        ))?;
        Ok(())
    }
}
