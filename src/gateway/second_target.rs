//! Second targets: what a request names in `Destination` and in the tags of `If`, besides its own
//! target (RFC 4918 §10.3, §10.4).
//!
//! An application writes to the one and compares the state of the others, so each is parsed like
//! the first target, has a route of its own, and is decided for the same caller. The fields that
//! the client sent are always removed; what is sent is written from the targets that were decided.

use std::ops::Range;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::headers::single_value;
use super::route::{Destination, NoRoute, Route, RouteTable};
use super::target::{Ambiguity, Target, same_authority, without_final_dot};
use super::token_names::TokenNames;
use crate::reason::Reason;

/// The destination of COPY and MOVE.
pub const DESTINATION: HeaderName = HeaderName::from_static("destination");
/// Conditions on the state of resources.
pub const IF: HeaderName = HeaderName::from_static("if");

/// Whether it is one of the two. Each field of each request is asked about, so nothing is hashed.
fn names_target(name: &HeaderName) -> bool {
    matches!(name.as_str(), "destination" | "if")
}

/// The second targets of a request.
#[derive(Debug, Default)]
pub struct SecondTargets<'s> {
    targets: Vec<SecondTarget<'s>>,
    /// The value of `If`, and where each of its tags is: its target comes after `Destination`.
    conditions: Option<(HeaderValue, Vec<Range<usize>>)>,
}

/// A target that a header field names.
#[derive(Debug)]
pub struct SecondTarget<'s> {
    field: HeaderName,
    method: Method,
    target: Target,
    route: &'s Route,
}

