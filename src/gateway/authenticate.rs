//! One credential, from the places that the route allows, to the caller that it proves.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Method, header};

use super::client::{ClientAddress, Scheme};
use super::route::{Access, Route, TokenPlaces};
use super::target::{Target, decode_form, query_values, same_authority};
use crate::clock::Clock;
use crate::identity::Origin;
use crate::identity::cookie::REFRESH_COOKIE;
use crate::keys::{Keys, Renewal};
use crate::token::{
    InvalidToken, Issuers, MAX_TOKEN_BYTES, Malformed, RevocationList, TokenCache, VerifiedToken,
};

/// Names under which a token may stand outside `Authorization`.
#[derive(Clone, Debug)]
pub struct TokenNames {
    /// The cookie.
    pub cookie: String,
    /// The query parameter.
    pub query: String,
    /// Where our own pages are, by `[identity] issuer`.
    pub issuer: Option<OwnOrigin>,
}

/// The origin of a URL (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnOrigin {
    /// Its scheme.
    pub scheme: Scheme,
    /// Host, and port where there is one.
    pub authority: Box<str>,
}

impl Default for TokenNames {
    fn default() -> Self {
        Self {
            cookie: "__Host-portcullis".to_owned(),
            query: "access_token".to_owned(),
            issuer: None,
        }
    }
}

impl TokenNames {
    /// Whether a `name=value` pair is a cookie of ours: never sent to an upstream, never set by
    /// one.
    ///
    /// A cookie without a name is read by its value: a browser that was given `=a=b` sends `a=b`
    /// (RFC 6265bis §5.6).
    pub fn own_cookie(&self, pair: &[u8]) -> bool {
        let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'=';
        let start = pair.iter().position(|byte| !blank(byte)).unwrap_or(pair.len());
        let name =
            pair[start..].split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        [self.cookie.as_bytes(), b"__Host-portcullis", REFRESH_COOKIE.as_bytes()]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
    }
}

/// Why nobody was recognised.
#[derive(Debug, thiserror::Error)]
pub enum Unauthenticated {
    /// No credentials in a place that this route reads.
    #[error("no credentials")]
    Missing,
    /// `Authorization: Bearer` with something that is no token.
    #[error("the credentials are malformed")]
    Malformed,
    /// More than one credential.
    #[error("more than one credential")]
    Ambiguous,
    /// The token is not valid.
    #[error(transparent)]
    Invalid(#[from] InvalidToken),
    /// Nobody can say whether it is: its issuer does not answer, and the keys that are known are
    /// none, or not new enough.
    #[error("the keys of issuer `{issuer}` are not available")]
    KeysUnavailable {
        /// The issuer's section.
        issuer: Arc<str>,
        /// Whole seconds until it is worth trying again.
        retry_after: u64,
    },
    /// Known by its cookie, but asked for from another origin.
    #[error("a request with a cookie came from another origin")]
    ForeignOrigin,
}

/// What tokens are held against.
#[derive(Clone, Copy, Debug)]
pub struct Verifier<'a> {
    /// Where else than in `Authorization` they may stand.
    pub names: &'a TokenNames,
    /// Whose are accepted.
    pub issuers: &'a Arc<Issuers>,
    /// Where those are remembered that were verified before.
    pub known: Option<&'a Mutex<TokenCache>>,
    /// Which of them no longer are.
    pub revoked: &'a RevocationList,
}

impl Verifier<'_> {
    /// The one way from a credential to the caller that it proves: it is verified, and then held
    /// against what was revoked since.
    ///
    /// # Errors
    /// [`Unauthenticated`]
    pub fn caller(&self, credential: &Credential, now: u64) -> Result<Caller, Unauthenticated> {
        let token = match self.known {
            Some(known) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                match known.find(self.issuers, &credential.token, now) {
                    Ok(found) => found?,
                    // Bytes that were verified before are well formed: they are looked at only
                    // here.
                    Err(unknown) => {
                        known.verify_unknown(unknown, self.issuers, &credential.text()?, now)?
                    }
                }
            }
            None => Arc::new(self.issuers.verify(&credential.text()?, now)?),
        };
        self.revoked.meets(&token, now);
        Ok(Caller { token: self.hold(token)?, place: credential.place })
    }

    /// A token that was verified, now or earlier, if it was not revoked.
    ///
    /// # Errors
    /// [`InvalidToken::Revoked`]
    pub fn hold(&self, token: Arc<VerifiedToken>) -> Result<Arc<VerifiedToken>, InvalidToken> {
        match self.revoked.find(&token) {
            None => Ok(token),
            Some(by) => Err(InvalidToken::Revoked(by)),
        }
    }
}

