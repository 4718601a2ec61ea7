//! The person behind a navigation: what a page for them needs to know if the request is refused or
//! fails. It is recorded while the request still has its head.

use http::{HeaderMap, HeaderValue, header};

use super::origin::is_navigation;
use super::refusal::Refusal;
use super::snapshot::Snapshot;
use super::token_memo::TokenMemo;

use crate::identity::Mount;
use crate::identity::pages::{self, Happened};
use crate::token::Remembered;

/// The person behind a navigation that accepts a page.
#[derive(Debug)]
pub(super) struct Reader {
    /// Where the host has the built-in issuer.
    mount: Option<Mount>,
    /// The page that they came from, if it is one of this host.
    from: Option<HeaderValue>,
    languages: Option<HeaderValue>,
}

impl Reader {
    /// `None`: the request is not a navigation, or does not accept a page. `host`: as in the
    /// target.
    pub(super) fn of(host: &str, headers: &HeaderMap, snapshot: &Snapshot) -> Option<Box<Self>> {
        if !is_navigation(headers) || !pages::wanted(headers) {
            return None;
        }
        let from = headers.get(header::REFERER).filter(|from| {
            from.to_str().ok().and_then(host_and_path).is_some_and(|(from, _)| from == host)
        });
        Some(Box::new(Self {
            mount: snapshot.routes.mount(host).cloned(),
            from: from.cloned(),
            languages: headers.get(header::ACCEPT_LANGUAGE).cloned(),
        }))
    }

    /// Whether they can log in on this host.
    pub(super) fn has_login(&self) -> bool {
        self.mount.is_some()
    }

    /// The page instead of a refusal. `again`: the path and query of the request, if it can be
    /// repeated.
    pub(super) fn explain(
        &self,
        refusal: Refusal,
        again: Option<&str>,
        caller: Option<&Remembered<TokenMemo>>,
        request_id: &str,
        snapshot: &Snapshot,
    ) -> Refusal {
        if matches!(refusal, Refusal::Redirect { .. } | Refusal::Page { .. }) {
            return refusal;
        }
        let (who, refusal) = match refusal {
            Refusal::ToPerson { who, refusal } => (Some(who), *refusal),
            refusal => (None, refusal),
        };
        let happened = Happened {
            reason: refusal.reason(),
            retry_after: refusal.retry_after(),
            again,
            from: self.from.as_ref().and_then(|from| Some(host_and_path(from.to_str().ok()?)?.1)),
            caller: caller.map(|caller| caller.known_as()).or(who.as_deref()),
            request_id,
            languages: self.languages.as_ref().and_then(|value| value.to_str().ok()),
        };
        let page = pages::happened(&happened, snapshot.identity.as_deref(), self.mount.as_ref());
        Refusal::Page { page, refusal: Box::new(refusal) }
    }
}

/// Host without port, and path with query, of a URL.
fn host_and_path(url: &str) -> Option<(&str, &str)> {
    let rest = url.split_once("://")?.1;
    let (authority, path) = rest.split_at(rest.find('/')?);
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    Some((authority.get(..end)?, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_a_person_came_from_is_found() {
        for (url, found) in [
            ("https://app.example.com/a?b=c", Some(("app.example.com", "/a?b=c"))),
            ("http://app.example.com:8080/", Some(("app.example.com", "/"))),
            ("http://[::1]:8080/a", Some(("[::1]", "/a"))),
            ("https://app.example.com", None),
            ("about:blank", None),
        ] {
            assert_eq!(host_and_path(url), found, "{url}");
        }
    }
}