/// A second target that is not one, or that no route to the same upstream takes.
#[derive(Debug, thiserror::Error)]
#[error("`{field}`: {fault}")]
pub struct NoSecondTarget {
    field: HeaderName,
    fault: Fault,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Ambiguous(#[from] Ambiguity),
    /// Repeated, or not written as RFC 4918 says.
    #[error("the field is malformed")]
    Malformed,
    #[error("there are more than {MOST_TAGS} tags")]
    TooMany,
    #[error("{0}")]
    NoRoute(#[from] NoRoute),
    #[error("route `{0}` leads to another upstream")]
    OtherUpstream(Arc<str>),
}

impl NoSecondTarget {
    /// The reason of the refusal.
    pub fn reason(&self) -> Reason {
        match self.fault {
            Fault::Ambiguous(_)
            | Fault::Malformed
            | Fault::TooMany
            | Fault::NoRoute(NoRoute::Ambiguous(_) | NoRoute::NotPermitted(..)) => {
                Reason::TargetAmbiguous
            }
            Fault::NoRoute(
                NoRoute::NotFound | NoRoute::Method { .. } | NoRoute::OtherListener(..),
            )
            | Fault::OtherUpstream(_) => Reason::DestinationRefused,
        }
    }
}

impl<'s> SecondTargets<'s> {
    /// Finds the second targets of a request whose target is `first` and whose route is `route`.
    /// `None`: there are none, as in nearly every request, or no application would read them.
    ///
    /// # Errors
    /// [`NoSecondTarget`].
    pub(super) fn resolve(
        routes: &'s RouteTable,
        route: &Route,
        headers: &HeaderMap,
        first: &Target,
    ) -> Result<Option<Box<Self>>, NoSecondTarget> {
        let application = &route.destination;
        let is_read = matches!(application, Destination::Upstream(_) | Destination::External);
        if !is_read || !headers.keys().any(names_target) {
            return Ok(None);
        }
        let mut found = Self::default();
        for field in [DESTINATION, IF] {
            if !headers.contains_key(&field) {
                continue;
            }
            let refused = |fault| NoSecondTarget { field: field.clone(), fault };
            let value = single_value(headers, &field).ok_or(Fault::Malformed);
            let added = value.and_then(|value| {
                if field == IF {
                    found.add_tags(value, routes, application, first)
                } else {
                    let reference = value.as_bytes().trim_ascii();
                    found.add(&field, Method::PUT, reference, routes, application, first)
                }
            });
            added.map_err(refused)?;
        }
        let is_empty = found.targets.is_empty() && found.conditions.is_none();
        Ok((!is_empty).then(|| Box::new(found)))
    }

    fn add(
        &mut self,
        field: &HeaderName,
        method: Method,
        reference: &[u8],
        routes: &'s RouteTable,
        application: &Destination,
        first: &Target,
    ) -> Result<(), Fault> {
        let target = parse(first, reference)?;
        let route = routes.find_route(&method, &target)?;
        let is_same = match (application, &route.destination) {
            (Destination::Upstream(one), Destination::Upstream(other)) => Arc::ptr_eq(one, other),
            // The proxy that asks forwards both.
            (Destination::External, Destination::External) => true,
            _ => false,
        };
        if !is_same {
            return Err(Fault::OtherUpstream(Arc::clone(&route.name)));
        }
        self.targets.push(SecondTarget { field: field.clone(), method, target, route });
        Ok(())
    }

    /// The application reads the state of each tagged resource: as with GET.
    fn add_tags(
        &mut self,
        value: &HeaderValue,
        routes: &'s RouteTable,
        application: &Destination,
        first: &Target,
    ) -> Result<(), Fault> {
        let tags = tags(value.as_bytes()).ok_or(Fault::Malformed)?;
        if tags.len() > MOST_TAGS {
            return Err(Fault::TooMany);
        }
        for tag in &tags {
            let reference = value.as_bytes().get(tag.clone()).unwrap_or_default();
            self.add(&IF, Method::GET, reference, routes, application, first)?;
        }
        self.conditions = Some((value.clone(), tags));
        Ok(())
    }

    /// Every second target.
    pub fn as_slice(&self) -> &[SecondTarget<'s>] {
        &self.targets
    }

    /// Writes the fields for an application that is addressed with this scheme and `Host`.
    ///
    /// # Errors
    /// [`Ambiguity`], if removing a prefix would split a segment.
    pub(super) fn write(
        &self,
        headers: &mut HeaderMap,
        scheme: &str,
        host: &HeaderValue,
        first: &Route,
        names: &TokenNames,
    ) -> Result<(), Ambiguity> {
        let mut references = Vec::with_capacity(self.targets.len());
        for SecondTarget { target, route, .. } in &self.targets {
            let reads_query = first.guard.token_from.query || route.guard.token_from.query;
            let parameter = reads_query.then_some(names.query.as_str());
            let sent = target.rewritten(route.strip_segments, parameter)?;
            let mut reference = Vec::new();
            // A request of HTTP/1.0 without a host leaves only the path.
            if !host.is_empty() {
                reference.extend_from_slice(scheme.as_bytes());
                reference.extend_from_slice(b"://");
                reference.extend_from_slice(host.as_bytes());
            }
            reference.extend_from_slice(sent.as_str().as_bytes());
            references.push(reference);
        }
        let mut references = references.into_iter();
        if self.targets.first().is_some_and(|target| target.field == DESTINATION)
            && let Some(destination) = references.next()
        {
            headers.insert(DESTINATION, value_of(destination)?);
        }
        if let Some((value, tags)) = &self.conditions {
            let bytes = value.as_bytes();
            let (mut written, mut at) = (Vec::with_capacity(bytes.len()), 0);
            for (tag, reference) in tags.iter().zip(references) {
                written.extend_from_slice(bytes.get(at..tag.start).unwrap_or_default());
                written.extend_from_slice(&reference);
                at = tag.end;
            }
            written.extend_from_slice(bytes.get(at..).unwrap_or_default());
            headers.insert(IF, value_of(written)?);
        }
        Ok(())
    }
}

impl<'s> SecondTarget<'s> {
    /// The field that names it.
    pub fn field(&self) -> &HeaderName {
        &self.field
    }

    /// The method that it is decided with: PUT for what is written, GET for what is compared.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Host and path.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The route that a request with this method and target would take.
    pub fn route(&self) -> &'s Route {
        self.route
    }
}

/// A target on the host of `first`: an absolute URI with http or https, or an absolute path (RFC
/// 4918 §8.3).
fn parse(first: &Target, reference: &[u8]) -> Result<Target, Ambiguity> {
    let text = std::str::from_utf8(reference).map_err(|_| Ambiguity::NotUtf8)?;
    if text.contains('#') {
        return Err(Ambiguity::Fragment);
    }
    if text.starts_with("//") {
        // A reference to another host (RFC 3986 §4.2).
        return Err(Ambiguity::HostDisagrees);
    }
    let path = if text.starts_with('/') {
        text
    } else {
        let (scheme, rest) = text.split_once("://").ok_or(Ambiguity::NoPath)?;
        let is_https = scheme.eq_ignore_ascii_case("https");
        if !is_https && !scheme.eq_ignore_ascii_case("http") {
            return Err(Ambiguity::NoPath);
        }
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let named = HeaderValue::from_str(authority).map_err(|_| Ambiguity::HostMalformed)?;
        let named = without_final_dot(named);
        if !same_authority(named.as_bytes(), first.authority().as_bytes(), is_https) {
            return Err(Ambiguity::HostDisagrees);
        }
        if path.is_empty() { "/" } else { path }
    };
    if !path.starts_with('/') {
        return Err(Ambiguity::NoPath);
    }
    first.sibling(PathAndQuery::try_from(path).map_err(|_| Ambiguity::PathByte)?)
}

/// Where the resource tags of an `If` field are, without their brackets (RFC 4918 §10.4.2); `None`
/// if the field is not one that every application reads alike.
fn tags(value: &[u8]) -> Option<Vec<Range<usize>>> {
    let mut tags = Vec::new();
    let (mut at, mut lists) = (0, 0_usize);
    // Each tag is followed by at least one list. A field is tagged from its first list on, or
    // nowhere.
    let mut needs_list = false;
    while let Some(&byte) = value.get(at) {
        match byte {
            b' ' | b'\t' => at += 1,
            b'<' if !needs_list && (lists == 0 || !tags.is_empty()) => {
                let end = closing(value, at, b'>')?;
                tags.push(at + 1..end);
                at = end + 1;
                needs_list = true;
            }
            b'(' => {
                at = list(value, at)?;
                lists += 1;
                needs_list = false;
            }
            _ => return None,
        }
    }
    (lists > 0 && !needs_list).then_some(tags)
}

/// A value whose bytes all come from header values.
fn value_of(bytes: Vec<u8>) -> Result<HeaderValue, Ambiguity> {
    HeaderValue::try_from(bytes).map_err(|_| Ambiguity::PathByte)
}

/// The end of the list that begins at `at`: `( ["Not"] <state token> | [entity tag] … )`.
fn list(value: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    let mut conditions = 0_usize;
    loop {
        match value.get(at)? {
            b' ' | b'\t' => at += 1,
            b')' if conditions > 0 => return Some(at + 1),
            b'<' => {
                at = closing(value, at, b'>')? + 1;
                conditions += 1;
            }
            b'[' => {
                at = entity_tag(value, at)?;
                conditions += 1;
            }
            _ if value.get(at..at + 3)?.eq_ignore_ascii_case(b"not") => at += 3,
            _ => return None,
        }
    }
}

/// Where the bracket that opens at `at` is closed: nothing in between may be a bracket or a space.
fn closing(value: &[u8], at: usize, close: u8) -> Option<usize> {
    let length = value
        .get(at + 1..)?
        .iter()
        .position(|byte| !byte.is_ascii_graphic() || b"<>\"".contains(byte))?;
    let end = at + 1 + length;
    (length > 0 && value.get(end) == Some(&close)).then_some(end)
}

/// The end of `[ [W/] "opaque" ]` (RFC 9110 §8.8.3).
fn entity_tag(value: &[u8], at: usize) -> Option<usize> {
    let inside = value.get(at + 1..)?;
    let opaque = inside.strip_prefix(b"W/").unwrap_or(inside).strip_prefix(b"\"")?;
    let length = opaque.iter().position(|&byte| byte == b'"')?;
    let after = opaque.get(length + 1..)?.strip_prefix(b"]")?;
    Some(value.len() - after.len())
}

/// More than any client sends: a tag for each collection above a resource that is locked.
const MOST_TAGS: usize = 32;

#[cfg(test)]
mod tests {
    use http::{Uri, Version, header};