/// Where a token stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Bearer`.
    Header,
    /// The token cookie.
    Cookie,
    /// The token query parameter.
    Query,
}

/// A token as it stood in the request, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Credential<'a> {
    token: Cow<'a, [u8]>,
    place: Place,
}

impl Credential<'_> {
    /// The token, if it has the form of one.
    ///
    /// # Errors
    /// [`Unauthenticated::Malformed`], and [`Malformed::TooLong`].
    fn text(&self) -> Result<Cow<'_, str>, Unauthenticated> {
        match self.place {
            Place::Header => well_formed(&self.token).map(Cow::Borrowed),
            // No other form is asked of them than that of a JWS, by the verifier.
            Place::Cookie | Place::Query => Ok(String::from_utf8_lossy(&self.token)),
        }
    }
}

/// Whoever is at the line, and how they are known.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What their token proves.
    pub token: Arc<VerifiedToken>,
    /// Where it stood.
    pub place: Place,
}

/// Recognises the caller. `Ok(None)` on a public route, and without credentials where they are
/// optional.
///
/// # Errors
/// [`Unauthenticated`]
pub fn authenticate(
    route: &Route,
    request: &http::request::Parts,
    target: &Target,
    client: &ClientAddress,
    verifier: Verifier<'_>,
    now: u64,
) -> Result<Option<Caller>, Unauthenticated> {
    if route.access == Access::Public {
        return Ok(None);
    }
    let Some(credential) = credential(route.token_from, &request.headers, target, verifier.names)?
    else {
        return if route.access == Access::Optional {
            Ok(None)
        } else {
            Err(Unauthenticated::Missing)
        };
    };
    if credential.place == Place::Cookie && !is_own_request(request, target, client, verifier.names)
    {
        return Err(Unauthenticated::ForeignOrigin);
    }
    Ok(Some(verifier.caller(&credential, now)?))
}

/// What time it is for a request.
#[derive(Clone, Copy, Debug)]
pub struct Time<'a> {
    /// When it arrived, in Unix seconds.
    pub arrived: u64,
    /// The time later on, where it had to wait.
    pub clock: &'a Clock,
}

/// [`authenticate`], and once more with newer keys, where the token's key is not among those that
/// are known: a key that was published a moment ago is no reason to refuse anybody. It waits a few
/// seconds at most, and only then.
///
/// # Errors
/// [`Unauthenticated`]
pub async fn authenticate_with_newest(
    route: &Route,
    request: &http::request::Parts,
    target: &Target,
    client: &ClientAddress,
    verifier: Verifier<'_>,
    keys: &Keys,
    time: Time<'_>,
) -> Result<Option<Caller>, Unauthenticated> {
    let at = |now| authenticate(route, request, target, client, verifier, now);
    let again = || at(time.clock.unix_seconds());
    let lacks_key = |token: &str, decided: &Result<Option<Caller>, Unauthenticated>| match decided {
        Err(Unauthenticated::Invalid(refused)) if refused.concerns_key() => {
            verifier.issuers.lacking_key(token, refused).cloned()
        }
        _ => None,
    };
    let decided = at(time.arrived);
    if !matches!(&decided, Err(Unauthenticated::Invalid(refused)) if refused.concerns_key()) {
        return decided;
    }
    let Ok(Some(credential)) =
        credential(route.token_from, &request.headers, target, verifier.names)
    else {
        return decided;
    };
    let Ok(token) = credential.text() else { return decided };
    let Some(owner) = lacks_key(&token, &decided).and_then(|issuer| keys.of(&issuer)) else {
        return decided;
    };
    // Garbage is verified once where no newer keys are to be had.
    let is_garbage = matches!(&decided, Err(Unauthenticated::Invalid(InvalidToken::Signature)))
        && owner.is_settled();
    let (decided, renewal) = if owner.is_fetched() && !is_garbage {
        Box::pin(owner.with_newest(again, |decided| lacks_key(&token, decided).is_some())).await
    } else {
        (decided, Renewal::Current)
    };
    match &decided {
        Err(Unauthenticated::Invalid(InvalidToken::NoKeys)) => {}
        Err(Unauthenticated::Invalid(InvalidToken::KeyUnknown { .. }))
            if renewal == Renewal::Unavailable => {}
        _ => return decided,
    }
    Err(Unauthenticated::KeysUnavailable {
        issuer: Arc::clone(&owner.settings().name),
        retry_after: owner.retry_after(),
    })
}

