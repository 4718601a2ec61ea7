//! Whether a stream would be admitted by the routes that are in force now.

use http::{HeaderMap, Uri, Version, header};

use super::stream::{End, Held, Stream};
use crate::gateway::guard::{Access, Denied};
use crate::gateway::route::{Destination, Route};
use crate::gateway::snapshot::Snapshot;
use crate::gateway::step_up::StepUp;
use crate::gateway::target::Target;
use crate::reason::Reason;
use crate::token::VerifiedToken;

/// The route of a stream's request under this snapshot.
///
/// # Errors
/// [`End::RouteGone`] if no route matches, or if it leads neither to an application nor to the built-in
/// issuer.
pub(super) fn route_of<'s>(stream: &Stream, snapshot: &'s Snapshot) -> Result<&'s Route, End> {
    let headers = HeaderMap::from_iter([(header::HOST, stream.authority.clone())]);
    let uri = Uri::from(stream.path.clone());
    let target = Target::parse(&stream.method, &uri, Version::HTTP_11, &headers);
    let route = target.ok().and_then(|target| {
        let route = snapshot.routes.find_route(&stream.method, &target).ok()?;
        let has_streams =
            matches!(route.destination, Destination::Upstream(_) | Destination::Identity(_));
        has_streams.then_some(route)
    });
    route.ok_or(End::RouteGone)
}

/// Whether the caller of a stream may still use this route. What was true when the request was
/// decided is not asked again: the signature, the expiry and the origin.
///
/// # Errors
/// Why not.
pub(super) fn admits(route: &Route, held: &Held, snapshot: &Snapshot) -> Result<(), End> {
    let guard = &route.guard;
    if guard.access == Access::Public || !guard.enforce {
        return Ok(());
    }
    let Some((token, place)) = &held.caller else {
        let is_open = guard.access == Access::Optional;
        return if is_open { Ok(()) } else { Err(Denied::NoCaller.into()) };
    };
    if !is_accepted(token, snapshot) {
        return Err(End::NotAllowed(Reason::TokenIssuer));
    }
    if !guard.takes(*place) {
        return Err(Denied::NoCaller.into());
    }
    guard.demands.check(token)?;
    // The login was recent enough when the request was decided.
    let strength = StepUp { max_age: None, ..guard.demands.step_up.clone() };
    Ok(strength.check(token, 0).map_err(Denied::StepUp)?)
}

/// Whether there still is a section for the issuer of a token.
fn is_accepted(token: &VerifiedToken, snapshot: &Snapshot) -> bool {
    if snapshot.issuers.certificates().is_some_and(|certificates| token.is_from(certificates)) {
        return true;
    }
    snapshot.issuers.iter().any(|issuer| {
        let settings = issuer.settings();
        settings.name == *token.issuer_name()
            && settings.issuer.as_deref().is_none_or(|iss| token.issuer() == Some(iss))
    })
}
