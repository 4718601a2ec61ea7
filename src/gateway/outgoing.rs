//! The only request that can be sent upstream: stripped, then set.
//!
//! An [`Outgoing`] can only be made from a [`Permit`], so nothing is forwarded unchecked.

use std::sync::Arc;

use http::header;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use hyper::upgrade::OnUpgrade;

use super::authorize::Permit;
use super::exchange_ids::{ExchangeIds, TRACEPARENT, X_REQUEST_ID};
use super::headers::{
    HOP_BY_HOP, HeaderRules, METHOD_OVERRIDES, NOT_IN_TRAILERS, connection_names, same_folded,
    single_value,
};
use super::matched::MatchedParts;
use super::refusal::Refusal;
use super::token_memo::set_identity_headers;
use super::token_names::{TokenNames, cookie_pairs};
use super::upload::{ClientBody, Gate};

/// A request that may be sent. Only [`Outgoing::prepare`] makes one, from a [`Permit`].
///
/// ```
/// fn names<'a>(outgoing: &'a portcullis::gateway::outgoing::Outgoing<'_>) -> &'a http::HeaderMap {
///     outgoing.headers()
/// }
/// ```
/// ```compile_fail
/// fn add(outgoing: &mut portcullis::gateway::outgoing::Outgoing<'_>) {
///     outgoing.request.parts.headers.clear();
/// }
/// ```
///
/// It keeps the block of the request that was matched: its head is changed where it is.
#[derive(Debug)]
pub struct Outgoing<'s> {
    request: Box<MatchedParts<'s>>,
    target: PathAndQuery,
    asks: Asks,
    removed: Vec<HeaderName>,
}

/// What the client's connection supports or requests, as far as it affects the upstream's response.
#[derive(Clone, Debug, Default)]
pub struct Asks {
    /// An upgrade to WebSocket (RFC 6455).
    pub websocket: bool,
    /// The client accepts trailers (`TE: trailers`, RFC 9110 §10.1.4).
    pub trailers: bool,
    /// The request trailers that may be forwarded.
    pub request_trailers: Vec<HeaderName>,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
}

