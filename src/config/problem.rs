//! Problems of a configuration file, and how they are shown: place, caret, help.
//!
//! Secrets are never shown: everything that is drawn or logged here is masked first.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::json;

use super::mask;

/// An error or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether the file can be used.
    pub severity: Severity,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// The byte range in the file. `None` if the problem concerns the file as a whole.
    pub span: Option<Range<usize>>,
    /// Other relevant places, each with a label.
    pub related: Vec<(Range<usize>, String)>,
    /// How to fix it.
    pub help: Option<String>,
    label: Option<Box<str>>,
    /// Whether `check` reports it as an error although the file is used.
    pub fails_check: bool,
    /// Whether it may be over at the next start, although the file is the same.
    pub may_pass: bool,
}

/// The severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is rejected.
    Error,
    /// The file is used.
    Warning,
}

impl Severity {
    /// The word for it: `error` or `warning`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl Problem {
    /// Creates an error, for which the file is rejected.
    pub fn error(span: impl Into<Option<Range<usize>>>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            span: span.into(),
            related: Vec::new(),
            help: None,
            label: None,
            fails_check: false,
            may_pass: false,
        }
    }

    /// Creates a warning; the file is used nevertheless.
    pub fn warning(span: impl Into<Option<Range<usize>>>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// Makes `check` report this warning as an error.
    #[must_use]
    pub fn fails_check(self) -> Self {
        Self { fails_check: true, ..self }
    }

    /// Says that a later start may succeed with the same file.
    #[must_use]
    pub fn may_pass(self) -> Self {
        Self { may_pass: true, ..self }
    }

    /// Sets the label next to the caret.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.label = Some(text.into().into_boxed_str());
        self
    }

    /// Adds another relevant place.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, text: impl Into<String>) -> Self {
        self.related.push((span, text.into()));
        self
    }

    /// Sets the help text.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }
}

/// The text of a configuration file. Clones share it.
#[derive(Clone)]
pub struct Source {
    path: PathBuf,
    text: Arc<str>,
}

impl Source {
    /// Creates a source from a file's path, as it is to be shown, and its text.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text, which may contain secrets.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that relative paths refer to.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// The line and column of a byte, both starting at 1; the column is in characters.
    pub fn location(&self, offset: usize) -> (usize, usize) {
        Lines::new(&self.text).location(offset)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Source")
            .field("path", &self.path)
            .field("bytes", &self.text.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for Problem {
    /// Message and help on one line, for a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "; {help}"))
    }
}

/// All problems of a file.
#[derive(Debug, Clone)]
pub struct Problems {
    /// The file. `None` if the problems do not belong to one file.
    pub source: Option<Source>,
    /// The problems, in any order. They are shown in the order of their places.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Collects the problems of a file.
    pub fn new(source: Source, list: Vec<Problem>) -> Self {
        Self { source: Some(source), list }
    }

    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether a later start may succeed with the same file.
    pub fn may_pass(&self) -> bool {
        let mut errors = self.list.iter().filter(|problem| problem.severity == Severity::Error);
        errors.all(|problem| problem.may_pass)
    }

    /// Draws them for a terminal, in the order of their places, with a count in the last line. Ends
    /// with a newline.
    pub fn draw(&self, colour: bool) -> String {
        let painter = Painter::new(self.source.as_ref(), colour);
        let mut drawn = String::new();
        for problem in self.in_order().take(MAX_SHOWN) {
            drawn.push_str(&painter.draw(problem));
            drawn.push_str("\n\n");
        }
        if let Some(more) = self.list.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
            drawn.extend(["… and ", &more.to_string(), " more\n\n"]);
        }
        drawn.push_str(&painter.title(self.worst(), &self.count()));
        drawn.push('\n');
        drawn
    }

    /// The same for a log event: a list of `{severity, message, file, line, column, help}`, in the
    /// order of their places.
    pub fn to_json(&self) -> serde_json::Value {
        let painter = Painter::new(self.source.as_ref(), false);
        let file = self.source.as_ref().map(|source| source.path.display().to_string());
        let mut list: Vec<serde_json::Value> = self
            .in_order()
            .take(MAX_SHOWN)
            .map(|problem| {
                let place = problem
                    .span
                    .as_ref()
                    .filter(|_| file.is_some())
                    .map(|span| painter.lines.location(span.start));
                json!({
                    "severity": problem.severity.word(),
                    "message": painter.mask(&problem.message),
                    "file": file,
                    "line": place.map(|(line, _)| line),
                    "column": place.map(|(_, column)| column),
                    "help": problem.help.as_ref().map(|help| painter.mask(help)),
                })
            })
            .collect();
        if let Some(more) = self.list.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
            let severity = self.worst().word();
            list.push(json!({ "severity": severity, "message": format!("… and {more} more"), "file": file, "line": null, "column": null, "help": null }));
        }
        list.into()
    }