/// The one credential of a request.
///
/// # Errors
/// [`Unauthenticated::Malformed`] and [`Unauthenticated::Ambiguous`].
pub fn credential<'a>(
    places: TokenPlaces,
    headers: &'a HeaderMap,
    target: &Target,
    names: &'a TokenNames,
) -> Result<Option<Credential<'a>>, Unauthenticated> {
    let mut found = None;
    let mut find = |token: Cow<'a, [u8]>, place| match found.replace(Credential { token, place }) {
        None => Ok(()),
        Some(_) => Err(Unauthenticated::Ambiguous),
    };
    if places.header {
        let mut lines = headers.get_all(header::AUTHORIZATION).iter();
        let line = lines.next();
        if lines.next().is_some() {
            return Err(Unauthenticated::Ambiguous);
        }
        if let Some(token) = line.and_then(|line| bearer(line.as_bytes())) {
            if places.cookie || places.query {
                // One that is malformed is told before a second one.
                well_formed(token)?;
            }
            find(Cow::Borrowed(token), Place::Header)?;
        }
    }
    if places.cookie {
        for value in cookie_values(headers, &names.cookie) {
            find(Cow::Borrowed(value), Place::Cookie)?;
        }
    }
    if places.query
        && let Some(query) = target.query()
    {
        for value in query_values(query, &names.query) {
            let token = decode_form(value).ok_or(Unauthenticated::Malformed)?;
            if !is_token68(&token) {
                return Err(Unauthenticated::Malformed);
            }
            find(Cow::Owned(token), Place::Query)?;
        }
    }
    Ok(found)
}

/// What stands behind `Bearer` (RFC 6750 §2.1); `None` for another scheme. The scheme is compared
/// in any case (RFC 9110 §11.1).
fn bearer(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii();
    let end = line.iter().position(|&byte| byte == b' ' || byte == b'\t').unwrap_or(line.len());
    let (scheme, rest) = line.split_at(end);
    scheme.eq_ignore_ascii_case(b"bearer").then(|| rest.trim_ascii())
}

/// The token that these bytes are.
fn well_formed(token: &[u8]) -> Result<&str, Unauthenticated> {
    if !is_token68(token) {
        return Err(Unauthenticated::Malformed);
    }
    if token.len() > MAX_TOKEN_BYTES {
        // Not read: the verifier refuses it by its length.
        return Err(InvalidToken::from(Malformed::TooLong { length: token.len() }).into());
    }
    std::str::from_utf8(token).map_err(|_| Unauthenticated::Malformed)
}

/// RFC 9110 §11.2.
fn is_token68(token: &[u8]) -> bool {
    let unpadded = token.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let allowed = |byte: u8| {
        let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        // The digits stand behind `-`, `.` and `/` (RFC 20).
        letter || byte.wrapping_sub(b'-') < 13 || byte == b'_' || byte == b'~' || byte == b'+'
    };
    // Without an early end, so that the compiler looks at many bytes at once: nearly every token is
    // well formed.
    unpadded > 0 && token[..unpadded].iter().fold(true, |all, &byte| all & allowed(byte))
}