impl<'s> Outgoing<'s> {
    /// Strips everything that a client could use to impersonate someone or to change the
    /// application's view of the request, then sets what the upstream may rely on (CONTRACT §4).
    /// `announced`: the declared length of the body, in bytes.
    ///
    /// # Errors
    /// [`Refusal::BodyTooLarge`], if the declared length is above `max_body`; [`Refusal::Rewrite`],
    /// if removing a prefix would split a segment.
    pub fn prepare(
        permit: Permit<'s>,
        announced: Option<u64>,
        ids: &ExchangeIds,
        rules: &HeaderRules,
        max_body: u64,
    ) -> Result<Self, Refusal> {
        let keep_authorization = permit.forwards_authorization();
        let (matched, caller, _) = permit.into_parts();
        let route = matched.route();
        let mut request = matched.into_parts();
        let MatchedParts { parts, target, client, second, .. } = &mut *request;
        let Parts { method, headers, version, .. } = parts;
        let constant = &route.set_headers;
        let is_owned = |name: &&HeaderName| rules.owned.contains(name) || constant.include(name);
        let owned: Vec<HeaderName> = headers.keys().filter(is_owned).cloned().collect();
        let mut asks = Asks::from_head(method, *version, headers, &owned, rules);
        asks.request_trailers.retain(|name| !constant.include(name));
        let tracestate = if ids.trace_is_continued {
            headers.get_all(TRACESTATE).iter().cloned().collect()
        } else {
            Vec::new()
        };
        let mut removed = strip(headers, owned, |name| {
            (keep_authorization && name == header::AUTHORIZATION)
                || (route.method_override && METHOD_OVERRIDES.contains(&name.as_str()))
        });
        if strip_cookies(headers, &rules.token_names) {
            removed.push(header::COOKIE);
        }
        if let Some(caller) = &caller {
            set_identity_headers(&route.identity_headers, caller.token(), headers);
        }
        constant.replace_in(headers);
        let upstream = route.destination.upstream().map(|upstream| upstream.settings());
        let host = upstream.and_then(|settings| settings.host.as_ref());
        let host = host.unwrap_or_else(|| target.authority());
        if let (Some(second), Some(settings)) = (second.take(), upstream) {
            let scheme = settings.application.scheme();
            second.write(headers, scheme, host, route, &rules.token_names)?;
        }
        // Usually this is the received value itself, and the first field.
        let received = headers.iter().find(|(name, _)| **name == header::HOST);
        if received.is_none_or(|(_, value)| value != host) {
            headers.insert(header::HOST, host.clone());
        }
        headers.insert(X_REQUEST_ID, ids.request_id.clone());
        headers.insert(X_FORWARDED_FOR, client.text().clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme().as_str()));
        headers.insert(X_FORWARDED_HOST, target.authority().clone());
        headers.insert(TRACEPARENT, ids.traceparent());
        for value in tracestate {
            headers.append(TRACESTATE, value);
        }
        asks.set(headers);
        let parameter = route.guard.token_from.query.then_some(rules.token_names.query.as_str());
        let target = target.rewritten(route.strip_segments, parameter)?;
        if let Some(length) = announced.filter(|length| *length > 0) {
            if length > max_body {
                return Err(Refusal::BodyTooLarge);
            }
            set_length(headers, length);
        }
        Ok(Self { request, target, asks, removed })
    }

    /// The header fields to send.
    pub fn headers(&self) -> &HeaderMap {
        &self.request.parts.headers
    }

    /// The path and query to send.
    pub fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The method to send.
    pub fn method(&self) -> &Method {
        &self.request.parts.method
    }

    /// The names of the removed fields, for `explain`.
    pub fn removed(&self) -> &[HeaderName] {
        &self.removed
    }

    /// What the client's connection supports or requests.
    pub fn asks(&self) -> &Asks {
        &self.asks
    }

    /// Takes what the client's connection supports or requests; only once.
    pub(super) fn take_asks(&mut self) -> Asks {
        std::mem::take(&mut self.asks)
    }

    /// Takes the client's side of an upgrade; only once.
    pub(super) fn take_upgrade(&mut self) -> Option<OnUpgrade> {
        self.request.parts.extensions.remove::<OnUpgrade>()
    }

    /// The request for the wire. If the upstream sends `100 Continue`, it opens `gate`.
    pub(super) fn into_request(
        self,
        body: ClientBody,
        gate: Option<Arc<Gate>>,
    ) -> Request<ClientBody> {
        let mut parts = self.request.parts;
        if body.has_unknown_length() {
            // Be explicit: hyper treats a GET with neither kind of length as one without a body,
            // and would drop the body.
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        parts.uri = Uri::from(self.target);
        parts.version = Version::default();
        parts.extensions = Extensions::new();
        let mut request = Request::from_parts(parts, body);
        if let Some(gate) = gate {
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == http::StatusCode::CONTINUE {
                    gate.open();
                }
            });
        }
        request
    }
}

/// Writes the length as it was read: zeros before it could be taken for the start of an octal number.
fn set_length(headers: &mut HeaderMap, length: u64) {
    if let Some(written) = headers.get_mut(header::CONTENT_LENGTH)
        && written.as_bytes().starts_with(b"0")
    {
        *written = length.into();
    }
}

impl Asks {
    /// `owned`: the names in `headers` that are reserved. It includes every field that is read
    /// here, and few requests have any.
    fn from_head(
        method: &Method,
        version: Version,
        headers: &HeaderMap,
        owned: &[HeaderName],
        rules: &HeaderRules,
    ) -> Self {
        let has = |name: &HeaderName| owned.contains(name);
        let websocket = has(&header::UPGRADE)
            && version == Version::HTTP_11
            && method == Method::GET
            && single_value(headers, &header::UPGRADE).is_some_and(|value| {
                value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket")
            })
            && has_list_member(headers, &header::CONNECTION, b"upgrade")
            // A handshake has no body (RFC 6455 §4.1).
            && !headers.contains_key(header::TRANSFER_ENCODING)
            && headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        Self {
            websocket,
            trailers: has(&header::TE) && has_list_member(headers, &header::TE, b"trailers"),
            request_trailers: if has(&header::TRAILER) {
                declared_trailers(headers, rules)
            } else {
                Vec::new()
            },
            expects_continue: has(&header::EXPECT)
                && version >= Version::HTTP_11
                && has_list_member(headers, &header::EXPECT, b"100-continue"),
        }
    }