    fn in_order(&self) -> impl Iterator<Item = &Problem> {
        let mut ordered: Vec<&Problem> = self.list.iter().collect();
        ordered.sort_by_key(|problem| problem.span.as_ref().map(|span| span.start));
        ordered.into_iter()
    }

    fn worst(&self) -> Severity {
        if self.has_errors() { Severity::Error } else { Severity::Warning }
    }

    fn count(&self) -> String {
        let errors = self.list.iter().filter(|problem| problem.severity == Severity::Error).count();
        let counted = [(errors, "problem"), (self.list.len() - errors, "warning")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}{}", if count == 1 { "" } else { "s" }))
            .collect::<Vec<_>>();
        let counted =
            if counted.is_empty() { "no problems".to_owned() } else { counted.join(", ") };
        match &self.source {
            Some(source) => format!("{}: {counted}", source.path.display()),
            None => counted,
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.draw(false))
    }
}

impl std::error::Error for Problems {}

/// How many problems are shown. A longer list usually has one cause.
const MAX_SHOWN: usize = 100;

/// Places that are more lines apart than this are drawn separately.
const MAX_GAP_LINES: usize = 200;

/// The maximum number of characters that are drawn before and after the place on a line.
const MAX_CONTEXT_CHARS: usize = 400;

/// What drawing needs to know about a file, computed once for all problems.
struct Painter<'a> {
    path: String,
    lines: Lines<'a>,
    secrets: Vec<Range<usize>>,
    /// The secrets without duplicates, longer ones first, since one may be the beginning of
    /// another. The shortest ones are omitted because they are parts of words.
    secret_texts: Vec<&'a str>,
    renderer: Renderer,
}

impl<'a> Painter<'a> {
    fn new(source: Option<&'a Source>, colour: bool) -> Self {
        let text = source.map_or("", |source| source.text());
        let secrets = mask::secrets(text);
        let distinct: BTreeSet<&str> = secrets
            .iter()
            .map(|secret| &text[secret.clone()])
            .filter(|secret| secret.len() >= 4)
            .collect();
        let mut secret_texts: Vec<&str> = distinct.into_iter().collect();
        secret_texts.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self {
            path: source.map(|source| source.path.display().to_string()).unwrap_or_default(),
            lines: Lines::new(text),
            secret_texts,
            secrets,
            renderer: if colour { Renderer::styled().hyperlink(false) } else { Renderer::plain() },
        }
    }

    fn title(&self, severity: Severity, text: &str) -> String {
        self.renderer.render(&[Group::with_title(level(severity).primary_title(text.to_owned()))])
    }

