//! What a file may hold, by the JSON Schema of [`File`](super::file::File): every unknown key and
//! every value of the wrong type is found in one walk, where serde would stop at the first.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::value::{list, nearest};

/// The schema of the file, for editors. Without `null`, which TOML does not have, and with each
/// paragraph of a description on one line.
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

/// What a check found.
pub(super) struct Findings {
    /// Keys that do not exist. They are no longer in the tree.
    pub(super) unknown: Vec<Problem>,
    /// Values of the wrong type and keys that are missing: with any of these the tree cannot be
    /// read.
    pub(super) wrong: Vec<Problem>,
}

/// Compares a file with the schema, and takes the keys out that it does not know.
pub(super) fn check(text: &str, root: &mut DeTable<'_>) -> Findings {
    let mut walk = Walk { text, findings: Findings { unknown: Vec::new(), wrong: Vec::new() } };
    walk.section(&SHAPES.file, root, &(0..0), &Place::Root);
    walk.findings
}

/// One kind of value.
enum Shape {
    Any,
    Boolean,
    Integer,
    Number,
    Text,
    List(Box<Shape>),
    /// A table with names of the writer's choice.
    Named(Box<Shape>),
    Section(Section),
    Either(Vec<Shape>),
}

/// A table whose keys are ours.
#[derive(Default)]
struct Section {
    keys: BTreeMap<String, Key>,
    required: Vec<String>,
}

struct Key {
    shape: Shape,
    /// A value that the description gives.
    example: Option<String>,
    /// Compiling refuses it, so that no hint may propose it.
    refused: bool,
}

impl Section {
    /// The keys that a hint may propose.
    fn proposed(&self) -> impl Iterator<Item = (&str, &Key)> {
        self.keys.iter().filter(|(_, key)| !key.refused).map(|(name, key)| (name.as_str(), key))
    }
}

struct Shapes {
    file: Section,
    /// The sections that know a key, as they are written.
    homes: BTreeMap<String, Vec<String>>,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
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
                                refused: description == "Not supported yet.",
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

    /// What is wanted, for a message.
    fn wanted(&self) -> String {
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
            // An integer is a number: nobody needs to read both.
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

    /// Whether a value is of this kind on its outside.
    fn takes(&self, value: &DeValue<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Boolean => value.is_bool(),
            Self::Integer => value.is_integer(),
            Self::Number => value.is_integer() || value.is_float(),
            Self::Text => value.is_str(),
            Self::List(_) => value.is_array(),
            Self::Named(_) | Self::Section(_) => value.is_table(),
            Self::Either(shapes) => shapes.iter().any(|shape| shape.takes(value)),
        }
    }
}

/// Where the walk is, as a chain of stack frames: nothing is allocated for the files that are in
/// order.
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>),
}

impl Place<'_> {
    /// The section as it is written: `[server.tls]`, `[[route]]`.
    fn section(&self) -> String {
        match self {
            Self::Root => "the file".into(),
            Self::Item(Place::Key(Place::Root, name)) => format!("`[[{name}]]`"),
            Self::Item(_) | Self::Key(..) => match self.path() {
                (path, true) => format!("`{path}` of a `[[{}]]`", self.first()),
                (path, false) => format!("`[{path}]`"),
            },
        }
    }

    /// The header of a section here.
    fn header(&self, name: &str, is_list: bool) -> String {
        let (path, in_item) = self.path();
        let mut dotted = if in_item { self.first().to_owned() } else { String::new() };
        for part in [path.as_str(), name].into_iter().filter(|part| !part.is_empty()) {
            if !dotted.is_empty() {
                dotted.push('.');
            }
            dotted.push_str(part);
        }
        if is_list { format!("[[{dotted}]]") } else { format!("[{dotted}]") }
    }

    /// The dotted path, within the item when there is one.
    fn path(&self) -> (String, bool) {
        match self {
            Self::Root => (String::new(), false),
            Self::Item(_) => (String::new(), true),
            Self::Key(outer, name) => {
                let (path, in_item) = outer.path();
                (
                    if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") },
                    in_item,
                )
            }
        }
    }

    fn first(&self) -> &str {
        match self {
            Self::Root => "",
            Self::Key(Place::Root, name) => name,
            Self::Key(outer, _) | Self::Item(outer) => outer.first(),
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Root => "",
            Self::Key(_, name) => name,
            Self::Item(outer) => outer.key(),
        }
    }
}

struct Walk<'t> {
    text: &'t str,
    findings: Findings,
}

