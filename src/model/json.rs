//! JSON objects whose keys are read without regard to case, as the Go daemon reads them.
//!
//! A value is looked at only when somebody asks for its key: a list of thousands of leases is read with each start.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object whose keys are found in any case. Of keys that differ only in case the last one counts.
#[derive(Debug, Default)]
pub struct FoldedObject<'a>(Vec<(Text<'a>, &'a RawValue)>);

impl<'a> FoldedObject<'a> {
    /// Reads a key's value as `T`; `Ok(None)` when the key is absent or null.
    ///
    /// # Errors
    /// When the value is there but has another type. The message names the key as `key` spells it.
    pub fn get<T: Deserialize<'a>>(&self, key: &str) -> Result<Option<T>, String> {
        match self.find(key) {
            None | Some("null") => Ok(None),
            Some(value) => serde_json::from_str(value).map(Some).map_err(|error| {
                let text = error.to_string();
                // A place inside of the value says nothing about the whole.
                format!("{key}: {}", text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what))
            }),
        }
    }

    /// Reads a key's value as a text, without a reader of its own where no escape stands in it.
    ///
    /// # Errors
    /// As [`FoldedObject::get`].
    pub fn text(&self, key: &str) -> Result<Option<Cow<'a, str>>, String> {
        let plain = self.find(key).and_then(|value| value.strip_prefix('"')?.strip_suffix('"'));
        match plain.filter(|text| !text.contains('\\')) {
            Some(text) => Ok(Some(Cow::Borrowed(text))),
            None => Ok(self.get::<Text<'_>>(key)?.map(|text| text.0)),
        }
    }

    /// Whether the key is there with the value null.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        self.find(key) == Some("null")
    }

    fn find(&self, key: &str) -> Option<&'a str> {
        let last = self.0.iter().rev().find(|(name, _)| name.0.eq_ignore_ascii_case(key));
        last.map(|(_, value)| value.get())
    }
}

impl<'de> Deserialize<'de> for FoldedObject<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fold;
        impl<'de> Visitor<'de> for Fold {
            type Value = FoldedObject<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FoldedObject<'de>, A::Error> {
                let mut object = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    object.push(entry);
                }
                Ok(FoldedObject(object))
            }
        }
        deserializer.deserialize_map(Fold)
    }
}

/// A string that is borrowed from the JSON if it holds no escapes.
#[derive(Debug)]
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fold_and_the_last_one_counts() {
        let object: FoldedObject = serde_json::from_str(r#"{"NETWORK":"a","network":"b","X":null}"#).unwrap();
        assert!(object.is_null("x"));
        assert_eq!(object.get::<String>("Network"), Ok(Some("b".to_owned())));
        assert_eq!(object.get::<String>("X"), Ok(None));
        assert_eq!(object.get::<String>("absent"), Ok(None));
    }

    #[test]
    fn a_wrong_type_names_the_key() {
        let object: FoldedObject = serde_json::from_str(r#"{"subnetlen":"24"}"#).unwrap();
        let message = object.get::<u32>("SubnetLen").unwrap_err();
        assert_eq!(message, r#"SubnetLen: invalid type: string "24", expected u32"#);
    }

    #[test]
    fn escapes_are_resolved_in_keys_and_texts() {
        let object: FoldedObject = serde_json::from_str(r#"{"\u004eet\"":"1\n2"}"#).unwrap();
        assert_eq!(object.text("net\"").unwrap().unwrap(), "1\n2");
        assert!(object.text("absent").unwrap().is_none());
    }

    #[test]
    fn a_text_is_the_same_with_and_without_a_reader() {
        for value in
            [r#""plain""#, r#""""#, r#""\u0061\"""#, r#""ü""#, "null", "1", "[\"a\"]", r#"{"a":"b"}"#]
        {
            let text = format!(r#"{{"key":{value}}}"#);
            let object: FoldedObject = serde_json::from_str(&text).unwrap();
            let read = object.get::<Text>("key").map(|text| text.map(|text| text.0));
            assert_eq!(object.text("key"), read, "{value}");
        }
    }
}
