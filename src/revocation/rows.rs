//! Revocations as rows of the store.

use super::Retention;
use crate::store::{RevocationRow, Store, StoreError};
use crate::token::{Revocation, RevokedBy, Scope};

/// Writes revocations to the store only; processes with a list follow it. Sessions and personal
/// access tokens of the built-in issuer end with them. Returns the revocations as they were written: a cut-off may be later than
/// requested ([`Store::revoke`]).
///
/// # Errors
/// The store failed; none of them was written.
pub async fn write_rows(
    store: &Store,
    revocations: Vec<Revocation>,
    retention: &Retention,
) -> Result<Vec<Revocation>, StoreError> {
    let rows: Vec<_> = revocations.iter().map(row).collect();
    let for_good: Vec<_> = revocations
        .iter()
        .filter(|revocation| retention.is_for_good(revocation))
        .map(row)
        .collect();
    let written = store.revoke_for_good(&rows, &for_good).await?;
    Ok(revocations
        .into_iter()
        .zip(written)
        .map(|(revocation, at)| Revocation { at: at.cast_unsigned(), ..revocation })
        .collect())
}

/// A revocation as a row of the store.
pub fn row(revocation: &Revocation) -> RevocationRow {
    let Revocation { scope, by, value, at } = revocation;
    RevocationRow {
        kind: by.as_str().to_owned(),
        value: value.to_string(),
        scope: written(scope),
        revoked_at: at.cast_signed(),
        seq: 0,
    }
}

pub(super) fn revocation(row: &RevocationRow) -> Option<Revocation> {
    let by = RevokedBy::ALL.into_iter().find(|by| by.as_str() == row.kind);
    let (Some(by), Some(scope)) = (by, read_scope(&row.scope)) else {
        tracing::error!(
            kind = row.kind,
            scope = row.scope,
            "a revocation in the store cannot be read"
        );
        return None;
    };
    Some(Revocation {
        scope,
        by,
        value: row.value.as_str().into(),
        at: row.revoked_at.cast_unsigned(),
    })
}

pub(super) fn read_scope(written: &str) -> Option<Scope> {
    if written == "*" {
        return Some(Scope::Every);
    }
    written.strip_prefix('=').map(|iss| Scope::Issuer(iss.into()))
}

/// A scope as text in the table.
pub fn written(scope: &Scope) -> String {
    match scope {
        Scope::Every => "*".to_owned(),
        Scope::Issuer(iss) => format!("={iss}"),
    }
}
