//! Revocations together with a store.

use super::*;
use crate::store::test_settings;
use crate::token::{Algorithm, Algorithms, ClaimPath, Issuer, IssuerSettings, KeySet, Scope};

const NOW: u64 = 1_800_000_000;

fn issuers(lifetime: Duration) -> Issuers {
    let algorithms = Algorithms::from(Algorithm::HS256);
    let settings = IssuerSettings {
        name: "corp".into(),
        issuer: Some("corp".to_owned()),
        audience: None,
        algorithms,
        roles: ClaimPath::new(["roles"]),
        subject: ClaimPath::new(["sub"]),
        leeway: Duration::from_secs(30),
        max_token_lifetime: lifetime,
        logout_audience: None,
        is_built_in: false,
    };
    let keys = KeySet::from_secret(b"a secret for tests", algorithms).unwrap();
    Issuers::new(vec![Arc::new(Issuer::new(settings, keys))]).unwrap()
}

async fn store(folder: &tempfile::TempDir) -> Store {
    Store::open(&test_settings(folder.path())).await.unwrap()
}

async fn load(store: Option<Store>, clock: &Clock) -> Arc<Revocations> {
    let retention = Retention::for_issuers(&issuers(Duration::from_hours(1)));
    Revocations::load(store, retention, clock.clone(), Metrics::new()).await.unwrap()
}

fn sid(value: &str, scope: Scope, at: u64) -> Revocation {
    Revocation { scope, by: RevokedBy::Sid, value: value.into(), at }
}

fn corp() -> Scope {
    Scope::Issuer("corp".into())
}

/// Pruning waits for the one connection that writes; a revocation that another process has
/// written does not wait for pruning.
#[tokio::test]
async fn revocations_are_read_while_pruning_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (store(&folder).await, store(&folder).await);
    let revocations = load(Some(own.clone()), &Clock::system()).await;
    let _held = own.hold_writer().await;
    let written = sid("s", Scope::Every, 1);
    let known = async {
        other.revoke(&[row(&written)]).await.unwrap();
        while !revocations.list().covers(&written) {
            tokio::task::yield_now().await;
        }
    };
    // Pruning comes first, and gives up after ten seconds.
    tokio::select! {
        () = revocations.follow_and_prune(None, Duration::from_millis(1)) => unreachable!(),
        known = tokio::time::timeout(Duration::from_secs(5), known) => known.unwrap(),
    }
}

#[tokio::test]
async fn revocations_survive_a_restart_and_reach_other_processes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let here = load(Some(store(&folder).await), &clock).await;
    let there = load(Some(store(&folder).await), &clock).await;
    let all: Vec<_> = [Scope::Every, corp(), Scope::Issuer("".into()), Scope::Issuer("*".into())]
        .into_iter()
        .enumerate()
        .flat_map(|(index, scope)| {
            RevokedBy::ALL.map(|by| Revocation {
                scope: scope.clone(),
                by,
                value: "v".into(),
                at: NOW + index as u64,
            })
        })
        .collect();
    here.revoke_all(all.clone()).await.unwrap();
    assert_eq!((here.list().len(), there.list().len()), (16, 0));
    there.catch_up().await.unwrap();
    let later = load(Some(store(&folder).await), &clock).await;
    for list in [there.list(), later.list()] {
        assert_eq!(list.len(), 16);
        assert_eq!(
            (list.cutoff("corp", "v"), list.cutoff("", "v"), list.cutoff("*", "v")),
            (Some(NOW + 1), Some(NOW + 2), Some(NOW + 3))
        );
        assert_eq!(list.cutoff("another", "v"), Some(NOW));
    }
}