    fn draw(&self, problem: &Problem) -> String {
        let mut group =
            Group::with_title(level(problem.severity).primary_title(self.mask(&problem.message)));
        if let Some(span) = problem.span.clone().filter(|_| !self.lines.text.is_empty()) {
            let label = problem.label.as_deref().map(|label| self.mask(label));
            let mut marks = vec![self.mark(span, AnnotationKind::Primary, label)];
            marks.extend(problem.related.iter().map(|(span, text)| {
                self.mark(span.clone(), AnnotationKind::Context, Some(self.mask(text)))
            }));
            group = self.snippets(group, marks);
        } else if !self.path.is_empty() {
            group = group.element(Origin::path(self.path.clone()));
        }
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(self.mask(help)));
        }
        let drawn = self.renderer.render(&[group]);
        // Blank lines of a help text would be padded.
        drawn.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    /// Draws the primary place first, with the places near it, then the others.
    fn snippets(&self, mut group: Group<'a>, marks: Vec<Mark>) -> Group<'a> {
        let mut left = marks;
        while !left.is_empty() {
            let (mut first, mut last) = (left[0].line, left[0].line);
            let mut near: Vec<Mark> = Vec::new();
            let mut far: Vec<Mark> = Vec::new();
            for mark in left {
                if mark.line + MAX_GAP_LINES >= last && mark.line <= first + MAX_GAP_LINES {
                    (first, last) = (first.min(mark.line), last.max(mark.line));
                    near.push(mark);
                } else {
                    far.push(mark);
                }
            }
            group = self.snippet(group, &near, first..=last);
            left = far;
        }
        group
    }

    fn snippet(
        &self,
        group: Group<'a>,
        marks: &[Mark],
        lines: std::ops::RangeInclusive<usize>,
    ) -> Group<'a> {
        let first = *lines.start();
        let mut text = String::new();
        let mut spans: Vec<Option<Range<usize>>> = vec![None; marks.len()];
        let mut cut = false;
        for line in lines {
            let whole = self.lines.range(line);
            let here: Vec<usize> =
                (0..marks.len()).filter(|index| marks[*index].line == line).collect();
            // A line without a mark is folded, unless it is between two lines that have one.
            let shown = match here.first() {
                Some(index) => self.lines.window(whole.clone(), &marks[*index].span),
                None => self.lines.window(whole.clone(), &(whole.start..whole.start)),
            };
            cut |= shown.start > whole.start && here.first() == Some(&0);
            let start = text.len();
            text.push_str(&mask::masked(
                &self.lines.text[shown.clone()],
                shown.start,
                &self.secrets,
            ));
            for index in here {
                let place = |offset: usize| {
                    let offset = offset.clamp(shown.start, shown.end);
                    // A masked character may be shorter than the original.
                    start
                        + mask::masked(
                            &self.lines.text[shown.start..offset],
                            shown.start,
                            &self.secrets,
                        )
                        .len()
                };
                spans[index] = Some(place(marks[index].span.start)..place(marks[index].span.end));
            }
            text.push('\n');
        }
        let mut group = group;
        let mut snippet = Snippet::source(text).line_start(first);
        if cut {
            // The library would count the column from the cut.
            let (line, column) = self.lines.location(marks[0].span.start);
            group = group.element(Origin::path(self.path.clone()).line(line).char_column(column));
        } else {
            snippet = snippet.path(self.path.clone());
        }
        group.element(
            snippet.annotations(
                marks.iter().zip(spans).filter_map(|(mark, span)| {
                    Some(mark.kind.span(span?).label(mark.label.clone()))
                }),
            ),
        )
    }

    /// A place on one line. A long table is marked at its first line.
    fn mark(&self, span: Range<usize>, kind: AnnotationKind, label: Option<String>) -> Mark {
        let start = self.lines.floor(span.start);
        let line = self.lines.line(start);
        let end = self.lines.floor(span.end).clamp(start, self.lines.range(line).end.max(start));
        Mark { line, span: start..end, kind, label }
    }

    /// Masks a message, which may quote the file.
    fn mask(&self, text: &str) -> String {
        let mut shown = text.to_owned();
        for secret in &self.secret_texts {
            if shown.contains(secret) {
                shown = shown.replace(secret, &"*".repeat(secret.chars().count()));
            }
        }
        let found = mask::secrets_in_urls(&shown);
        mask::masked(&shown, 0, &found)
    }
}