/// The values of a cookie, however many fields they came in (RFC 9113 §8.2.3). Other cookies may
/// hold any bytes.
fn cookie_values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    pairs.filter_map(move |pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        let value = pair[at + 1..].trim_ascii();
        let value =
            value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        (pair[..at].trim_ascii() == name.as_bytes()).then_some(value)
    })
}

/// Whether a request has the token cookie, be it good or not.
pub fn has_token_cookie(headers: &HeaderMap, names: &TokenNames) -> bool {
    cookie_values(headers, &names.cookie).next().is_some()
}

/// Whether a request that is known by its cookie was made by our own pages: needed for what changes
/// state, and for upgrades, which no same-origin policy holds back.
fn is_own_request(
    request: &http::request::Parts,
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> bool {
    let safe = matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS);
    (safe && !request.headers.contains_key(header::UPGRADE))
        || origin_of(request, target, client, names) == Origin::Own
}

/// Where a request was made, as far as a browser says.
pub fn origin_of(
    request: &http::request::Parts,
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> Origin {
    let mut origins = request.headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(origin), None) if is_own_origin(origin.as_bytes(), target, client, names) => {
            Origin::Own
        }
        (Some(_), _) => Origin::Foreign,
        (None, _) => {
            let mut sites = request.headers.get_all("sec-fetch-site").iter();
            match (sites.next(), sites.next()) {
                (None, _) => Origin::Unsaid,
                (Some(site), None) if site == "same-origin" => Origin::Own,
                // A person's own doing, such as an address that was typed.
                (Some(site), None) if site == "none" => Origin::Unsaid,
                _ => Origin::Foreign,
            }
        }
    }
}

