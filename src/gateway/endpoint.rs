//! Passes a request to an endpoint of the built-in issuer: only what the gateway knows about it.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::Gateway;
use super::authenticate::Caller;
use super::authorize::Permit;
use super::body::Body;
use super::exchange::{Exchange, count};
use super::matched::{Matched, MatchedParts};
use super::navigation::{asked_by, for_client};
use super::observer::Observer;
use super::refusal::Refusal;
use super::route::{NoRoute, Route};
use super::snapshot::Snapshot;
use super::streams::End;
use super::upload::{ClientBody, RequestBody, UploadFailure};
use super::upstream::UpstreamFailure;
use crate::identity::cookie::logins_in;
use crate::identity::endpoints::{Action, Budget, CallerNeeded, Endpoint};
use crate::identity::request::{LONGEST_BODY, account_named};
use crate::identity::{Identity, IdentityError, Mount, Policy, Registration, Request};
use crate::limit::{Cell, Exceeded, KeyKind, Limit};
use crate::reason::Reason;
use crate::token::VerifiedToken;

impl Gateway {
    /// The response of an endpoint of the built-in issuer. If the client is a person, a refusal
    /// becomes a page of the same status that says what to do.
    pub(super) async fn answer_endpoint(
        &self,
        snapshot: &Snapshot,
        permit: Permit<'_>,
        mount: &Mount,
        body: RequestBody,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        let (Some(identity), Some(policy)) = (self.identity(), &snapshot.identity) else {
            return Err(NoRoute::NotFound.into());
        };
        let mut asked = asked_by(permit.matched());
        let can_end = permit.caller().is_some() && needs_caller(permit.matched());
        let answered = match read_body(body, snapshot, can_end, exchange).await {
            Ok(body) => {
                if let Some(asked) = &mut asked {
                    asked.filled(&body);
                }
                self.run_endpoint(identity, policy, permit, mount, body, exchange).await
            }
            Err(refusal) => Err(refusal),
        };
        answered.map_err(|refusal| {
            for_client(asked.as_ref(), policy, mount, refusal, exchange.request_id())
        })
    }