impl Walk<'_> {
    fn section(
        &mut self,
        section: &Section,
        table: &mut DeTable<'_>,
        span: &Range<usize>,
        place: &Place,
    ) {
        let mut strangers: Vec<String> = Vec::new();
        for (name, value) in table.iter_mut() {
            if let Some(key) = section.keys.get(name.get_ref().as_ref()) {
                self.value(
                    &key.shape,
                    key.example.as_deref(),
                    value,
                    &name.span(),
                    &Place::Key(place, name.get_ref()),
                );
            } else {
                strangers.push(name.get_ref().to_string());
            }
        }
        for stranger in strangers {
            if let Some((name, value)) = table.remove_entry(stranger.as_str()) {
                self.stranger(section, table, &name, value, place);
            }
        }
        for required in
            section.required.iter().filter(|required| !table.contains_key(required.as_str()))
        {
            let example =
                section.keys.get(required).map(|key| written(required, key)).unwrap_or_default();
            self.findings.wrong.push(
                Problem::error(span.clone(), format!("{} needs `{required}`", place.section()))
                    .help(format!("add, for example, `{example}`")),
            );
        }
    }

    /// A key that does not exist. Where another was probably meant, it is read as that one: it
    /// would otherwise be missing, with complaints about everything that follows from that.
    fn stranger<'d>(
        &mut self,
        section: &Section,
        table: &mut DeTable<'d>,
        name: &Spanned<Cow<'d, str>>,
        mut value: Spanned<DeValue<'d>>,
        place: &Place,
    ) {
        let meant = nearest(name.get_ref(), section.proposed().map(|(known, _)| known));
        self.findings.unknown.push(unknown(self.text, name, meant, section, place));
        let key = meant.and_then(|meant| Some((meant, section.keys.get(meant)?)));
        if let Some((meant, key)) = key
            && !table.contains_key(meant)
            && key.shape.takes(value.get_ref())
        {
            let (span, example) = (name.span(), key.example.as_deref());
            self.value(&key.shape, example, &mut value, &span, &Place::Key(place, meant));
            table.insert(Spanned::new(span, Cow::Owned(meant.to_owned())), value);
        }
    }

    fn value(
        &mut self,
        shape: &Shape,
        example: Option<&str>,
        value: &mut Spanned<DeValue<'_>>,
        name: &Range<usize>,
        place: &Place,
    ) {
        let span = if value.span().is_empty() { name.clone() } else { value.span() };
        if !shape.takes(value.get_ref()) {
            let problem = self.mismatch(shape, example, value.get_ref(), &span, name, place);
            self.findings.wrong.push(problem);
            return;
        }
        match (shape, value.get_mut()) {
            (Shape::Either(shapes), inner) => {
                let chosen =
                    shapes.iter().find(|shape| shape.takes(inner)).expect("`takes` found one");
                self.value(chosen, example, value, name, place);
            }
            (Shape::Section(section), DeValue::Table(table)) => {
                self.section(section, table, &span, place);
            }
            (Shape::Named(shape), DeValue::Table(table)) => {
                self.named(shape, example, table, place);
            }
            (Shape::List(shape), DeValue::Array(items)) => {
                for item in items.iter_mut() {
                    self.value(shape, None, item, name, &Place::Item(place));
                }
            }
            (_, inner) => self.numbers(inner, &span),
        }
    }

    fn named(
        &mut self,
        shape: &Shape,
        example: Option<&str>,
        table: &mut DeTable<'_>,
        place: &Place,
    ) {
        let sections = matches!(shape, Shape::Section(_));
        // `[issuer]` for `[issuer.corp]`: one cause, so one problem, however many keys there are.
        if sections
            && let Some((name, _)) = table
                .iter()
                .filter(|(_, value)| !value.get_ref().is_table())
                .min_by_key(|(name, _)| name.span().start)
        {
            let key = place.key();
            self.findings.wrong.push(
                Problem::error(
                    name.span(),
                    format!("each `{key}` section has a name, and this one has none"),
                )
                .help(format!("write `[{key}.NAME]` above it, with a name of your choice")),
            );
        }
        for (name, value) in
            table.iter_mut().filter(|(_, value)| !sections || value.get_ref().is_table())
        {
            self.value(shape, example, value, &name.span(), &Place::Key(place, name.get_ref()));
        }
    }

    /// Numbers that TOML allows and the gateway cannot hold.
    fn numbers(&mut self, value: &DeValue<'_>, span: &Range<usize>) {
        let too_large = match value {
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).is_err()
            }
            DeValue::Float(float) => {
                !float.as_str().contains("inf")
                    && float.as_str().parse::<f64>().is_ok_and(f64::is_infinite)
            }
            DeValue::Array(items) => {
                return items.iter().for_each(|item| self.numbers(item.get_ref(), &item.span()));
            }
            DeValue::Table(table) => {
                return table
                    .values()
                    .for_each(|value| self.numbers(value.get_ref(), &value.span()));
            }
            _ => false,
        };
        if too_large {
            self.findings.wrong.push(
                Problem::error(span.clone(), "this number is too large")
                    .help("write one that fits in 64 bits"),
            );
        }
    }

    fn mismatch(
        &self,
        shape: &Shape,
        example: Option<&str>,
        value: &DeValue<'_>,
        span: &Range<usize>,
        name: &Range<usize>,
        place: &Place,
    ) -> Problem {
        let key = place.key();
        let found = found(value);
        let wanted = shape.wanted();
        let item = matches!(place, Place::Item(_));
        let subject = if item { format!("an item of `{key}`") } else { format!("`{key}`") };
        let problem =
            Problem::error(span.clone(), format!("{subject} is {found}, and {wanted} is wanted"));
        // What was written, where it is short: it is shown again as it should be.
        let raw = self.text.get(span.clone()).filter(|raw| raw.len() <= 40 && !raw.contains('\n'));
        let assigned =
            |value: &str| if item { format!("`{value}`") } else { format!("`{key} = {value}`") };
        match (shape, value) {
            (Shape::List(inner), DeValue::Table(_)) if matches!(**inner, Shape::Section(_)) => {
                problem.help(format!("write `[[{key}]]`, in two brackets: there can be several"))
            }
            (Shape::Section(_), DeValue::Array(_))
                if matches!(place, Place::Key(Place::Root, _)) =>
            {
                Problem::error(name.clone(), problem.message)
                    .help(format!("write `[{key}]`, in one bracket: there is one"))
            }
            (Shape::List(inner), _) if inner.takes(value) => match raw {
                Some(raw) => problem.help(format!("write {}", assigned(&format!("[{raw}]")))),
                None => problem.help("put it in brackets"),
            },
            (Shape::Boolean, DeValue::String(text)) if matches!(&**text, "true" | "false") => {
                problem.help(format!("write {}, without quotes", assigned(text)))
            }
            (Shape::Integer, DeValue::String(text))
                if text.len() < 19 && text.parse::<i64>().is_ok() =>
            {
                problem.help(format!("write {}, without quotes", assigned(text)))
            }
            (
                Shape::Text,
                DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_),
            ) if example.is_none() => problem.help(format!(
                "put it in quotes: {}",
                assigned(&format!("\"{}\"", raw.unwrap_or("…")))
            )),
            _ => problem.help(format!("for example {}", assigned(&sample(shape, example)))),
        }
    }
}