struct Mark {
    line: usize,
    span: Range<usize>,
    kind: AnnotationKind,
    label: Option<String>,
}

fn level(severity: Severity) -> Level<'static> {
    match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    }
}

/// The starts of the lines of a text. Lines count from 1.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(
                text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1),
            )
            .collect();
        Self { text, starts }
    }

    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The bytes of a line, without the line ending.
    fn range(&self, line: usize) -> Range<usize> {
        let start = self.starts[line - 1];
        let end = self.starts.get(line).map_or(self.text.len(), |next| next - 1);
        let end = if end > start && self.text.as_bytes()[end - 1] == b'\r' { end - 1 } else { end };
        start..end
    }

    /// The part of a line that is drawn: all of it, or the part around the place.
    fn window(&self, line: Range<usize>, place: &Range<usize>) -> Range<usize> {
        if line.len() <= 2 * MAX_CONTEXT_CHARS {
            return line;
        }
        let start = self.floor(place.start.saturating_sub(MAX_CONTEXT_CHARS).max(line.start));
        start..self.floor((place.start + MAX_CONTEXT_CHARS).min(line.end))
    }

    fn location(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.line(offset);
        (line, self.text[self.starts[line - 1]..offset].chars().count() + 1)
    }

    /// The start of the character at this position.
    fn floor(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place of a text, or of its nth occurrence.
    fn place(text: &str, wanted: &str, nth: usize) -> Range<usize> {
        let (start, found) =
            text.match_indices(wanted).nth(nth).expect("the test names a text that is there");
        start..start + found.len()
    }

    fn draw(text: &str, list: Vec<Problem>) -> String {
        Problems::new(Source::new("gateway.toml", text), list).draw(false)
    }

    #[test]
    fn a_problem_is_printed_with_its_related_places() {
        let text = "\n\n\n[[route]]\npath = \"/reports/*\"\nupstream = \"a\"\n\n[[route]]\npath = \"/reports/*\"\nupstream = \"b\"\n";
        let problem =
            Problem::error(place(text, "\"/reports/*\"", 1), "two routes match the same requests")
                .label("this route can never be chosen")
                .related(place(text, "\"/reports/*\"", 0), "already taken here")
                .help("give one of them a `host`, or a longer path");
        insta::assert_snapshot!(draw(text, vec![problem]), @r#"
        error: two routes match the same requests
         --> gateway.toml:9:8
          |
        5 | path = "/reports/*"
          |        ------------ already taken here
        ...
        9 | path = "/reports/*"
          |        ^^^^^^^^^^^^ this route can never be chosen
          |
          = help: give one of them a `host`, or a longer path

        error: gateway.toml: 1 problem
        "#);
    }

    #[test]
    fn problems_are_ordered_and_counted() {
        let text = "a = 1\nb = 2\n";
        let list = vec![
            Problem::error(place(text, "2", 0), "second"),
            Problem::warning(place(text, "1", 0), "first"),
            Problem::error(None, "whole"),
        ];
        insta::assert_snapshot!(draw(text, list), @r"
        error: whole
        --> gateway.toml

        warning: first
         --> gateway.toml:1:5
          |
        1 | a = 1
          |     ^

        error: second
         --> gateway.toml:2:5
          |
        2 | b = 2
          |     ^

        error: gateway.toml: 2 problems, 1 warning
        ");
    }

    #[test]
    fn distant_places_are_printed_separately() {
        let text = format!("a = 1\n{}b = 2\n", "#\n".repeat(1000));
        let problem =
            Problem::error(place(&text, "2", 0), "taken").related(place(&text, "1", 0), "here");
        insta::assert_snapshot!(draw(&text, vec![problem]), @r"
        error: taken
            --> gateway.toml:1002:5
             |
        1002 | b = 2
             |     ^
             |
            ::: gateway.toml:1:5
             |
           1 | a = 1
             |     - here

        error: gateway.toml: 1 problem
        ");
    }

    #[test]
    fn the_column_in_a_long_line_is_correct() {
        let text = format!("a = [{}1]\n", "0, ".repeat(1000));
        let drawn = draw(&text, vec![Problem::error(place(&text, "1", 0), "odd")]);
        assert!(drawn.contains("--> gateway.toml:1:3006\n"), "{drawn}");
        assert!(drawn.len() < 1000, "{drawn}");
    }

    #[test]
    fn any_span_can_be_printed() {
        let text = "näme = \"ü\"\r\n[x]\r\n";
        for start in 0..=text.len() + 2 {
            for end in start..=text.len() + 2 {
                let drawn = draw(text, vec![Problem::error(start..end, "here")]);
                assert!(
                    drawn.starts_with("error: here\n --> gateway.toml:"),
                    "{start}..{end}: {drawn}"
                );
            }
        }
        assert!(draw("", vec![Problem::error(0..0, "here")]).contains("gateway.toml"));
    }

    #[test]
    fn secrets_are_masked_in_every_output() {
        let text = "[issuer.a]\nsecret = \"hünter2hunter2\"\nissuer = \"https://u:pässword@h/\"\n";
        let problem = Problem::error(
            place(text, "\"https://u:pässword@h/\"", 0),
            "`hünter2hunter2` and https://u:pässword@h/ are wrong",
        )
        .label("hünter2hunter2")
        .related(place(text, "\"hünter2hunter2\"", 0), "hünter2hunter2")
        .help("postgres://u:pw@h");
        let problems = Problems::new(Source::new("gateway.toml", text), vec![problem]);
        insta::assert_snapshot!(problems.draw(false), @r#"
        error: `**************` and https://u:********@h/ are wrong
         --> gateway.toml:3:10
          |
        2 | secret = "**************"
          |          ---------------- **************
        3 | issuer = "https://u:********@h/"
          |          ^^^^^^^^^^^^^^^^^^^^^^^ **************
          |
          = help: postgres://u:**@h

        error: gateway.toml: 1 problem
        "#);
        let json = problems.to_json().to_string();
        for shown in
            [problems.draw(true), problems.to_string(), json, format!("{:?}", problems.source)]
        {
            assert!(
                !shown.contains("hünter2")
                    && !shown.contains("pässword")
                    && !shown.contains(":pw@"),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_log_event_has_the_location() {
        let text = "a = 1\nbä = 2\n";
        let problem = Problem::error(place(text, "2", 0), "odd").help("make it even");
        let json = Problems::new(Source::new("gateway.toml", text), vec![problem]).to_json();
        let wanted = json!([{
            "severity": "error", "message": "odd", "file": "gateway.toml", "line": 2, "column": 6, "help": "make it even",
        }]);
        assert_eq!(json, wanted);
    }

    #[test]
    fn at_most_a_hundred_problems_are_printed() {
        let text = "a = 1\n".repeat(5000);
        let list: Vec<Problem> =
            (0..5000).map(|line| Problem::error(line * 6..line * 6 + 1, "odd")).collect();
        let problems = Problems::new(Source::new("gateway.toml", text), list);
        let drawn = problems.draw(false);
        assert!(
            drawn.ends_with("… and 4900 more\n\nerror: gateway.toml: 5000 problems\n"),
            "{drawn}"
        );
        assert_eq!(drawn.matches("-->").count(), 100);
        assert_eq!(problems.to_json().as_array().map(Vec::len), Some(101));
    }

    #[test]
    fn colours_are_optional() {
        let problems = Problems::new(
            Source::new("gateway.toml", "a = 1\n"),
            vec![Problem::warning(0..1, "odd")],
        );
        assert!(problems.draw(true).contains('\u{1b}') && !problems.draw(false).contains('\u{1b}'));
        assert!(!problems.has_errors());
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        for (path, folder) in [
            ("gateway.toml", "."),
            ("/etc/portcullis/gateway.toml", "/etc/portcullis"),
            ("a/b.toml", "a"),
        ] {
            assert_eq!(Source::new(path, "").folder(), Path::new(folder), "{path}");
        }
    }
}
