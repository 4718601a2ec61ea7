//! The answer to a request that a route redirects.

use http::{HeaderValue, Response, StatusCode, header};

use super::authorize::Permit;
use super::body::Body;
use super::guard::Access;
use super::redirect::Redirect;
use super::refusal::Refusal;
use super::target::TargetError;
use super::token_names::TokenNames;

/// The answer to a request that a route redirects. Only [`Redirected::new`] makes one, from a
/// [`Permit`].
#[derive(Debug)]
pub struct Redirected {
    status: StatusCode,
    address: HeaderValue,
    /// Whether the answer is for everyone.
    is_public: bool,
}

impl Redirected {
    /// Redirects a permitted request.
    ///
    /// # Errors
    /// [`Refusal::Target`], if the request lacks the host that the address needs;
    /// [`Refusal::Rewrite`], if removing a prefix would split a segment.
    pub(super) fn new(
        permit: &Permit<'_>,
        redirect: &Redirect,
        names: &TokenNames,
    ) -> Result<Self, Refusal> {
        let (route, target) = (permit.route(), permit.matched().target());
        // A token in the query is for the gateway alone.
        let parameter = route.guard.token_from.query.then_some(names.query.as_str());
        let sent = target.rewritten(route.strip_segments, parameter)?;
        let address = redirect
            .address(target, &sent)
            .map_err(|ambiguity| Refusal::Target(TargetError::Ambiguous(ambiguity)))?;
        let is_public = route.guard.access == Access::Public;
        Ok(Self { status: redirect.status(), address, is_public })
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The value of `Location`.
    pub fn address(&self) -> &HeaderValue {
        &self.address
    }

    /// The response.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::LOCATION, self.address);
        if !self.is_public {
            // Caches keep 301 and 308 without being asked to (RFC 9110 §15.1).
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response
    }
}
