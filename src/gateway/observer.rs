//! What watches a decision while it is made.

use std::sync::Arc;

use http::HeaderMap;

use super::authenticate::Caller;
use super::client::ClientAddress;
use super::exchange_ids::ExchangeIds;
use super::refusal::Refusal;
use super::route::Route;
use super::target::Target;
use crate::limit::Limit;
use crate::reason::Reason;
use crate::token::Issuer;

/// Watches a decision: the record of a request that is served, or the story that `explain` tells.
///
/// An observer learns what each step found, in order. Only [`Observer::count`] has a say: whether a
/// limit has room is the one answer that depends on other requests.
pub trait Observer {
    /// The client's address is known. `headers`: as received.
    fn arrived(&mut self, client: &ClientAddress, headers: &HeaderMap);

    /// The target has one meaning.
    fn targeted(&mut self, target: &Target);

    /// It is the back-channel logout endpoint of this issuer.
    fn logout(&mut self, issuer: &Issuer);

    /// This route takes the request.
    fn routed(&mut self, route: &Route, target: &Target);

    /// A limit of this route counts the request.
    ///
    /// # Errors
    /// [`Refusal::Limited`]
    fn count(
        &mut self,
        route: &Route,
        limit: &Arc<Limit>,
        key: LimitKey<'_>,
    ) -> Result<(), Refusal>;

    /// The credentials were read; `None`: there are none, and none are needed. `route`: the one
    /// that they were read for.
    fn authenticated(&mut self, route: &Route, caller: Option<&Caller>);

    /// Authentication or authorization refuses, but the request goes on without a caller: the route
    /// does not enforce, or the endpoint decides for itself.
    fn tolerated(&mut self, route: &Route, refusal: &Refusal);

    /// The request may take this route, for this reason: one of those of a pass, or that of the
    /// refusal that was tolerated.
    fn granted(&mut self, route: &Route, reason: Reason);

    /// The ids that the upstream is given.
    fn ids(&mut self) -> &ExchangeIds;
}

/// What a limit counts by.
#[derive(Clone, Copy, Debug)]
pub enum LimitKey<'a> {
    /// The client's address.
    Client(&'a ClientAddress),
    /// The caller's subject.
    Subject(&'a Caller),
}
