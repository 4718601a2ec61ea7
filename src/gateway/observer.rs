//! The observer of a decision while it is made.

use std::sync::Arc;

use http::HeaderMap;
use http::request::Parts;

use super::authenticate::Caller;
use super::client::ClientAddress;
use super::dialect::Dialect;
use super::exchange_ids::ExchangeIds;
use super::refusal::Refusal;
use super::route::Route;
use super::second_target::SecondTarget;
use super::target::Target;
use crate::limit::Limit;
use crate::reason::Reason;
use crate::token::Issuer;

/// Observes a decision: for the record of a request that is served, or for the output of `explain`.
///
/// An observer learns the result of each step, in order. Only [`Observer::count`] and
/// [`Observer::confirm`] can affect the decision: whether a limit has room is the one result that
/// depends on other requests.
pub trait Observer {
    /// A proxy asks in this dialect about the request with this head.
    fn asked(&mut self, dialect: Dialect, parts: &Parts);

    /// The client's address is known. `headers`: as received.
    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap);

    /// The target has one meaning.
    fn targeted(&mut self, target: &Target);

    /// The request is for the back-channel logout endpoint of this issuer.
    fn logout(&mut self, issuer: &Issuer);

    /// This route matches the request. `headers`: as received.
    fn routed(&mut self, route: &Route, target: &Target, headers: &HeaderMap);

    /// No route takes the request. `host` is empty if the target cannot be read.
    fn unrouted(&mut self, host: &str, headers: &HeaderMap);

    /// This second target is decided next.
    fn second(&mut self, second: &SecondTarget<'_>);

    /// A limit of this route counts the request.
    ///
    /// # Errors
    /// [`Refusal::Limited`], if the limit has no room.
    fn count(
        &mut self,
        route: &Route,
        limit: &Arc<Limit>,
        key: LimitKey<'_>,
    ) -> Result<(), Refusal>;

    /// The limits that several gateways share and that have counted the request here now count it
    /// for all of them. Waits only if there is such a limit.
    ///
    /// # Errors
    /// [`Refusal::Limited`], if one of them has no room.
    fn confirm(&mut self) -> impl Future<Output = Result<(), Refusal>>;

    /// The credentials were read for `route`; `None`: there are none, and none are needed.
    fn authenticated(&mut self, route: &Route, caller: Option<&Caller>);

    /// The session of the request was not looked up: if it is live, it would be renewed, and the
    /// request would have a caller.
    fn renewable(&mut self);

    /// Authentication or authorization refuses the request, but it continues without a caller: the
    /// route does not enforce, or the endpoint decides for itself.
    fn tolerated(&mut self, route: &Route, refusal: &Refusal);

    /// The request may take this route, for this reason: one of the reasons of a pass, or the
    /// reason of the tolerated refusal.
    fn granted(&mut self, route: &Route, reason: Reason);

    /// The ids that the upstream receives.
    fn ids(&mut self) -> &ExchangeIds;
}

/// The key by which a limit counts.
#[derive(Clone, Copy, Debug)]
pub enum LimitKey<'a> {
    /// The client's address.
    Client(&'a ClientAddress),
    /// The caller's subject.
    Subject(&'a Caller),
}