/// A token that was accepted before its `iat` is covered by the cut-off, whoever revokes, and
/// after a restart.
#[tokio::test]
async fn a_token_from_the_future_is_revoked_with_its_subject() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let kept = store(&folder).await;
    let (here, there) =
        (load(Some(kept.clone()), &clock).await, load(Some(kept.clone()), &clock).await);
    let unkept = load(None, &clock).await;
    let issuers = issuers(Duration::from_hours(1));
    let token = |subject: &str, iat: u64| {
        let claims =
            serde_json::json!({ "iss": "corp", "sub": subject, "iat": iat, "exp": NOW + 600 });
        let claims = claims.as_object().unwrap().clone();
        issuers.assume("corp", claims, NOW).unwrap().as_if_verified().clone()
    };
    let subject = |value: &str| Revocation {
        scope: Scope::Every,
        by: RevokedBy::Subject,
        value: value.into(),
        at: NOW,
    };
    for revocations in [&here, &there, &unkept] {
        for name in ["operator", "command", "logout"] {
            revocations.list().note_if_early(&token(name, NOW + 20), NOW);
        }
    }
    for revocations in [&here, &unkept] {
        revocations.revoke(subject("operator")).await.unwrap();
        let logout = LogoutTokenRow { name: "t".into(), expires_at: i64::MAX };
        assert!(revocations.revoke_once(subject("logout"), logout).await.unwrap());
        for name in ["operator", "logout"] {
            assert!(revocations.list().revoked_by(&token(name, NOW + 20)).is_some(), "{name}");
            assert!(
                revocations.list().revoked_by(&token(name, NOW + 21)).is_none(),
                "{name}: it is issued later"
            );
        }
    }
    write_rows(&kept, vec![subject("command")], &Retention::default()).await.unwrap();
    here.catch_up().await.unwrap();
    let later = load(Some(kept), &clock).await;
    for (name, revocations) in
        [("command", &here), ("command", &later), ("operator", &later), ("logout", &later)]
    {
        assert!(revocations.list().revoked_by(&token(name, NOW + 20)).is_some(), "{name}");
    }
    there.catch_up().await.unwrap();
    assert!(there.list().revoked_by(&token("operator", NOW + 20)).is_some());
}

/// A revocation made here is also read back from the store. It must not affect what was issued
/// since.
#[tokio::test]
async fn tokens_issued_after_a_cut_off_stay_valid() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let here = load(Some(store(&folder).await), &clock).await;
    let issuers = issuers(Duration::from_hours(1));
    let token = |iat: u64| {
        let claims = serde_json::json!({ "iss": "corp", "sub": "u", "iat": iat, "exp": NOW + 600 });
        let claims = claims.as_object().unwrap().clone();
        issuers.assume("corp", claims, NOW).unwrap().as_if_verified().clone()
    };
    let subject =
        Revocation { scope: Scope::Every, by: RevokedBy::Subject, value: "u".into(), at: NOW };
    here.list().note_if_early(&token(NOW + 5), NOW);
    here.revoke(subject).await.unwrap();
    let (before, after) = (token(NOW + 5), token(NOW + 6));
    here.list().note_if_early(&after, NOW);
    for _ in 0..2 {
        assert!(here.list().revoked_by(&before).is_some());
        assert!(here.list().revoked_by(&after).is_none());
        here.catch_up().await.unwrap();
    }
}

#[tokio::test]
async fn a_failing_store_revokes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let revocations = load(Some(store.clone()), &Clock::fixed(NOW)).await;
    store.close().await;
    assert!(revocations.revoke(sid("s", Scope::Every, NOW)).await.is_err());
    assert!(revocations.list().is_empty());
}

#[tokio::test]
async fn a_cancelled_revocation_completes() {
    let folder = tempfile::tempdir().unwrap();
    let revocations = load(Some(store(&folder).await), &Clock::fixed(NOW)).await;
    let asking = revocations.revoke(sid("s", Scope::Every, NOW));
    // Polled once and dropped.
    let _ = tokio::time::timeout(Duration::ZERO, asking).await;
    revocations.writes.close();
    revocations.writes.wait().await;
    assert_eq!(revocations.list().len(), 1);
}

#[tokio::test]
async fn revocations_are_read_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    let here = load(Some(store(&folder).await), &Clock::fixed(NOW)).await;
    let count = REVOCATIONS_PAGE * 2;
    here.revoke_all((0..count).map(|index| sid(&index.to_string(), corp(), NOW)).collect())
        .await
        .unwrap();
    assert_eq!(load(Some(store(&folder).await), &Clock::fixed(NOW)).await.list().len(), count);
}

