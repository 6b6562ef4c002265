//! A list of plugins, of which every byte that is not ours stays.

use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use crate::base::error::{Error, Result};
use crate::cni::protocol::{CNI_VERSIONS, PLUGIN_TYPE};

/// A list of plugins: its keys in their order, every value as it is written.
#[derive(Clone, Debug)]
pub struct List {
    keys: Object,
    plugins: Vec<Box<RawValue>>,
}

/// The keys of an object in their order.
#[derive(Clone, Debug)]
struct Object(Vec<(String, Box<RawValue>)>);

impl List {
    /// Reads a list, or makes one of a single plugin's configuration, as libcni does (`ConfListFromConf`).
    ///
    /// # Errors
    ///
    /// Why no runtime takes it: libcni refuses it, or containerd and CRI-O do (a list in a `.conf`, a list of nothing).
    pub fn parse(text: &str, is_list: bool) -> Result<Self, String> {
        let Object(keys): Object = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if !is_list {
            let single = to_raw_value(&Object(keys.clone())).map_err(|e| e.to_string())?;
            type_of(&single).ok_or("it has no type; a list of plugins belongs into a .conflist")?;
            let keys =
                keys.into_iter().filter(|(key, _)| matches!(key.as_str(), "cniVersion" | "name")).collect();
            return Ok(Self { keys: Object(keys), plugins: vec![single] });
        }
        let at = keys.iter().position(|(key, _)| key == "plugins").ok_or("it has no plugins")?;
        let plugins: Vec<Box<RawValue>> =
            serde_json::from_str(keys[at].1.get()).map_err(|e| format!("plugins: {e}"))?;
        if plugins.iter().all(|plugin| is_ours(plugin)) {
            return Err("its list of plugins is empty".into());
        }
        if plugins.iter().any(|plugin| type_of(plugin).is_none()) {
            return Err("one of its plugins has no type".into());
        }
        let keys = keys.into_iter().filter(|(key, _)| key != "plugins").collect();
        let list = Self { keys: Object(keys), plugins };
        list.name().ok_or("it has no name")?;
        Ok(list)
    }

    /// Name of the network.
    pub fn name(&self) -> Option<String> {
        let (_, name) = self.keys.0.iter().find(|(key, _)| key == "name")?;
        serde_json::from_str::<String>(name.get()).ok().filter(|name| !name.is_empty())
    }

    /// Types of the plugins of others.
    pub fn types(&self) -> impl Iterator<Item = String> {
        self.plugins.iter().filter_map(|plugin| type_of(plugin)).filter(|kind| kind != PLUGIN_TYPE)
    }

    /// As it is written.
    pub fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|e| Error::failed(format!("serialise: {e}")))
    }

    /// A runtime gives the list's version to every plugin, and one that is none of ours fails each ADD of the node.
    pub fn check_version(&self, path: &Path) -> Result<()> {
        let text = |value: &RawValue| serde_json::from_str::<String>(value.get()).ok().into_iter().collect();
        let list = |value: &RawValue| serde_json::from_str::<Vec<String>>(value.get()).unwrap_or_default();
        let said: Vec<String> = self.keys.0.iter().fold(Vec::new(), |mut said, (key, value)| {
            said.extend(match key.as_str() {
                "cniVersion" => text(value),
                "cniVersions" => list(value),
                _ => Vec::new(),
            });
            said
        });
        if said.iter().any(|version| CNI_VERSIONS.contains(&version.as_str())) {
            return Ok(());
        }
        Err(Error::input(format!(
            "{} has cniVersion {said:?}, and redirector can be chained in lists of {}; no pod would start, so it is left \
             as it is, and pods start uncaptured until the agent has seen them",
            path.display(),
            CNI_VERSIONS.join(", ")
        )))
    }

    pub fn has_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| is_ours(plugin))
    }

    pub fn without(&self) -> Self {
        let plugins = self.plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
        Self { keys: self.keys.clone(), plugins }
    }

    /// With our entry at the end: after all that make interfaces and addresses.
    pub fn with(&self, entry: &RawValue) -> Self {
        let mut list = self.without();
        list.plugins.push(entry.to_owned());
        list
    }

    /// The same but for blanks and order.
    pub fn same(&self, other: &Self) -> bool {
        let value = |list: &Self| serde_json::to_value(list).ok();
        match (value(self), value(other)) {
            (Some(own), Some(other)) => own == other,
            // What runtimes take and this parser does not, half of a surrogate pair or very deep nesting: by its text.
            _ => serde_json::to_string(self)
                .is_ok_and(|own| serde_json::to_string(other).is_ok_and(|it| own == it)),
        }
    }
}

impl PartialEq for List {
    fn eq(&self, other: &Self) -> bool {
        // Ours must be last.
        self.same(other)
            && self.plugins.last().map(|plugin| is_ours(plugin))
                == other.plugins.last().map(|plugin| is_ours(plugin))
    }
}

fn is_ours(plugin: &RawValue) -> bool {
    type_of(plugin).is_some_and(|kind| kind == PLUGIN_TYPE)
}

fn type_of(plugin: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Typed {
        #[serde(rename = "type")]
        kind: String,
    }
    let kind = serde_json::from_str::<Typed>(plugin.get()).ok()?.kind;
    Some(kind).filter(|kind| !kind.is_empty())
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in &self.keys.0 {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("plugins", &self.plugins)?;
        map.end()
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut keys: Vec<(String, Box<RawValue>)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, _>()? {
                    // Parsers differ in which of the two they take.
                    if keys.iter().any(|(other, _)| *other == key) {
                        return Err(A::Error::custom(format!("{key:?} is there twice")));
                    }
                    keys.push((key, value));
                }
                Ok(Object(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}
