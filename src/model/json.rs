//! JSON objects whose keys are read without regard to case, as the Go daemon reads them.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// An object with its keys in lower case. Of keys that differ only in case the last one counts.
#[derive(Debug, Default)]
pub struct FoldedObject(BTreeMap<String, Value>);

impl FoldedObject {
    /// Takes a key out and reads it as `T`; `Ok(None)` when the key is absent or null.
    ///
    /// # Errors
    /// When the value is there but has another type. The message names the key as `key` spells it.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        match self.0.remove(&key.to_ascii_lowercase()) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|error| format!("{key}: {error}")),
        }
    }

    /// Whether the key is there with the value null.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        self.0.get(&key.to_ascii_lowercase()).is_some_and(Value::is_null)
    }
}

impl<'de> serde::Deserialize<'de> for FoldedObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fold;
        impl<'de> Visitor<'de> for Fold {
            type Value = FoldedObject;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FoldedObject, A::Error> {
                let mut object = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    object.insert(key.to_ascii_lowercase(), value);
                }
                Ok(FoldedObject(object))
            }
        }
        deserializer.deserialize_map(Fold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fold_and_the_last_one_counts() {
        let mut object: FoldedObject =
            serde_json::from_str(r#"{"NETWORK":"a","network":"b","X":null}"#).unwrap();
        assert!(object.is_null("x"));
        assert_eq!(object.take::<String>("Network"), Ok(Some("b".to_owned())));
        assert_eq!(object.take::<String>("Network"), Ok(None));
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let mut object: FoldedObject = serde_json::from_str(r#"{"subnetlen":"24"}"#).unwrap();
        let message = object.take::<u32>("SubnetLen").unwrap_err();
        assert!(message.starts_with("SubnetLen: "), "{message}");
    }
}
