//! Strict JSON parsing, and access to claims.

use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::excerpt::Excerpt;
use super::invalid::JsonFault;

/// Parses one JSON object. Rejects duplicate member names at any depth (RFC 7519 §4 allows it; RFC
/// 8725 §2.4 describes the attacks on parsers that do not), nesting deeper than 32 levels, and
/// trailing data.
///
/// # Errors
///
/// A [`JsonFault`], which may name a duplicate member but contains nothing else of the input.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonFault> {
    let fault = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, fault: &fault }
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    match value {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(JsonFault::NotAnObject),
        Err(_) => Err(fault.into_inner().unwrap_or(JsonFault::Syntax)),
    }
}

/// The path of a claim: one exact member name per segment, through nested objects. A name may
/// contain dots, slashes or colons.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimPath(Box<[Box<str>]>);

impl ClaimPath {
    /// Creates a path from member names, outermost first. An empty path matches nothing.
    pub fn new<S: Into<Box<str>>>(segments: impl IntoIterator<Item = S>) -> Self {
        Self(segments.into_iter().map(Into::into).collect())
    }

    /// The member names, outermost first.
    pub fn segments(&self) -> &[Box<str>] {
        &self.0
    }

    /// The value at this path, or `None` if a step is missing or is not an object.
    pub fn value_in<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(claims.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }

    /// Inserts `value` at this path and creates the objects on the way. Does nothing if something
    /// other than an object is in the way.
    pub(super) fn insert(&self, claims: &mut Map<String, Value>, value: Value) {
        let Some((last, way)) = self.0.split_last() else { return };
        let mut place = claims;
        for name in way {
            let next = place.entry(name.to_string()).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(next) = next else { return };
            place = next;
        }
        place.entry(last.to_string()).or_insert(value);
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// The claim at `path`, if it can be trusted: the top-level `email` counts as absent when
/// `email_verified` is present and not `true` (`false`, `"false"`, `0`). An address that its owner
/// never confirmed identifies nobody (OpenID Connect Core §5.7).
pub(super) fn trusted_claim<'a>(
    claims: &'a Map<String, Value>,
    path: &ClaimPath,
) -> Option<&'a Value> {
    if matches!(path.segments(), [only] if &**only == "email") {
        match claims.get("email_verified") {
            None | Some(Value::Null | Value::Bool(true)) => {}
            Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => {}
            Some(_) => return None,
        }
    }
    path.value_in(claims)
}

/// A claim that is neither a string, nor an array of strings, nor a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a string, an array of strings, or a whole number")]
pub struct NotAList;

/// Reads a claim that lists words (`roles`, `scope`, `groups`), in any of the forms that issuers
/// use: a string is split at ASCII whitespace (RFC 8693 §4.2), an array is taken as is, a whole
/// number counts as its digits, and `null` is the empty list.
///
/// # Errors
///
/// [`NotAList`] for anything else, and for an array with an element that is not a string: using
/// half of a list would be a guess.
pub fn string_list(value: &Value) -> Result<Vec<String>, NotAList> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(text.split_ascii_whitespace().map(str::to_owned).collect()),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(NotAList)).collect()
        }
        Value::Number(number) => digits(number).map(|digits| vec![digits]).ok_or(NotAList),
        Value::Bool(_) | Value::Object(_) => Err(NotAList),
    }
}

/// A whole number in decimal. Returns `None` for numbers that a JSON parser may round (fractions,
/// exponents, more than 64 bits): two accounts must never become one.
pub(super) fn digits(number: &Number) -> Option<String> {
    (number.is_u64() || number.is_i64()).then(|| number.to_string())
}