/// Whether an `Origin` (RFC 6454 §6.2) is ours: that of the built-in issuer's pages where they are
/// on the host that was asked, else the scheme and authority that the client used.
fn is_own_origin(
    origin: &[u8],
    target: &Target,
    client: &ClientAddress,
    names: &TokenNames,
) -> bool {
    let asked = target.authority().as_bytes();
    let is = |scheme: Scheme, authority: &[u8]| {
        let written = origin
            .strip_prefix(scheme.as_str().as_bytes())
            .and_then(|rest| rest.strip_prefix(b"://"));
        written.is_some_and(|written| same_authority(written, authority, scheme == Scheme::Https))
    };
    match &names.issuer {
        Some(own)
            if same_authority(own.authority.as_bytes(), asked, own.scheme == Scheme::Https) =>
        {
            is(own.scheme, own.authority.as_bytes())
        }
        _ => is(client.scheme(), asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Version};

    const ALL: TokenPlaces = TokenPlaces { header: true, cookie: true, query: true };
    const HEADER: TokenPlaces = TokenPlaces { header: true, cookie: false, query: false };

    fn read(
        places: TokenPlaces,
        path: &str,
        fields: &[(&'static str, &str)],
    ) -> Result<Option<(String, Place)>, Unauthenticated> {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("a.test"));
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let target =
            Target::parse(&Method::GET, &path.parse().unwrap(), Version::HTTP_11, &headers)
                .unwrap();
        let names = TokenNames::default();
        let Some(found) = credential(places, &headers, &target, &names)? else { return Ok(None) };
        Ok(Some((found.text()?.into_owned(), found.place)))
    }

    #[test]
    fn a_bearer_token_in_any_case_of_the_scheme() {
        for line in ["Bearer a.b.c", "bearer a.b.c", "BEARER   a.b.c", " bEaReR a.b.c "] {
            assert_eq!(read(HEADER, "/", &[("authorization", line)]).unwrap().unwrap().0, "a.b.c");
        }
    }

    #[test]
    fn another_scheme_is_no_credential() {
        for line in ["Basic YTpi", "", "Token a.b.c", "Bearerx a.b.c", "bear"] {
            assert!(read(HEADER, "/", &[("authorization", line)]).unwrap().is_none(), "{line}");
        }
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        for line in [
            "Bearer",
            "Bearer ",
            "Bearer a b",
            "Bearer a,b",
            "Bearer \"a\"",
            "Bearer a.b.c, Bearer d",
            "Bearer ==",
            "Bearer a=b",
            "Bearer a\u{e9}",
        ] {
            assert!(
                matches!(
                    read(HEADER, "/", &[("authorization", line)]),
                    Err(Unauthenticated::Malformed)
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn a_token_has_the_letters_of_the_rfc() {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
            assert_eq!(is_token68(&[b'a', byte, b'b']), expected, "{byte}");
            assert_eq!(is_token68(&[b'a', byte]), expected || byte == b'=', "{byte}");
        }
    }

    #[test]
    fn two_credentials_are_ambiguous() {
        let bearer = ("authorization", "Bearer a.b.c");
        let cookie = ("cookie", "x=1; __Host-portcullis=a.b.c");
        for (places, path, fields) in [
            (HEADER, "/", vec![bearer, bearer]),
            (HEADER, "/", vec![bearer, ("authorization", "Basic YTpi")]),
            (ALL, "/", vec![bearer, cookie]),
            (ALL, "/", vec![cookie, cookie]),
            (ALL, "/?access_token=a.b.c", vec![cookie]),
            (ALL, "/?access_token=a.b.c", vec![bearer]),
            (ALL, "/?access_token=a&access_token=a", vec![]),
            (ALL, "/?access_token=a&access%5ftoken=a", vec![]),
        ] {
            assert!(
                matches!(read(places, path, &fields), Err(Unauthenticated::Ambiguous)),
                "{path} {fields:?}"
            );
        }
        // Places that the route does not name are not read.
        assert_eq!(
            read(HEADER, "/?access_token=d", &[bearer, cookie]).unwrap().unwrap().0,
            "a.b.c"
        );
    }

    #[test]
    fn a_cookie_and_a_query_are_read_where_allowed() {
        assert!(
            read(ALL, "/", &[("cookie", "a=b"), ("cookie", "__Host-portcullis=t.o.k")])
                .unwrap()
                .unwrap()
                .1
                == Place::Cookie
        );
        assert_eq!(read(ALL, "/?a=b&access_token=t%2Eo.k", &[]).unwrap().unwrap().0, "t.o.k");
        assert!(matches!(read(ALL, "/?access_token=", &[]), Err(Unauthenticated::Malformed)));
    }

    #[test]
    fn a_token_that_is_too_long_is_not_read() {
        let line = format!("Bearer {}", "a".repeat(MAX_TOKEN_BYTES + 1));
        assert!(matches!(
            read(HEADER, "/", &[("authorization", &line)]),
            Err(Unauthenticated::Invalid(_))
        ));
    }

    #[test]
    fn unsafe_requests_by_cookie_need_our_origin() {
        use super::super::client::{Peer, TrustedProxies};
        let own = |method: &str, fields: &[(&'static str, &'static str)]| {
            let mut request =
                http::Request::builder().method(method).uri("/").header("host", "a.test:8080");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let target =
                Target::parse(&parts.method, &parts.uri, parts.version, &parts.headers).unwrap();
            let peer = Peer { address: [127, 0, 0, 1].into(), tls: false };
            is_own_request(
                &parts,
                &target,
                &TrustedProxies::default().client(&peer, &parts.headers),
                &TokenNames::default(),
            )
        };
        assert!(own("GET", &[]));
        assert!(!own("GET", &[("upgrade", "websocket")]));
        assert!(!own("POST", &[]));
        assert!(own("POST", &[("origin", "http://a.test:8080")]));
        assert!(own("POST", &[("origin", "http://A.test:8080")]));
        assert!(!own("POST", &[("origin", "https://a.test:8080")]));
        assert!(!own("POST", &[("origin", "http://a.test")]));
        assert!(!own("POST", &[("origin", "null"), ("sec-fetch-site", "same-origin")]));
        assert!(own("POST", &[("sec-fetch-site", "same-origin")]));
        assert!(!own("POST", &[("sec-fetch-site", "same-site")]));
        assert!(!own("POST", &[("origin", "http://a.test:8080"), ("origin", "http://evil.test")]));
    }
}