    use super::*;

    fn first(host: &str) -> Target {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let uri = Uri::from_static("/first?q");
        Target::parse(&Method::GET, &uri, Version::HTTP_11, &headers).unwrap()
    }

    #[test]
    fn a_second_target_is_on_the_same_host_and_has_one_meaning() {
        let second = |host: &str, reference: &str| {
            parse(&first(host), reference.as_bytes()).map(|target| {
                (target.host().to_owned(), target.path().to_owned(), target.sent().to_string())
            })
        };
        for (host, reference, path, sent) in [
            ("a.test", "/b%20c/d", "/b c/d", "/b%20c/d"),
            ("a.test", "http://a.test/b", "/b", "/b"),
            ("A.test:80", "HTTP://a.TEST/b", "/b", "/b"),
            ("a.test", "https://a.test:443/b?x", "/b", "/b?x"),
            ("a.test:8080", "http://a.test:8080", "/", "/"),
            ("a.test", "http://a.test./b", "/b", "/b"),
            ("[::1]:80", "http://[::1]/b", "/b", "/b"),
        ] {
            let wanted = (host.to_ascii_lowercase(), path.to_owned(), sent.to_owned());
            let wanted = (
                wanted.0.trim_end_matches(":8080").trim_end_matches(":80").to_owned(),
                wanted.1,
                wanted.2,
            );
            assert_eq!(second(host, reference), Ok(wanted), "{reference}");
        }
        for (reference, ambiguity) in [
            ("", Ambiguity::NoPath),
            ("b", Ambiguity::NoPath),
            ("*", Ambiguity::NoPath),
            ("//b.test/c", Ambiguity::HostDisagrees),
            ("http:///c", Ambiguity::HostDisagrees),
            ("http://b.test/c", Ambiguity::HostDisagrees),
            ("http://a.test:81/c", Ambiguity::HostDisagrees),
            ("http://a.test:443/c", Ambiguity::HostDisagrees),
            ("http://u:p@a.test/c", Ambiguity::HostDisagrees),
            ("http://a.test@b.test/c", Ambiguity::HostDisagrees),
            ("http://a.test\\@b.test/c", Ambiguity::HostDisagrees),
            ("http://a.test?c", Ambiguity::NoPath),
            ("ftp://a.test/c", Ambiguity::NoPath),
            ("dav:/c", Ambiguity::NoPath),
            ("/a#b", Ambiguity::Fragment),
            ("/a/../b", Ambiguity::DotSegment),
            ("/a/%2e%2e/b", Ambiguity::DotSegment),
            ("/a b", Ambiguity::PathByte),
            ("/a\\b", Ambiguity::PathByte),
            ("/%", Ambiguity::BrokenEncoding),
            ("/%C0%AF", Ambiguity::NotUtf8),
            ("/%00", Ambiguity::Control),
            ("/é", Ambiguity::PathByte),
        ] {
            assert_eq!(second("a.test", reference).unwrap_err(), ambiguity, "{reference}");
        }
        assert_eq!(super::parse(&first("a.test"), b"/\xff").unwrap_err(), Ambiguity::NotUtf8);
    }