    /// Sets for the next hop what the client set for the previous one.
    fn set(&self, headers: &mut HeaderMap) {
        if self.websocket {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        } else if self.trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        if !self.request_trailers.is_empty() {
            let names: Vec<&str> = self.request_trailers.iter().map(HeaderName::as_str).collect();
            headers.insert(header::TRAILER, ascii(names.join(", ").as_bytes()));
        }
        if self.expects_continue {
            headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
        }
    }
}

/// Removes the fields for this hop only and the reserved names, and returns the names that it
/// removed.
fn strip(
    headers: &mut HeaderMap,
    owned: Vec<HeaderName>,
    keep: impl Fn(&HeaderName) -> bool,
) -> Vec<HeaderName> {
    let named =
        if owned.contains(&header::CONNECTION) { connection_names(headers) } else { Vec::new() };
    let mut removed = owned;
    removed.retain(|name| !keep(name) && headers.remove(name).is_some());
    removed.extend(named.into_iter().filter(|name| headers.remove(name).is_some()));
    removed
}

/// Removes our cookies from the request and leaves the others, byte for byte, in one field (RFC
/// 9113 §8.2.3). Returns whether any were present.
pub(super) fn strip_cookies(headers: &mut HeaderMap, names: &TokenNames) -> bool {
    // Looking a name up costs as much as comparing a dozen.
    if !headers.keys().any(|name| *name == header::COOKIE) {
        return false;
    }
    let cookies = headers.get_all(header::COOKIE);
    let pairs = || cookies.iter().flat_map(cookie_pairs);
    let has_own = pairs().any(|pair| names.own_cookie(pair));
    if cookies.iter().nth(1).is_none() && !has_own {
        return false;
    }
    let kept: Vec<&[u8]> = pairs()
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty() && !names.own_cookie(pair))
        .collect();
    // Every byte comes from a header value.
    match HeaderValue::from_bytes(&kept.join(&b"; "[..])) {
        Ok(value) if !kept.is_empty() => {
            headers.insert(header::COOKIE, value);
        }
        _ => {
            headers.remove(header::COOKIE);
        }
    }
    has_own
}

/// The fields of an upstream's response that are for that hop only. Few responses have any, and
/// comparing each name once is cheaper than looking each of these up.
pub fn fields_for_hop(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|name| HOP_BY_HOP.contains(&name.as_str())).cloned().collect()
}

/// Removes from an upstream's response the fields for that hop only, and cookies that only the
/// gateway may set. `for_hop`: its [`fields_for_hop`].
pub fn strip_response(
    headers: &mut HeaderMap,
    for_hop: Vec<HeaderName>,
    names: &TokenNames,
    trailers_welcome: bool,
) {
    if !for_hop.is_empty() {
        let declared = if trailers_welcome { headers.remove(header::TRAILER) } else { None };
        for name in connection_names(headers).into_iter().chain(for_hop) {
            headers.remove(name);
        }
        if let Some(declared) = declared {
            headers.insert(header::TRAILER, declared);
        }
    }
    let ours = |line: &HeaderValue| {
        names.own_cookie(line.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default())
    };
    let sets_cookies = headers.keys().any(|name| *name == header::SET_COOKIE);
    if sets_cookies && headers.get_all(header::SET_COOKIE).iter().any(ours) {
        let kept: Vec<HeaderValue> = headers
            .get_all(header::SET_COOKIE)
            .iter()
            .filter(|line| !ours(line))
            .cloned()
            .collect();
        headers.remove(header::SET_COOKIE);
        for line in kept {
            headers.append(header::SET_COOKIE, line);
        }
    }
}

/// The request trailers that `Trailer` declares, without reserved names and names that trailers
/// must not contain (RFC 9110 §6.5.1).
fn declared_trailers(headers: &HeaderMap, rules: &HeaderRules) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = Vec::new();
    let declared = headers
        .get_all(header::TRAILER)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    for name in declared.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()) {
        let forbidden = rules.owned.contains(&name)
            || NOT_IN_TRAILERS.iter().any(|other| same_folded(name.as_str(), other));
        if !forbidden && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether a comma-separated field has this member.
fn has_list_member(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    let members =
        headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    members.into_iter().any(|member| member.trim_ascii().eq_ignore_ascii_case(token))
}

fn ascii(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static(""))
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
