//! Types of values that occur in several sections.
//!
//! serde fills the types in; the functions check text when the file is compiled, so that each
//! rejected value is a [`Problem`](super::Problem) with its place and a fix, reported together with
//! all others.

mod claim;
mod measure;
mod network;
mod secret;
mod words;

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

pub use self::claim::{ClaimName, Scalar};
pub use self::measure::{duration, size};
pub use self::network::{listen, network};
pub use self::secret::{CreateFiles, ReadSecret, SecretBytes, SecretRef, TextOrSecret};
pub(super) use self::words::list;
pub use self::words::{choice, nearest};
use super::file::Text;

/// A string or a list of strings. Each has its own place, even a single one.
#[derive(Debug, Clone)]
pub struct OneOrMany(pub Vec<Text>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<StringOrList<Text>>::deserialize(deserializer)?;
        let span = written.span();
        Ok(match written.into_inner() {
            StringOrList::String(text) => Self(vec![Spanned::new(span, text)]),
            StringOrList::List(texts) => Self(texts),
        })
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A string or a list of strings.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        })
    }
}

/// A string or a list, told apart by its type: serde's `untagged` would lose the places of the
/// items.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StringOrList<T> {
    String(String),
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for StringOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrListVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for StringOrListVisitor<T> {
            type Value = StringOrList<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(StringOrList::String(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(StringOrList::List(items))
            }
        }

        deserializer.deserialize_any(StringOrListVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::Problem;
    use super::*;

    pub(super) fn text(written: &str) -> Text {
        Spanned::new(0..written.len(), written.to_owned())
    }

    pub(super) fn message_of<T>(result: Result<T, Problem>) -> String {
        let problem = result.err().expect("it is refused");
        format!("{}; {}", problem.message, problem.help.unwrap_or_default())
    }

    #[derive(serde::Deserialize)]
    pub(super) struct Holder {
        pub(super) one: Spanned<OneOrMany>,
        pub(super) secret: SecretRef,
    }

    #[test]
    fn a_value_keeps_its_span() {
        let holder: Holder =
            toml::from_str("one = \"x\"\nany = []\nsecret = \"y\"").expect("it is TOML");
        assert_eq!((holder.one.span(), holder.one.get_ref().0[0].span()), (6..9, 6..9));
        assert_eq!(holder.secret.span(), 28..31);
    }
}