    #[test]
    fn tags_of_conditions_are_found() {
        let of = |value: &str| {
            tags(value.as_bytes())
                .map(|tags| tags.into_iter().map(|tag| value[tag].to_owned()).collect::<Vec<_>>())
        };
        // RFC 4918 §10.4.6 and the sections after it.
        for (value, wanted) in [
            ("(<urn:uuid:181d4fae> [\"I am an ETag\"]) ([\"I am another ETag\"])", vec![]),
            ("(Not <urn:uuid:181d4fae> <urn:uuid:58f202ac>)", vec![]),
            ("(<urn:uuid:181d4fae>) (Not <DAV:no-lock>)", vec![]),
            (
                "</resource1> (<urn:uuid:181d4fae> [W/\"A weak ETag\"]) ([\"strong ETag\"])",
                vec!["/resource1"],
            ),
            (
                "<http://www.example.com/specs/> (<urn:uuid:181d4fae>)",
                vec!["http://www.example.com/specs/"],
            ),
            ("</specs/rfc2518.doc> ([\"4217\"])", vec!["/specs/rfc2518.doc"]),
            ("</a>(<urn:x>)</b>([\"</c> (\"])", vec!["/a", "/b"]),
            ("  ( not[W/\"\"]  )  ", vec![]),
        ] {
            assert_eq!(of(value), Some(wanted.into_iter().map(str::to_owned).collect()), "{value}");
        }
        for value in [
            "",
            "*",
            "\"etag\"",
            "</a>",
            "</a> </b> (<urn:x>)",
            "(<urn:x>",
            "(<urn:x>) </a> (<urn:x>)",
            "()",
            "(not)",
            "<> (<urn:x>)",
            "</a (<urn:x>)",
            "</a> (<urn:x>), </b> (<urn:x>)",
            "(urn:x)",
            "([etag])",
            "([\"a\")",
            "</a b> (<urn:x>)",
            "</a> (</b> (<urn:x>))",
            "(<urn:x>) x",
            "((<urn:x>))",
            "</a\"> (<urn:x>)",
        ] {
            assert_eq!(of(value), None, "{value}");
        }
    }
}