#[tokio::test]
async fn revocations_are_kept_as_long_as_a_token_could_be_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let revocations = load(Some(store(&folder).await), &clock).await;
    revocations
        .revoke_all(vec![
            sid("a", corp(), NOW),
            sid("b", Scope::Every, NOW),
            sid("c", Scope::Issuer("gone".into()), NOW),
        ])
        .await
        .unwrap();
    // One hour, and half a minute of leeway at both ends.
    clock.advance(Duration::from_mins(61));
    revocations.prune().await.unwrap();
    assert_eq!(revocations.list().len(), 3);
    // A longer lifetime that is configured later applies to existing entries.
    revocations.extend_retention(&issuers(Duration::from_hours(3)));
    // A shorter one does not: the lifetime may be raised again.
    revocations.extend_retention(&issuers(Duration::from_secs(1)));
    clock.advance(Duration::from_hours(2));
    revocations.prune().await.unwrap();
    assert_eq!(revocations.list().len(), 3);
    clock.advance(Duration::from_secs(2));
    revocations.prune().await.unwrap();
    assert_eq!(
        revocations.list().len(),
        2,
        "revocations for every issuer, and for one that is not in the file, stay for a day"
    );
    let pass = async |hours| {
        for _ in 0..hours {
            clock.advance(Duration::from_hours(1));
            revocations.prune().await.unwrap();
        }
    };
    pass(3).await;
    assert_eq!(load(Some(store(&folder).await), &clock).await.list().len(), 2);
    pass(24).await;
    assert!(revocations.list().is_empty());
    let later = load(Some(store(&folder).await), &clock).await;
    assert_eq!(later.list().len(), 1, "the last row stays, so that no number is used twice");
}

/// A token that was received counts once, also after a clock was ahead.
#[tokio::test]
async fn a_clock_that_is_ahead_forgets_no_logout_token() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let revocations = load(Some(store(&folder).await), &clock).await;
    let token = LogoutTokenRow { name: "t".into(), expires_at: (NOW + 600).cast_signed() };
    let receive =
        async || revocations.revoke_once(sid("s", corp(), NOW), token.clone()).await.unwrap();
    assert!(receive().await);
    for time in [2 * NOW, NOW] {
        clock.set(time);
        revocations.prune().await.unwrap();
        assert!(!receive().await);
    }
    clock.advance(Duration::from_hours(1));
    revocations.prune().await.unwrap();
    assert!(!receive().await);
    clock.advance(Duration::from_hours(1));
    revocations.prune().await.unwrap();
    assert!(receive().await, "it is over, and forgotten");
}

/// Whether a clock is ahead at the start or later, for a minute or for longer, the row and the
/// entry stay until the time has really passed. Restarts do not add up to more.
#[tokio::test]
async fn correcting_a_clock_restores_no_revoked_token() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::fixed(NOW);
    let revocations = load(Some(store(&folder).await), &clock).await;
    revocations.revoke_all(vec![sid("a", corp(), NOW), sid("b", corp(), NOW)]).await.unwrap();
    clock.set(NOW + 2 * 24 * 3600);
    revocations.prune().await.unwrap();
    assert_eq!(revocations.list().len(), 2);
    for _ in 0..20 {
        // Another process, whose own clock starts at zero.
        let ahead = Clock::fixed(NOW + 2 * 24 * 3600);
        let again = load(Some(store(&folder).await), &ahead).await;
        again.prune().await.unwrap();
        ahead.advance(Duration::from_mins(1));
        again.prune().await.unwrap();
        assert_eq!(again.list().len(), 2);
    }
    clock.set(NOW);
    let again = load(Some(store(&folder).await), &clock).await;
    assert!(again.list().covers(&sid("a", corp(), NOW)));
    // A gateway that is restarted often still removes entries.
    for hour in 1..=4 {
        let restarted = Clock::fixed(NOW + hour * 3600);
        let again = load(Some(store(&folder).await), &restarted).await;
        restarted.advance(Duration::from_hours(1));
        again.prune().await.unwrap();
    }
    let again = load(Some(store(&folder).await), &clock).await;
    assert_eq!(again.list().len(), 1);
}

#[tokio::test]
async fn without_a_store_revocations_are_kept_in_memory() {
    let revocations = load(None, &Clock::fixed(NOW)).await;
    revocations.revoke(sid("a", corp(), NOW)).await.unwrap();
    assert!(revocations.list().len() == 1 && !revocations.is_durable());
    assert!(load(None, &Clock::fixed(NOW)).await.list().is_empty());
}