/// Deserializes any JSON value, strictly. The fault is stored separately because serde's error can
/// only carry text.
#[derive(Clone, Copy)]
struct Strict<'f> {
    depth: usize,
    fault: &'f RefCell<Option<JsonFault>>,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            Err(self.fail(JsonFault::TooDeep))
        } else {
            Ok(Self { depth: self.depth + 1, ..self })
        }
    }

    fn fail<E: Error>(self, fault: JsonFault) -> E {
        *self.fault.borrow_mut() = Some(fault);
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = elements.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(name) = members.next_key_seed(Name)? {
            if object.contains_key(&name) {
                return Err(self.fail(JsonFault::Duplicate(Excerpt::new(&name))));
            }
            let value = members.next_value_seed(inner)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// A member name with JSON's escapes resolved: `"a"` and `"\u0061"` are the same name.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

/// The maximum nesting of objects and arrays. Real claims are three or four levels deep.
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_is_parsed_strictly() {
        let duplicate = |name| Err(JsonFault::Duplicate(Excerpt::new(name)));
        let cases: [(&str, Result<Value, JsonFault>); 18] = [
            (
                r#"{"a":1,"b":[true,null,"x",-2,1.5]}"#,
                Ok(json!({"a":1,"b":[true,null,"x",-2,1.5]})),
            ),
            (" \r\n{\t} \n", Ok(json!({}))),
            (r#"{"a":1,"a":1}"#, duplicate("a")),
            (r#"{"a":1,"\u0061":2}"#, duplicate("a")),
            (r#"{"x":{"a":1,"b":2,"a":3}}"#, duplicate("a")),
            (r#"{"x":[[{"roles":[],"roles":["root"]}]]}"#, duplicate("roles")),
            (r#"{"x":{"a":1},"y":{"a":1}}"#, Ok(json!({"x":{"a":1},"y":{"a":1}}))),
            ("", Err(JsonFault::Syntax)),
            ("{", Err(JsonFault::Syntax)),
            ("{}{}", Err(JsonFault::Syntax)),
            ("{} x", Err(JsonFault::Syntax)),
            ("{'a':1}", Err(JsonFault::Syntax)),
            (r#"{"a":1,}"#, Err(JsonFault::Syntax)),
            (r#"{"a":1e999}"#, Err(JsonFault::Syntax)),
            (r#"{"a":NaN}"#, Err(JsonFault::Syntax)),
            (r#"{"a":"\ud800"}"#, Err(JsonFault::Syntax)),
            ("[1]", Err(JsonFault::NotAnObject)),
            (r#""text""#, Err(JsonFault::NotAnObject)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_object(text.as_bytes()).map(Value::Object), expected, "{text}");
        }
        assert_eq!(parse_object(b"{\"a\":\"\xff\"}"), Err(JsonFault::Syntax));
        assert_eq!(parse_object("\u{feff}{}".as_bytes()), Err(JsonFault::Syntax));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_object(nested(31).as_bytes()).is_ok());
        assert_eq!(parse_object(nested(32).as_bytes()), Err(JsonFault::TooDeep));
        assert_eq!(parse_object(nested(100_000).as_bytes()), Err(JsonFault::TooDeep));
    }

    #[test]
    fn a_claim_path_traverses_objects_only() {
        let Value::Object(claims) = json!({"realm_access":{"roles":["a"]},"https://x.example/roles":["b"],"a.b":1,"list":[{"c":1}]})
        else {
            unreachable!()
        };
        assert_eq!(
            ClaimPath::new(["realm_access", "roles"]).value_in(&claims),
            Some(&json!(["a"]))
        );
        assert_eq!(
            ClaimPath::new(["https://x.example/roles"]).value_in(&claims),
            Some(&json!(["b"]))
        );
        assert_eq!(ClaimPath::new(["a.b"]).value_in(&claims), Some(&json!(1)));
        for path in [
            &["a", "b"][..],
            &["list", "0"],
            &["list", "c"],
            &["realm_access", "roles", "a"],
            &["Realm_access"],
            &[],
        ] {
            assert_eq!(ClaimPath::new(path.iter().copied()).value_in(&claims), None, "{path:?}");
        }
    }

    #[test]
    fn lists_are_parsed_in_every_form() {
        let words =
            |words: &[&str]| Ok(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let cases = [
            (json!("a b\t c"), words(&["a", "b", "c"])),
            (json!(""), words(&[])),
            (json!(["a b", "c"]), words(&["a b", "c"])),
            (json!([]), words(&[])),
            (json!(7), words(&["7"])),
            (json!(null), words(&[])),
            (json!(["a", 7]), Err(NotAList)),
            (json!(["a", null]), Err(NotAList)),
            (json!([["a"]]), Err(NotAList)),
            (json!(1.5), Err(NotAList)),
            (json!(true), Err(NotAList)),
            (json!({"a": true}), Err(NotAList)),
        ];
        for (value, expected) in cases {
            assert_eq!(string_list(&value), expected, "{value}");
        }
    }

    #[test]
    fn an_unverified_email_is_absent() {
        let path = ClaimPath::new(["email"]);
        for (verified, seen) in [
            (json!(true), true),
            (json!("true"), true),
            (json!(null), true),
            (json!(false), false),
            (json!("false"), false),
            (json!(0), false),
        ] {
            let Value::Object(claims) = json!({"email":"a@b.example","email_verified":verified})
            else {
                unreachable!()
            };
            assert_eq!(trusted_claim(&claims, &path).is_some(), seen, "{verified}");
        }
    }
}
