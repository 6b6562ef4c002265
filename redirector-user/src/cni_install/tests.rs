use super::*;
use crate::base::error::Kind;

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
        let places = Places {
            bin_dir,
            conf_dir,
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

    fn types(&self, name: &str) -> Vec<String> {
        let list: serde_json::Value = serde_json::from_str(&self.conf(name)).unwrap();
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    fn uninstall(&self) {
        uninstall(&self.places.bin_dir, &self.places.conf_dir).unwrap();
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
    assert!(matches!(install(&node.places).unwrap(), State::Written(_)));
    assert_eq!(node.types("10-n.conflist"), ["bridge", "portmap", "redirector"]);
    let text = node.conf("10-n.conflist");
    assert!(text.contains("{\"type\":\"bridge\", \"b\": 1, \"a\": 2}"), "others as they are written: {text}");
    assert!(text.find("disableCheck").unwrap() > text.find("\"name\"").unwrap());
    assert_eq!(node.conf("99-loopback.conflist"), LIST);
    assert_eq!(install(&node.places).unwrap(), State::Unchanged);
    let mode = std::fs::metadata(node.places.bin_dir.join(TYPE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    node.uninstall();
    assert_eq!(node.conf("10-n.conflist"), LIST, "byte for byte");
    assert_eq!(node.files(), ["10-n.conflist", "99-loopback.conflist", "README"]);
    assert!(!node.places.bin_dir.join(TYPE).exists());
    node.uninstall();
}

#[test]
fn what_another_tool_writes_is_kept_and_chained_again() {
    let node = Node::new("other", &[("10-n.conflist", LIST)]);
    install(&node.places).unwrap();
    let other = LIST.replace("portmap", "bandwidth");
    std::fs::write(node.places.conf_dir.join("10-n.conflist"), &other).unwrap();
    assert!(matches!(install(&node.places).unwrap(), State::Written(_)));
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
    assert_eq!(install(&node.places).unwrap(), State::Unchanged);
    node.uninstall();
    assert_eq!(node.files(), ["10-n.conf"]);
    assert_eq!(node.conf("10-n.conf"), single);
}

#[test]
fn nothing_to_chain_to_and_nothing_of_sense() {
    let node = Node::new("none", &[]);
    assert_eq!(install(&node.places).unwrap(), State::NoNetwork);
    for wrong in ["", "[]", "{}", "{\"plugins\": 1}", "{\"plugins\": []"] {
        let node = Node::new("wrong", &[("10-n.conflist", wrong)]);
        assert_eq!(install(&node.places).unwrap_err().kind(), Kind::Input, "{wrong}");
        assert_eq!(node.conf("10-n.conflist"), wrong);
        assert_eq!(node.files(), ["10-n.conflist"]);
    }
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
    assert!(matches!(install(&node.places).unwrap(), State::Written(_)));
}

#[test]
fn what_a_killed_one_has_left_goes() {
    let node =
        Node::new("killed", &[("10-n.conflist", LIST), (".10-n.conflist.1.new", "{"), (".other.1.new", "?")]);
    let bin = node.places.bin_dir.join(TYPE);
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
