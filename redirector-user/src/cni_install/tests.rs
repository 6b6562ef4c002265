use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::base::error::Kind;
use crate::cni::protocol::PLUGIN_TYPE;

struct Node {
    _dir: PathBuf,
    places: Places,
}

impl Node {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("redirector-install-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (bin_dir, conf_dir) = (dir.join("bin"), dir.join("net.d"));
        std::fs::create_dir_all(&bin_dir).unwrap();
        std::fs::create_dir_all(&conf_dir).unwrap();
        for (name, text) in files {
            std::fs::write(conf_dir.join(name), text).unwrap();
        }
        // Plugins that the runtime finds. The test itself must not be executed as the plugin.
        for plugin in ["bridge", "portmap", "bandwidth"] {
            std::fs::write(bin_dir.join(plugin), "").unwrap();
        }
        let places = Places {
            program: "/bin/true".into(),
            bin_dir,
            conf_dir,
            network: None,
            socket: "/run/x.sock".into(),
            exclude_namespaces: vec!["kube-system".into()],
        };
        Self { _dir: dir, places }
    }

    fn conf(&self, name: &str) -> String {
        std::fs::read_to_string(self.places.conf_dir.join(name)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.places.conf_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Kind, mode and bytes, or the link's target.
    fn state(&self, name: &str) -> (bool, u32, String) {
        let path = self.places.conf_dir.join(name);
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let text = match std::fs::read_link(&path) {
            Ok(target) => target.display().to_string(),
            Err(_) => self.conf(name),
        };
        (metadata.is_symlink(), metadata.permissions().mode() & 0o7777, text)
    }

    fn is_unchanged(&self) -> bool {
        install(&self.places).unwrap().written.is_empty()
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list: serde_json::Value = serde_json::from_str(&self.conf(name)).unwrap();
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    fn uninstall(&self) {
        uninstall(&self.places.bin_dir, &self.places.conf_dir, Path::new("/none")).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self._dir);
    }
}

const LIST: &str = "{ \"cniVersion\":\"1.0.0\",\n  \"name\": \"n\", \"plugins\": [ {\"type\":\"bridge\", \"b\": 1, \"a\": 2},\n {\"type\":\"portmap\"}], \"disableCheck\": true }";

#[test]
fn a_list_gets_an_entry_and_loses_it_again() {
    let node = Node::new("list", &[("10-n.conflist", LIST), ("99-loopback.conflist", LIST), ("README", "?")]);
    assert!(!node.is_unchanged());
    assert_eq!(node.types("10-n.conflist"), ["bridge", "portmap", "redirector"]);
    let text = node.conf("10-n.conflist");
    assert!(text.contains("{\"type\":\"bridge\", \"b\": 1, \"a\": 2}"), "others as they are written: {text}");
    assert!(text.find("disableCheck").unwrap() > text.find("\"name\"").unwrap());
    assert_eq!(node.conf("99-loopback.conflist"), LIST);
    assert!(node.is_unchanged());
    let mode = std::fs::metadata(node.places.bin_dir.join(PLUGIN_TYPE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    node.uninstall();
    assert_eq!(node.conf("10-n.conflist"), LIST, "byte for byte");
    assert_eq!(node.files(), ["10-n.conflist", "99-loopback.conflist", "README"]);
    assert!(!node.places.bin_dir.join(PLUGIN_TYPE).exists());
    node.uninstall();
}

#[test]
fn what_another_tool_writes_is_kept_and_chained_again() {
    let node = Node::new("other", &[("10-n.conflist", LIST)]);
    install(&node.places).unwrap();
    let other = LIST.replace("portmap", "bandwidth");
    std::fs::write(node.places.conf_dir.join("10-n.conflist"), &other).unwrap();
    assert!(!node.is_unchanged());
    assert_eq!(node.types("10-n.conflist"), ["bridge", "bandwidth", "redirector"]);
    // Somebody chains after us: the last one sees what all others have made, and we must be it.
    let moved =
        node.conf("10-n.conflist").replacen("\"plugins\": [", "\"plugins\": [{\"type\":\"redirector\"},", 1);
    std::fs::write(node.places.conf_dir.join("10-n.conflist"), moved).unwrap();
    install(&node.places).unwrap();
    assert_eq!(node.types("10-n.conflist"), ["bridge", "bandwidth", "redirector"]);
    // A change while we are in it: our entry goes, the change stays.
    let changed = node.conf("10-n.conflist").replace("\"a\": 2", "\"a\": 3");
    std::fs::write(node.places.conf_dir.join("10-n.conflist"), changed).unwrap();
    node.uninstall();
    assert_eq!(node.types("10-n.conflist"), ["bridge", "bandwidth"]);
    assert!(node.conf("10-n.conflist").contains("\"a\": 3"));
    assert_eq!(node.files(), ["10-n.conflist"]);
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let single = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"type\":\"bridge\"}";
    let node = Node::new("single", &[("10-n.conf", single)]);
    install(&node.places).unwrap();
    assert_eq!(node.types("10-n.conflist"), ["bridge", "redirector"]);
    assert_eq!(node.files(), ["10-n.conf.before-redirector", "10-n.conflist"]);
    assert!(node.is_unchanged());
    node.uninstall();
    assert_eq!(node.files(), ["10-n.conf"]);
    assert_eq!(node.conf("10-n.conf"), single);
}

/// What no runtime takes is left as it is: what nobody understands, a list of nothing, a list in a `.conf`.
#[test]
fn files_that_no_runtime_takes() {
    let node = Node::new("none", &[]);
    let error = install(&node.places).unwrap_err().to_string();
    assert!(error.contains("no network's configuration in"), "{error}");
    let twice = LIST.replace("\"disableCheck\"", "\"name\": \"m\", \"disableCheck\"");
    let nameless = LIST.replace("\"name\": \"n\",", "");
    for wrong in [
        "",
        "[]",
        "{}",
        "{\"plugins\": 1}",
        "{\"plugins\": []",
        "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[]}",
        "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"redirector\"}]}",
        "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"mtu\":1}]}",
        &twice,
        &nameless,
    ] {
        let node = Node::new("wrong", &[("10-n.conflist", wrong)]);
        let error = install(&node.places).unwrap_err().to_string();
        assert!(error.contains("10-n.conflist is no network"), "{wrong}: {error}");
        assert_eq!(node.conf("10-n.conflist"), wrong);
        assert_eq!(node.files(), ["10-n.conflist"]);
        node.uninstall();
        assert_eq!(node.conf("10-n.conflist"), wrong);
    }
    let node = Node::new("listconf", &[("10-n.conf", LIST)]);
    let error = install(&node.places).unwrap_err().to_string();
    assert!(error.contains("belongs into a .conflist"), "{error}");
    assert_eq!(node.files(), ["10-n.conf"]);
}

/// CRI-O passes over files that are unusable or name plugins that it does not find; containerd would stop there.
#[test]
fn every_file_that_a_runtime_may_take_has_the_entry() {
    let calico = LIST.replace("bridge", "calico");
    let files = [("00-old.conflist", ""), ("05-c.conflist", &*calico), ("10-n.conflist", LIST)];
    let node = Node::new("several", &[&files[..], &[("20-m.conflist", LIST)]].concat());
    let installed = install(&node.places).unwrap();
    assert!(installed.notes[0].contains("00-old.conflist is no network"), "{installed:?}");
    assert_eq!(node.conf("00-old.conflist"), "");
    assert_eq!(node.types("05-c.conflist"), ["calico", "portmap", "redirector"]);
    assert_eq!(node.types("10-n.conflist"), ["bridge", "portmap", "redirector"]);
    assert_eq!(node.conf("20-m.conflist"), LIST);
    assert!(node.is_unchanged());
    node.uninstall();
    assert_eq!(node.files().len(), 4);
    files.iter().for_each(|(name, text)| assert_eq!(node.conf(name), *text));
}

/// CRI-O's `cni_default_network`.
#[test]
fn the_network_may_be_named() {
    let other = LIST.replace("\"name\": \"n\"", "\"name\": \"pods\"");
    let mut node = Node::new("named", &[("10-n.conflist", LIST), ("20-m.conflist", &other)]);
    node.places.network = Some("pods".into());
    assert!(!node.is_unchanged());
    assert_eq!(node.conf("10-n.conflist"), LIST);
    assert_eq!(node.types("20-m.conflist"), ["bridge", "portmap", "redirector"]);
    node.places.network = Some("none".into());
    assert!(install(&node.places).unwrap_err().to_string().contains("named \"none\""));
}

/// Bytes, mode and kind of every file come back.
#[test]
fn a_node_is_left_as_it_was() {
    let single = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"type\":\"bridge\"}";
    for (name, text) in [("10-n.conflist", LIST), ("10-n.conf", single), ("10-n.json", single)] {
        for (mode, link) in [(0o644, false), (0o640, false), (0o644, true)] {
            let node = Node::new("asitwas", &[]);
            let path = node.places.conf_dir.join(name);
            let file = if link { node._dir.join("managed") } else { path.clone() };
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            if link {
                std::os::unix::fs::symlink(&file, &path).unwrap();
            }
            let before = node.state(name);
            assert!(!node.is_unchanged() && node.is_unchanged());
            assert_eq!(node.state("10-n.conflist").1, mode, "{name}: others may read it as before");
            node.uninstall();
            assert_eq!((node.state(name), node.files()), (before, vec![name.to_owned()]));
        }
    }
}

/// Behind a link somebody else manages the file: his changes are followed, and the link comes back.
#[test]
fn a_link_to_a_managed_file() {
    let node = Node::new("link", &[]);
    let managed = node._dir.join("managed");
    std::fs::write(&managed, LIST).unwrap();
    let path = node.places.conf_dir.join("10-n.conflist");
    std::os::unix::fs::symlink(&managed, &path).unwrap();
    install(&node.places).unwrap();
    assert_eq!(std::fs::read_to_string(&managed).unwrap(), LIST);
    assert_eq!(linked_files(&node.places.conf_dir), std::slice::from_ref(&managed));
    let changed = LIST.replace("portmap", "bandwidth");
    std::fs::write(&managed, &changed).unwrap();
    assert!(!node.is_unchanged());
    assert_eq!(node.types("10-n.conflist"), ["bridge", "bandwidth", "redirector"]);
    node.uninstall();
    assert_eq!(node.state("10-n.conflist").2, managed.display().to_string());
    assert_eq!(node.conf("10-n.conflist"), changed);
    // Nobody can read what is behind it here, and the runtime may.
    std::fs::remove_file(&managed).unwrap();
    assert!(install(&node.places).unwrap_err().to_string().contains("is a link to a file"));
}

/// A list beside a single plugin of its name is another network.
#[test]
fn a_list_of_the_same_name_is_not_overwritten() {
    let single = "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"type\":\"bridge\"}";
    let node = Node::new("both", &[("10-n.conf", single), ("10-n.conflist", LIST)]);
    assert!(install(&node.places).unwrap_err().to_string().contains("which is another network"));
    assert_eq!((node.conf("10-n.conf").as_str(), node.conf("10-n.conflist").as_str()), (single, LIST));
}

/// Whoever executes the binary while it is replaced must not be told ETXTBSY: it is closed before it has its name.
/// The kernel reports a file as closed with its last descriptor (`__fput`), and a process that another test starts has
/// them all until its execve(2): one order of many tries has to be right, and a wrong one never is.
#[test]
fn a_file_is_closed_before_it_has_its_name() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    let node = Node::new("closed", &[]);
    let dir = &node.places.conf_dir;
    let order = || -> Vec<ReadFlags> {
        let events = inotify::init(CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&events, dir, WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO).unwrap();
        files::write(&dir.join("file"), b"text", 0o755, None).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&events, &mut buffer);
        std::iter::from_fn(|| Some(reader.next().ok()?.events())).collect()
    };
    let orders: Vec<_> = (0..50).map(|_| order()).collect();
    assert!(orders.iter().any(|order| order == &[ReadFlags::CLOSE_WRITE, ReadFlags::MOVED_TO]), "{orders:?}");
}

/// What Go's parser takes and this one does not.
#[test]
fn a_list_that_only_runtimes_understand_comes_back() {
    let nested = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    for value in [r#""\ud800""#, nested.as_str()] {
        let list = LIST.replacen("\"type\"", &format!("\"x\": {value}, \"type\""), 1);
        let node = Node::new("beyond", &[("10-n.conflist", &list)]);
        assert_eq!(install(&node.places).unwrap().written.len(), 1);
        assert!(node.is_unchanged(), "it is installed again and again");
        node.uninstall();
        assert_eq!(node.conf("10-n.conflist"), list);
    }
}

#[test]
fn what_is_no_file_is_not_waited_for_nor_replaced() {
    let node = Node::new("fifo", &[("10-n.conflist", LIST)]);
    let binary = node.places.bin_dir.join(PLUGIN_TYPE);
    rustix::fs::mkfifoat(rustix::fs::CWD, &binary, 0o600.into()).unwrap();
    assert!(install(&node.places).unwrap_err().to_string().contains("is no file of redirector"));
    std::fs::remove_file(&binary).unwrap();
    std::os::unix::fs::symlink("/bin/false", &binary).unwrap();
    assert!(install(&node.places).unwrap_err().to_string().contains("is no file of redirector"));
    assert_eq!(node.conf("10-n.conflist"), LIST);
}

#[test]
fn what_cannot_be_executed_is_not_installed() {
    let mut node = Node::new("noexec", &[("10-n.conflist", LIST)]);
    node.places.program = "/bin/false".into();
    let error = install(&node.places).unwrap_err().to_string();
    assert!(error.contains("as the container runtime does: exit status: 1"), "{error}");
    assert_eq!(node.conf("10-n.conflist"), LIST);
}

/// CRI-O ends a pod with the list of its set-up.
#[test]
fn the_binary_stays_while_pods_need_it() {
    let node = Node::new("cached", &[("10-n.conflist", LIST)]);
    install(&node.places).unwrap();
    let results = node._dir.join("results");
    std::fs::create_dir(&results).unwrap();
    let list = "eyJuYW1lIjoibiIsInBsdWdpbnMiOlt7InR5cGUiOiJyZWRpcmVjdG9yIn1dfQ==";
    std::fs::write(results.join("n-1-eth0"), format!("{{\"config\":\"{list}\"}}")).unwrap();
    let uninstall = || uninstall(&node.places.bin_dir, &node.places.conf_dir, &node._dir).unwrap().done;
    assert!(uninstall().last().unwrap().contains("CRI-O needs it to end 1 pods"));
    assert_eq!(node.conf("10-n.conflist"), LIST);
    std::fs::remove_dir_all(&results).unwrap();
    assert!(uninstall().last().unwrap().starts_with("removed"));
}

/// A list that cannot be read may name the binary, without which it would let no pod start.
#[test]
fn the_binary_stays_while_a_list_may_name_it() {
    let node = Node::new("unread", &[("10-n.conflist", LIST)]);
    install(&node.places).unwrap();
    let (list, binary) = (node.places.conf_dir.join("10-n.conflist"), node.places.bin_dir.join(PLUGIN_TYPE));
    let uninstall = || uninstall(&node.places.bin_dir, &node.places.conf_dir, &node._dir).unwrap();
    let installed = node.conf("10-n.conflist");
    let too_long = format!("{installed}{}", " ".repeat(2 << 20));
    for text in [too_long, installed.replace("]", "")] {
        std::fs::write(&list, &text).unwrap();
        let Removal { done, left } = uninstall();
        assert_eq!(left.as_ref(), Some(&list));
        assert!(done.iter().all(|line| line.starts_with("left")) && done.len() == 2, "{done:?}");
        assert!(binary.exists() && std::fs::read_to_string(&list).unwrap() == text);
    }
    std::fs::write(&list, installed).unwrap();
    assert!(uninstall().done.last().unwrap().starts_with("removed"));
}

/// What the runtime cannot hand to us would keep every pod of the node from starting.
#[test]
fn versions_that_are_none_of_ours() {
    for wrong in ["\"0.2.0\"", "\"2.0.0\"", "1"] {
        let text = LIST.replace("\"1.0.0\"", wrong);
        let node = Node::new("version", &[("10-n.conflist", &text)]);
        let error = install(&node.places).unwrap_err();
        assert!(error.kind() == Kind::Input && error.to_string().contains("cniVersion"), "{wrong}: {error}");
        assert_eq!(node.files(), ["10-n.conflist"]);
        assert_eq!(node.conf("10-n.conflist"), text);
    }
    // Of a list that becomes one of those our entry is taken out.
    let node = Node::new("changed", &[("10-n.conflist", LIST)]);
    install(&node.places).unwrap();
    let changed = node.conf("10-n.conflist").replace("1.0.0", "2.0.0");
    std::fs::write(node.places.conf_dir.join("10-n.conflist"), changed).unwrap();
    assert!(install(&node.places).is_err());
    assert_eq!(node.types("10-n.conflist"), ["bridge", "portmap"]);
    // The runtime chooses among several.
    let text = LIST.replace("\"cniVersion\":\"1.0.0\"", "\"cniVersions\":[\"1.0.0\",\"9.0.0\"]");
    let node = Node::new("versions", &[("10-n.conflist", &text)]);
    assert!(!node.is_unchanged());
}

#[test]
fn what_a_killed_one_has_left_goes() {
    let node =
        Node::new("killed", &[("10-n.conflist", LIST), (".10-n.conflist.1.new", "{"), (".other.1.new", "?")]);
    let bin = node.places.bin_dir.join(PLUGIN_TYPE);
    let half = bin.with_file_name(".redirector.1.new");
    std::fs::write(&half, "ELF").unwrap();
    install(&node.places).unwrap();
    assert!(!half.exists());
    assert_eq!(node.files(), [".other.1.new", "10-n.conflist", "10-n.conflist.before-redirector"]);
    // Ours to the byte, but nobody may run it.
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o644)).unwrap();
    install(&node.places).unwrap();
    assert_eq!(std::fs::metadata(&bin).unwrap().permissions().mode() & 0o777, 0o755);
}
