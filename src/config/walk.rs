//! Checks a file against its schema ([`shape`](super::shape)). One walk finds every unknown key and
//! every value of the wrong type, where serde would stop at the first.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::shape::{Key, SHAPES, Section, Shape, sample, written};
use super::value::{list, nearest};

/// The result of a check.
pub(super) struct Findings {
    /// Unknown keys. They are removed from the tree.
    pub(super) unknown: Vec<Problem>,
    /// Values of the wrong type and missing keys: with any of these, the tree cannot be
    /// deserialized.
    pub(super) wrong: Vec<Problem>,
}

/// Compares a file with the schema, and removes unknown keys.
pub(super) fn check(text: &str, root: &mut DeTable<'_>) -> Findings {
    let mut walk = Walk { text, findings: Findings { unknown: Vec::new(), wrong: Vec::new() } };
    walk.section(&SHAPES.file, root, &(0..0), &Place::Root);
    walk.findings
}

/// The position of the walk, as a chain of stack frames, so that valid files need no allocation.
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

    /// The header of a section at this position.
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

    /// The dotted path, and whether it is relative to a list item.
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

    /// Whether a later version will know this key here. It is refused rather than ignored: it says
    /// how the site is to be protected.
    fn is_planned(&self, key: &str) -> bool {
        match self {
            Self::Root => key == "trace",
            Self::Item(Place::Key(Place::Root, "route")) => {
                matches!(key, "resource" | "tools" | "max_message")
            }
            Self::Item(_) | Self::Key(..) => false,
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
                self.unknown_key(section, table, &name, value, place);
            }
        }
        for required in
            section.required.iter().filter(|required| !table.contains_key(required.as_str()))
        {
            let example =
                section.keys.get(required).map(|key| written(required, key)).unwrap_or_default();
            self.findings.wrong.push(
                Problem::error(span.clone(), format!("{} needs `{required}`", place.section()))
                    .help(format!("for example, add `{example}`")),
            );
        }
    }

    /// Reports an unknown key. If another key was probably meant, the value is checked as that one,
    /// which would otherwise be reported as missing, along with everything that follows from that.
    fn unknown_key<'d>(
        &mut self,
        section: &Section,
        table: &mut DeTable<'d>,
        name: &Spanned<Cow<'d, str>>,
        mut value: Spanned<DeValue<'d>>,
        place: &Place,
    ) {
        if place.is_planned(name.get_ref()) {
            let key = name.get_ref();
            let what = if matches!(place, Place::Root) {
                format!("`[{key}]`")
            } else {
                format!("`{key}` in {}", place.section())
            };
            let problem = Problem::error(name.span(), format!("{what} is not supported yet"));
            self.findings.unknown.push(problem.help("remove it"));
            return;
        }
        let meant = nearest(name.get_ref(), section.keys.keys().map(String::as_str));
        self.findings.unknown.push(unknown(self.text, name, meant, section, place));
        let key = meant.and_then(|meant| Some((meant, section.keys.get(meant)?)));
        if let Some((meant, key)) = key
            && !table.contains_key(meant)
            && key.shape.accepts(value.get_ref())
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
        if !shape.accepts(value.get_ref()) {
            let problem = self.mismatch(shape, example, value.get_ref(), &span, name, place);
            self.findings.wrong.push(problem);
            return;
        }
        match (shape, value.get_mut()) {
            (Shape::Either(shapes), inner) => {
                let chosen =
                    shapes.iter().find(|shape| shape.accepts(inner)).expect("`takes` found one");
                self.value(chosen, example, value, name, place);
            }
            (Shape::Section(section), DeValue::Table(table)) => {
                self.section(section, table, &span, place);
            }
            (Shape::Named(shape), DeValue::Table(table)) => {
                self.named_sections(shape, example, table, place);
            }
            (Shape::List(shape), DeValue::Array(items)) => {
                for item in items.iter_mut() {
                    self.value(shape, None, item, name, &Place::Item(place));
                }
            }
            (_, inner) => self.check_numbers(inner, &span),
        }
    }

    fn named_sections(
        &mut self,
        shape: &Shape,
        example: Option<&str>,
        table: &mut DeTable<'_>,
        place: &Place,
    ) {
        let sections = matches!(shape, Shape::Section(_));
        // `[issuer]` instead of `[issuer.corp]` is one mistake and so one problem, however many
        // keys there are.
        if sections
            && let Some((name, _)) = table
                .iter()
                .filter(|(_, value)| !value.get_ref().is_table())
                .min_by_key(|(name, _)| name.span().start)
        {
            let key = place.key();
            self.findings.wrong.push(
                Problem::error(name.span(), format!("`[{key}]` needs a name"))
                    .help(format!("write `[{key}.NAME]`, with a name of your choice")),
            );
        }
        for (name, value) in
            table.iter_mut().filter(|(_, value)| !sections || value.get_ref().is_table())
        {
            self.value(shape, example, value, &name.span(), &Place::Key(place, name.get_ref()));
        }
    }

    /// Checks for numbers that TOML allows and the gateway cannot represent.
    fn check_numbers(&mut self, value: &DeValue<'_>, span: &Range<usize>) {
        let too_large = match value {
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).is_err()
            }
            DeValue::Float(float) => {
                !float.as_str().contains("inf")
                    && float.as_str().parse::<f64>().is_ok_and(f64::is_infinite)
            }
            DeValue::Array(items) => {
                return items
                    .iter()
                    .for_each(|item| self.check_numbers(item.get_ref(), &item.span()));
            }
            DeValue::Table(table) => {
                return table
                    .values()
                    .for_each(|value| self.check_numbers(value.get_ref(), &value.span()));
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
            Problem::error(span.clone(), format!("{subject}: expected {wanted}, found {found}"));
        // The value as it was written, if it is short, to show how to correct it.
        let raw = self.text.get(span.clone()).filter(|raw| raw.len() <= 40 && !raw.contains('\n'));
        let assigned =
            |value: &str| if item { format!("`{value}`") } else { format!("`{key} = {value}`") };
        match (shape, value) {
            (Shape::List(inner), DeValue::Table(_)) if matches!(**inner, Shape::Section(_)) => {
                problem.help(format!("write `[[{key}]]`, with two brackets: there can be several"))
            }
            (Shape::Section(_), DeValue::Array(_))
                if matches!(place, Place::Key(Place::Root, _)) =>
            {
                Problem::error(name.clone(), problem.message)
                    .help(format!("write `[{key}]`, with one bracket: there is only one"))
            }
            (Shape::List(inner), _) if inner.accepts(value) => match raw {
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
    // A suggestion is written as it would have to be.
    let proposal = |name: &str, key: &Key| match &key.shape {
        Shape::Section(_) if is_header => place.header(name, false),
        Shape::Named(named) if is_header => match **named {
            Shape::Section(_) => place.header(&format!("{name}.NAME"), false),
            _ => place.header(name, false),
        },
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
        list(section.keys.iter().map(|(name, key)| format!("`{}`", proposal(name, key))), "and")
    ))
}

/// Whether a name is in a section's header, such as `[server]`, and not before a `=`.
fn is_header(text: &str, name: usize) -> bool {
    let before = line_before(text, name);
    before.starts_with('[') && !before.contains(['{', ','])
}

/// Whether that header has two brackets.
fn is_doubled(text: &str, name: usize) -> bool {
    line_before(text, name).starts_with("[[")
}

/// The part of a line before a position.
fn line_before(text: &str, place: usize) -> &str {
    let before = text.get(..place).unwrap_or_default();
    before.rsplit('\n').next().unwrap_or_default().trim_start().trim_start_matches('\u{feff}')
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
