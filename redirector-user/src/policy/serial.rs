//! How a policy is written in TOML and JSON.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::model::{Dns, Policy, Selection};

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut policy = Self::deserialize(deserializer)?;
        if policy.has_unset_uids() {
            policy.proxy_uids =
                if policy.proxy_cgroup.is_some() { Vec::new() } else { Self::default().proxy_uids };
        }
        if policy.has_unset_gids() {
            policy.proxy_gids.clone_from(&policy.proxy_uids);
        }
        policy.validate().map_err(D::Error::custom)?;
        policy.normalise();
        Ok(policy)
    }
}

impl<T: Serialize> Serialize for Selection<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::All => serializer.serialize_str("all"),
            Self::List(items) => items.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Selection<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(WordOrList::new("none"))? {
            Value::Off => Ok(Self::None),
            Value::All => Ok(Self::All),
            Value::List(items) => Ok(Self::of(items)),
        }
    }
}

impl Serialize for Dns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::All => serializer.serialize_str("all"),
            Self::Servers(servers) => servers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Dns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(WordOrList::new("off"))? {
            Value::Off => Ok(Self::Off),
            Value::All => Ok(Self::All),
            Value::List(servers) => Ok(Self::Servers(servers)),
        }
    }
}

enum Value<T> {
    Off,
    All,
    List(Vec<T>),
}

struct WordOrList<T> {
    off: &'static str,
    items: PhantomData<T>,
}

impl<T> WordOrList<T> {
    fn new(off: &'static str) -> Self {
        Self { off, items: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for WordOrList<T> {
    type Value = Value<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"all\", \"{}\" or a list", self.off)
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Value<T>, E> {
        match word {
            "all" | "*" => Ok(Value::All),
            word if word == self.off => Ok(Value::Off),
            word => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Value<T>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Value::List)
    }
}