fn unknown(
    text: &str,
    name: &Spanned<Cow<'_, str>>,
    meant: Option<&str>,
    section: &Section,
    place: &Place,
) -> Problem {
    let written: &str = name.get_ref();
    let shown: String = written.chars().take(60).collect();
    let is_header = is_header(text, name.span().start);
    let message = if is_header {
        format!("unknown section `{}`", place.header(&shown, is_doubled(text, name.span().start)))
    } else {
        format!("unknown key `{shown}` in {}", place.section())
    };
    let problem = Problem::error(name.span(), message);
    // What is proposed is written as it would have to be.
    let proposal = |name: &str, key: &Key| match &key.shape {
        Shape::Section(_) if is_header => place.header(name, false),
        Shape::Named(_) if is_header => place.header(&format!("{name}.NAME"), false),
        Shape::List(item) if is_header && matches!(**item, Shape::Section(_)) => {
            place.header(name, true)
        }
        _ => name.to_owned(),
    };
    if let Some((name, key)) = meant.and_then(|meant| Some((meant, section.keys.get(meant)?))) {
        return problem.help(format!("did you mean `{}`?", proposal(name, key)));
    }
    if let Some(homes) = SHAPES.homes.get(written) {
        return problem.help(format!(
            "`{written}` belongs in {}",
            list(homes.iter().map(|home| format!("`{home}`")), "or")
        ));
    }
    problem.help(format!(
        "{} knows {}",
        place.section(),
        list(section.proposed().map(|(name, key)| format!("`{}`", proposal(name, key))), "and")
    ))
}

/// Whether a name stands in a section's header, such as `[server]`, and not before a `=`.
fn is_header(text: &str, name: usize) -> bool {
    let before = line_before(text, name);
    before.starts_with('[') && !before.contains(['{', ','])
}

/// Whether that header has two brackets.
fn is_doubled(text: &str, name: usize) -> bool {
    line_before(text, name).starts_with("[[")
}

/// The part of a line that is before a place.
fn line_before(text: &str, place: usize) -> &str {
    let before = text.get(..place).unwrap_or_default();
    before.rsplit('\n').next().unwrap_or_default().trim_start().trim_start_matches('\u{feff}')
}

/// Which sections know which key, written as one would write them.
fn find_homes(section: &Section, path: &str, homes: &mut BTreeMap<String, Vec<String>>) {
    for (name, key) in section.proposed() {
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

/// The value that a description names as default or example.
fn example(description: &str) -> Option<String> {
    // A line may end anywhere.
    let description = description.replace('\n', " ");
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

fn written(name: &str, key: &Key) -> String {
    format!("{name} = {}", sample(&key.shape, key.example.as_deref()))
}

/// A value of the kind: the documented one, if there is one.
fn sample(shape: &Shape, example: Option<&str>) -> String {
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

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
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
