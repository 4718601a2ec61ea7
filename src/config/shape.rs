//! What a file may contain, derived from the JSON Schema of [`File`](super::file::File).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use toml::de::DeValue;

use super::value::list;

/// The schema of the file, for editors. It has no `null`, which TOML does not have, and each
/// paragraph of a description is on one line.
pub(super) fn schema() -> Value {
    let mut schema =
        serde_json::to_value(schemars::schema_for!(super::file::File)).expect("a schema is JSON");
    tidy(&mut schema);
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("title".into(), "Portcullis configuration".into());
        schema.insert(
            "description".into(),
            "gateway.toml: which requests go where, and who may make them.".into(),
        );
    }
    schema
}

/// The kind of a value.
pub(super) enum Shape {
    Any,
    Boolean,
    Integer,
    Number,
    Text,
    List(Box<Shape>),
    /// A table with names that the author chooses.
    Named(Box<Shape>),
    Section(Section),
    Either(Vec<Shape>),
}

/// A table with fixed keys.
#[derive(Default)]
pub(super) struct Section {
    pub(super) keys: BTreeMap<String, Key>,
    pub(super) required: Vec<String>,
}

pub(super) struct Key {
    pub(super) shape: Shape,
    /// A value from the description.
    pub(super) example: Option<String>,
}

pub(super) struct Shapes {
    pub(super) file: Section,
    /// The sections that know a key, as they are written.
    pub(super) homes: BTreeMap<String, Vec<String>>,
}

pub(super) static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let schema = schema();
    let Shape::Section(file) = Shape::new(&schema, &schema["$defs"]) else {
        unreachable!("the file is a table")
    };
    let mut homes = BTreeMap::new();
    find_homes(&file, "", &mut homes);
    Shapes { file, homes }
});

impl Shape {
    fn new(schema: &Value, definitions: &Value) -> Self {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or_default();
            return Self::new(&definitions[name], definitions);
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            let mut shapes: Vec<Self> =
                choices.iter().map(|choice| Self::new(choice, definitions)).collect();
            return if shapes.len() == 1 { shapes.remove(0) } else { Self::Either(shapes) };
        }
        match schema["type"].as_str() {
            Some("boolean") => Self::Boolean,
            Some("integer") => Self::Integer,
            Some("number") => Self::Number,
            Some("string") => Self::Text,
            Some("array") => Self::List(Box::new(Self::new(&schema["items"], definitions))),
            Some("object") => match schema["properties"].as_object() {
                Some(properties) => Self::Section(Section {
                    keys: properties
                        .iter()
                        .map(|(name, schema)| {
                            let description = schema["description"].as_str().unwrap_or_default();
                            let key = Key {
                                shape: Self::new(schema, definitions),
                                example: example(description),
                            };
                            (name.clone(), key)
                        })
                        .collect(),
                    required: schema["required"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect(),
                }),
                None => {
                    Self::Named(Box::new(Self::new(&schema["additionalProperties"], definitions)))
                }
            },
            _ => Self::Any,
        }
    }

    /// The expected kind, for a message.
    pub(super) fn wanted(&self) -> String {
        match self {
            Self::Any => "any value".into(),
            Self::Boolean => "`true` or `false`".into(),
            Self::Integer => "a whole number".into(),
            Self::Number => "a number".into(),
            Self::Text => "a string".into(),
            Self::List(item) => match &**item {
                Self::Text => "a list of strings".into(),
                Self::Section(_) => "a list of sections".into(),
                _ => "a list".into(),
            },
            Self::Named(_) | Self::Section(_) => "a table".into(),
            // An integer is a number, so only the number is mentioned.
            Self::Either(shapes) => {
                let number = shapes.iter().any(|shape| matches!(shape, Self::Number));
                list(
                    shapes
                        .iter()
                        .filter(|shape| !(number && matches!(shape, Self::Integer)))
                        .map(Self::wanted),
                    "or",
                )
            }
        }
    }

    /// Whether a value is of this kind, without looking inside.
    pub(super) fn accepts(&self, value: &DeValue<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Boolean => value.is_bool(),
            Self::Integer => value.is_integer(),
            Self::Number => value.is_integer() || value.is_float(),
            Self::Text => value.is_str(),
            Self::List(_) => value.is_array(),
            Self::Named(_) | Self::Section(_) => value.is_table(),
            Self::Either(shapes) => shapes.iter().any(|shape| shape.accepts(value)),
        }
    }
}

/// Collects which sections know which key, as they are written.
fn find_homes(section: &Section, path: &str, homes: &mut BTreeMap<String, Vec<String>>) {
    for (name, key) in &section.keys {
        if !path.is_empty() {
            homes.entry(name.to_owned()).or_default().push(path.to_owned());
        }
        let inner = path.trim_matches(['[', ']']);
        let inner = if inner.is_empty() { name.to_owned() } else { format!("{inner}.{name}") };
        match &key.shape {
            Shape::Section(section) => find_homes(section, &format!("[{inner}]"), homes),
            Shape::Named(named) => {
                if let Shape::Section(section) = &**named {
                    find_homes(section, &format!("[{inner}.NAME]"), homes);
                }
            }
            Shape::List(item) => {
                if let Shape::Section(section) = &**item {
                    find_homes(section, &format!("[[{inner}]]"), homes);
                }
            }
            _ => {}
        }
    }
}

/// The value that a description gives as default or example.
fn example(description: &str) -> Option<String> {
    let (_, rest) =
        description.split_once("Default ").or_else(|| description.split_once("For example "))?;
    match rest.strip_prefix('`') {
        Some(quoted) => quoted.split_once('`').map(|(value, _)| value.to_owned()),
        None => rest
            .split([' ', '.', ';', ',', ':'])
            .next()
            .filter(|word| word.parse::<i64>().is_ok() || matches!(*word, "true" | "false"))
            .map(str::to_owned),
    }
}

pub(super) fn written(name: &str, key: &Key) -> String {
    format!("{name} = {}", sample(&key.shape, key.example.as_deref()))
}

/// A value of this kind: the documented one, if there is one.
pub(super) fn sample(shape: &Shape, example: Option<&str>) -> String {
    match (shape, example) {
        (
            Shape::Boolean | Shape::Integer | Shape::Number | Shape::Text | Shape::Either(_),
            Some(example),
        ) => example.to_owned(),
        (Shape::Boolean, None) => "true".into(),
        (Shape::Integer | Shape::Number, None) => "10".into(),
        (Shape::Any | Shape::Text, _) => "\"…\"".into(),
        (Shape::List(item), _) => format!("[{}]", sample(item, None)),
        (Shape::Named(_) | Shape::Section(_), _) => "{ … }".into(),
        (Shape::Either(shapes), None) => match shapes.iter().find_map(|shape| match shape {
            Shape::Section(section) => section.keys.keys().next_back(),
            _ => None,
        }) {
            Some(key) => format!("{{ {key} = \"…\" }}"),
            None => "\"…\"".into(),
        },
    }
}

fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    object.extend(only);
                }
            }
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                let paragraphs: Vec<_> =
                    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            object.values_mut().for_each(tidy);
        }
        _ => {}
    }
}