    /// Counts the request by the built-in limits. The rest is done on the background runtime.
    async fn run_endpoint(
        &self,
        identity: &Arc<Identity>,
        policy: &Arc<Policy>,
        permit: Permit<'_>,
        mount: &Mount,
        body: Bytes,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Refusal> {
        let route = permit.route();
        let (matched, caller, rejected) = permit.into_parts();
        let MatchedParts { parts, target, client, endpoint, .. } = *matched.into_parts();
        let Some(Ok(matched)) = endpoint.map(|endpoint| *endpoint) else {
            return Err(NoRoute::NotFound.into());
        };
        let (endpoint, origin) = (matched.endpoint(), matched.origin());
        let (caller, rejected) = self.still_accepted(endpoint.caller, caller, rejected)?;
        let token = caller.as_ref().map(|caller| &***caller.token());
        if token.is_some_and(VerifiedToken::is_personal) && !endpoint.takes_personal_tokens() {
            // Nothing is counted: its holder must not use up what its owner needs to revoke it.
            return Err(Refusal::Identity(Box::new(IdentityError::PersonalToken.into())));
        }
        let named = match token {
            Some(_) => None,
            None => account_named(&parts.headers, &body),
        };
        if let Some(budget) = budget_for(endpoint, &parts.headers, policy) {
            let client = client.ip();
            let who = (token, named.as_deref());
            let counted = self.count(route, identity, budget, client, who, exchange).await;
            if let Err(limited) = counted {
                // Otherwise, guesses at one account from many addresses would use up the limit by
                // address, and every login would be refused.
                exchange.give_back(&identity.budgets().all());
                return Err(limited);
            }
        }
        let request = Request {
            endpoint,
            parameter: matched.into_parameter(),
            mount: mount.clone(),
            host: target.host().to_owned(),
            query: target.query().map(str::to_owned),
            headers: parts.headers,
            body,
            client: client.ip(),
            origin,
            caller: caller.map(|caller| Arc::new((***caller.token()).clone())),
        };
        let answered = identity.answer(request, Arc::clone(policy)).await;
        if let Err(refused) = &answered
            && matches!(
                refused.error,
                IdentityError::Overloaded(_) | IdentityError::NoPasswordLogin
            )
        {
            // No password was tried. A flood of such requests takes no places either.
            exchange.give_back(&identity.budgets().all());
        }
        if let Err(refused) = &answered
            && matches!(refused.error, IdentityError::CodeRequired | IdentityError::EmailUnverified)
        {
            // The password was right.
            exchange.settle_cells(StatusCode::OK.as_u16());
        }
        match answered {
            Ok(response) => Ok(response.map(Body::Bytes)),
            // If the endpoint needs credentials, reports why the ones sent do not count.
            Err(refused) => Err(match (&refused.error, rejected) {
                (IdentityError::NoCaller, Some(rejected)) => *rejected,
                (IdentityError::NothingToEnd(missing), Some(refusal)) => {
                    Refusal::Lacking { missing: *missing, refusal }
                }
                _ => Refusal::Identity(refused),
            }),
        }
    }

    /// Looks again whether the caller's token is revoked or has expired, as its body may have taken
    /// long. An endpoint that a caller is welcome at goes on without one, as if the request had just
    /// arrived.
    fn still_accepted(
        &self,
        needed: CallerNeeded,
        caller: Option<Caller>,
        rejected: Option<Box<Refusal>>,
    ) -> Result<(Option<Caller>, Option<Box<Refusal>>), Refusal> {
        let now = self.telemetry.clock.unix_seconds();
        let (reason, end) = match caller.as_ref().map(Caller::token) {
            Some(token) if self.streams.is_revoked(token) => (Reason::TokenRevoked, End::Revoked),
            Some(token) if token.accepted_until() <= now => (Reason::TokenExpired, End::Expired),
            _ => return Ok((caller, rejected)),
        };
        let refusal = Refusal::Ended { reason, why: end.as_str() };
        match needed {
            CallerNeeded::Yes => Err(refusal),
            CallerNeeded::Welcome | CallerNeeded::No => Ok((None, Some(Box::new(refusal)))),
        }
    }

    fn count_built_in(
        &self,
        limit: &Arc<Limit>,
        taken: Result<Cell, Exceeded>,
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        let exceeds = || {
            self.telemetry.metrics.rate_limited(limit.name()).inc();
        };
        count(exceeds, limit, taken, exchange)
    }

    /// Counts a request by the built-in limits and by the limit of the route: first by its address and
    /// its session, then by the account that it names. If the address is refused, or the client leaves
    /// while it waits, the account is not counted. A request that must name an account but does not is
    /// refused anyway, costs nothing, and takes no place in a limit.
    async fn count(
        &self,
        route: &Route,
        identity: &Identity,
        budget: Budget,
        client: IpAddr,
        (caller, named): (Option<&VerifiedToken>, Option<&str>),
        exchange: &mut Exchange,
    ) -> Result<(), Refusal> {
        let account = caller.map(VerifiedToken::subject).or(named);
        let account = account.filter(|_| budget.names_account());
        if budget.names_account() && account.is_none() {
            return Ok(());
        }
        let own = route.limit.as_ref();
        let budgets = identity.budgets();
        if let Some((limit, taken)) = budgets.by_address(budget, client, own.map(|own| &**own)) {
            self.count_built_in(&limit, taken, exchange)?;
        }
        let session = caller.and_then(VerifiedToken::sid);
        if let Some((limit, taken)) = session.and_then(|sid| budgets.by_session(budget, sid)) {
            self.count_built_in(&limit, taken, exchange)?;
        }
        if budget == Budget::Login {
            let (limit, taken) = budgets.guess(client);
            self.count_built_in(limit, taken, exchange)?;
        }
        exchange.confirm().await?;
        let Some(account) = account else { return Ok(()) };
        if let Some((limit, taken)) = budgets.by_account(budget, account) {
            self.count_built_in(&limit, taken, exchange)?;
        }
        exchange.confirm().await?;
        if let Some(limit) = own.filter(|own| own.settings().key == KeyKind::ClientAndAccount) {
            let taken = limit.take_client_and_account(client, account);
            count(|| route.count_limited(), limit, taken, exchange)?;
        }
        exchange.confirm().await
    }
}

/// The budget that a request at this endpoint uses.
fn budget_for(endpoint: &Endpoint, headers: &HeaderMap, policy: &Policy) -> Option<Budget> {
    // An action that the configuration does not offer is refused anyway.
    if endpoint.action == Action::Register && policy.registration != Registration::Open {
        return None;
    }
    // Any page can send a browser to this URL. Without the cookie of a login, no provider is asked.
    endpoint.budget.filter(|budget| *budget != Budget::Callback || logins_in(headers).is_some())
}

/// Whether the endpoint refuses requests without a caller.
fn needs_caller(matched: &Matched<'_>) -> bool {
    matches!(matched.endpoint(), Some(Ok(matched)) if matched.endpoint().caller == CallerNeeded::Yes)
}

/// Reads the whole body, which is short. `can_end`: only as long as the caller has access, like an
/// upload to an application.
async fn read_body(
    body: RequestBody,
    snapshot: &Snapshot,
    can_end: bool,
    exchange: &mut Exchange,
) -> Result<Bytes, Refusal> {
    // The decision has already checked the declared length.
    let most = snapshot.max_body.min(LONGEST_BODY);
    let (mut body, upload) =
        ClientBody::new(body, most, snapshot.body_idle_timeout, Vec::new(), None);
    exchange.set_upload(upload);
    let reading = async move {
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(UpstreamFailure::from)?.data_ref() {
                read.extend_from_slice(data);
            }
        }
        Ok(read.freeze())
    };
    let mut reading = pin!(async move {
        let late = |_| UpstreamFailure::from(UploadFailure::Idle);
        timeout(LONGEST_READ, reading).await.map_err(late)?
    });
    if can_end { exchange.unless_ended(reading.as_mut()).await? } else { reading.await }
}

/// How long a body may take. The request is decided about when its head arrives, under the
/// configuration and the token of that time.
const LONGEST_READ: Duration = Duration::from_mins(1);
