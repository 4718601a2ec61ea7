//! Claim names, and the values that claims are compared with.

use std::cmp::Ordering;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};

use super::StringOrList;

/// The path of a claim in a token: `"a.b.c"` is split at its dots, `["https://x.y/z"]` names each
/// segment exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimName(StringOrList<String>);

impl ClaimName {
    /// The names to follow, outermost first. May contain empty names: `"a..b"`.
    pub fn segments(&self) -> Vec<String> {
        match &self.0 {
            StringOrList::String(path) => path.split('.').map(str::to_owned).collect(),
            StringOrList::List(names) => names.clone(),
        }
    }

    /// The text, if it was written as a single string: `"https://x.y/roles"` is split at its dot,
    /// which is rarely intended.
    pub fn dotted(&self) -> Option<&str> {
        match &self.0 {
            StringOrList::String(path) => Some(path),
            StringOrList::List(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for ClaimName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StringOrList::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for ClaimName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ClaimName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "\"realm_access.roles\" is a path, split at its dots; [\"https://example.com/roles\"] names each segment exactly.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        })
    }
}

/// A value that a claim is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A string: equal byte for byte.
    Text(String),
    /// An integer: equal by value, so `1` is `1.0`.
    Integer(i64),
    /// A float: equal by value.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
}

impl Scalar {
    /// Whether a claim has this value. A list never matches: the caller compares its items one by
    /// one.
    pub fn matches(&self, claim: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (self, claim) {
            (Self::Text(text), Value::String(claim)) => text == claim,
            (Self::Boolean(boolean), Value::Bool(claim)) => boolean == claim,
            (Self::Integer(integer), Value::Number(claim)) => match claim.as_i64() {
                Some(claim) => *integer == claim,
                None => {
                    claim.is_f64()
                        && claim.as_f64().is_some_and(|claim| whole(claim) == Some(*integer))
                }
            },
            (Self::Float(float), Value::Number(claim)) => match claim.as_i64() {
                Some(claim) => whole(*float) == Some(claim),
                // The comparison is exact: the value is compared as written.
                None => claim
                    .as_f64()
                    .is_some_and(|claim| claim.partial_cmp(float) == Some(Ordering::Equal)),
            },
            _ => false,
        }
    }
}

/// The integer that a float is exactly equal to, if it fits.
fn whole(float: f64) -> Option<i64> {
    // 2^63 is the first float beyond `i64::MAX`, which is not itself a float.
    let fits = float.fract() == 0.0
        && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&float);
    fits.then_some(float as i64)
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, integer: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(integer))
            }

            fn visit_f64<E>(self, float: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(float))
            }

            fn visit_bool<E>(self, boolean: bool) -> Result<Scalar, E> {
                Ok(Scalar::Boolean(boolean))
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A value that a claim is compared with.",
            "anyOf": [{ "type": "string" }, { "type": "integer" }, { "type": "number" }, { "type": "boolean" }],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_compare_by_value() {
        let cases = [
            (Scalar::Text("a".into()), json!("a"), true),
            (Scalar::Text("1".into()), json!(1), false),
            (Scalar::Integer(1), json!(1), true),
            (Scalar::Integer(1), json!(1.0), true),
            (Scalar::Integer(1), json!(1.5), false),
            (Scalar::Integer(1), json!("1"), false),
            (Scalar::Integer(1), json!(true), false),
            (Scalar::Integer(i64::MAX), json!(9_223_372_036_854_775_808_u64), false),
            (Scalar::Integer(9_007_199_254_740_993), json!(9_007_199_254_740_992.0), false),
            (Scalar::Float(1.5), json!(1.5), true),
            (Scalar::Float(2.0), json!(2), true),
            (Scalar::Float(-0.0), json!(0.0), true),
            (Scalar::Boolean(true), json!(true), true),
            (Scalar::Boolean(true), json!("true"), false),
            (Scalar::Text("a".into()), json!(["a"]), false),
        ];
        for (scalar, claim, wanted) in cases {
            assert_eq!(scalar.matches(&claim), wanted, "{scalar:?} {claim}");
        }
    }
}
