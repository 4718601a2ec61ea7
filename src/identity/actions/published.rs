//! What anyone may read: the keys and the metadata.

use bytes::Bytes;
use serde_json::json;

use crate::identity::Policy;

/// `algorithms`: those of every key whose tokens are valid. After a change of algorithm there are
/// several.
pub(super) fn metadata(policy: &Policy, algorithms: &[&str]) -> Bytes {
    let issuer = &policy.issuer;
    let metadata = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "id_token_signing_alg_values_supported": algorithms,
        "subject_types_supported": ["public"],
        // No authorization endpoint: people log in at the endpoints of the reference.
        "response_types_supported": [],
        "grant_types_supported": [],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti", "sid", "roles", "email", "name"],
    });
    Bytes::from(metadata.to_string())
}
