//! JSON schemas of what a policy writes by hand.

use std::borrow::Cow;
use std::net::IpAddr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::model::{Dns, Selection};

fn word_or_list<T: JsonSchema>(generator: &mut SchemaGenerator, off: &str) -> Schema {
    let items = generator.subschema_for::<T>();
    json_schema!({ "anyOf": [{ "enum": [off, "all", "*"] }, { "type": "array", "items": items }] })
}

impl<T: JsonSchema> JsonSchema for Selection<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Selection_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        word_or_list::<T>(generator, "none")
    }
}

impl JsonSchema for Dns {
    fn schema_name() -> Cow<'static, str> {
        "Dns".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        word_or_list::<IpAddr>(generator, "off")
    }
}
