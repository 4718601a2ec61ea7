//! The proof that the limits of a route have counted a request.

use super::authenticate::{AccessRequest, Caller};
use super::matched::{Matched, Stopped};
use super::observer::{LimitKey, Observer};
use super::refusal::Refusal;
use super::route::Route;
use super::second_target::SecondTarget;
use crate::limit::KeyKind;

/// A value that limits have counted. Only the functions here make one.
///
/// ```compile_fail
/// use portcullis::gateway::counted::Counted;
/// fn skip<T>(matched: T) -> Counted<T> {
///     Counted(matched)
/// }
/// ```
#[derive(Debug)]
pub struct Counted<T>(T);

impl<'s> Counted<Matched<'s>> {
    /// Counts a request by client address, on its route and on those of an overriding method and of
    /// second targets. This comes before authentication: failed attempts must count, and a flood of
    /// bad signatures must be cheap.
    ///
    /// # Errors
    /// The request, and the refusal of a limit.
    pub async fn by_client(
        matched: Matched<'s>,
        observer: &mut impl Observer,
    ) -> Result<Self, Stopped<'s>> {
        let own = matched.route();
        let second = matched.second_targets().iter().map(SecondTarget::route);
        let mut others = matched
            .overriding_route()
            .into_iter()
            .chain(second.filter(|route| route.index != own.index));
        let mut count = |route: &Route| {
            count(route, KeyKind::Client, LimitKey::Client(matched.client()), observer)
        };
        let counted = count(own).and_then(|()| others.try_for_each(count));
        let confirmed = match counted {
            Ok(()) => observer.confirm().await,
            Err(refusal) => Err(refusal),
        };
        match confirmed {
            Ok(()) => Ok(Self(matched)),
            Err(refusal) => Err(Stopped::new(matched, refusal)),
        }
    }
}

impl Counted<Option<Caller>> {
    /// Counts a request by its caller's subject, in this process. [`Observer::confirm`] must follow.
    ///
    /// # Errors
    /// The refusal of the limit.
    pub(super) fn by_subject(
        access: &AccessRequest<'_>,
        caller: Option<Caller>,
        observer: &mut impl Observer,
    ) -> Result<Self, Refusal> {
        if let Some(caller) = &caller {
            count(access.route, KeyKind::Subject, LimitKey::Subject(caller), observer)?;
        }
        Ok(Self(caller))
    }
}

impl<T> Counted<T> {
    /// The counted value.
    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

fn count(
    route: &Route,
    kind: KeyKind,
    key: LimitKey<'_>,
    observer: &mut impl Observer,
) -> Result<(), Refusal> {
    match &route.limit {
        Some(limit) if limit.settings().key == kind => observer.count(route, limit, key),
        _ => Ok(()),
    }
}
