//! Others' software: what their libraries mint is accepted, and refused, for the right reason; the files that the guides show work with
//! tokens in the form that each issuer gives them; a certified OpenID provider is followed through discovery, rotation and outage.

use std::collections::BTreeMap;

use serde_json::json;

use crate::harness::Gateway;
use crate::harness::peers::Peer;

const HMACS: [&str; 3] = ["HS256", "HS384", "HS512"];
const SIGNATURES: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// What is wrong with a token, and the reason of its refusal.
const FAULTS: [(&str, &str); 15] = [
    ("another's key", "token_signature"),
    ("an unknown kid", "token_key_unknown"),
    ("expired", "token_expired"),
    ("not yet valid", "token_not_yet_valid"),
    ("another audience", "token_audience"),
    ("another issuer", "token_issuer"),
    ("no exp", "token_claims"),
    ("a longer life than allowed", "token_lifetime"),
    ("alg none", "token_algorithm"),
    ("crit", "token_malformed"),
    ("encrypted", "token_malformed"),
    ("a public key as a secret", "token_algorithm"),
    ("ES512", "token_algorithm"),
    ("ES256K", "token_algorithm"),
    ("Ed25519", "token_algorithm"),
];

#[tokio::test]
async fn tokens_of_pyjwt_and_joserfc() {
    let Some(peer) = Peer::start("mint.py") else { return };
    tokens_of(peer, &[("PyJWT", &SIGNATURES, 12), ("joserfc", &SIGNATURES, 10)]).await;
}

#[tokio::test]
async fn tokens_of_jose_and_jsonwebtoken() {
    let Some(peer) = Peer::start("mint.js") else { return };
    let all_but_eddsa: Vec<&str> = SIGNATURES.into_iter().filter(|name| *name != "EdDSA").collect();
    tokens_of(peer, &[("jose", &SIGNATURES, 14), ("jsonwebtoken", &all_but_eddsa, 10)]).await;
}

/// Takes what the libraries mint, each with these signature algorithms, and refuses so many faults of each.
async fn tokens_of(mut peer: Peer, libraries: &[(&str, &[&str], usize)]) {
    let made = peer.ask(json!({
        "issuers": { "hmac": "https://peer.test/hmac", "jwks": "https://peer.test/jwks", "pem": "https://peer.test/pem" },
        "claims": { "sub": "Ann Müller", "aud": ["wiki", "reports"], "roles": ["auditor"] },
    }));
    let text = |name: &str| made["pems"][name].as_str().unwrap().to_owned();
    let algorithms = SIGNATURES.map(|name| format!("'{name}'")).join(",");
    let gateway = Gateway::setup(&format!(
        "route = [{{ path = '/*', upstream = 'app', roles = ['auditor'] }}]\n\
         [issuer.hmac]\nissuer = 'https://peer.test/hmac'\naudience = ['reports']\nalgorithms = ['HS256','HS384','HS512']\nsecret = {{ file = 'secret' }}\n\
         [issuer.jwks]\nissuer = 'https://peer.test/jwks'\naudience = ['reports']\nalgorithms = [{algorithms}]\njwks_file = 'keys.json'\n\
         [issuer.pem]\nissuer = 'https://peer.test/pem'\naudience = ['reports']\nalgorithms = [{algorithms}]\n\
         public_keys = ['rsa.pem','p256.pem','p384.pem','ed25519.pem']\n"
    ))
    .file("secret", made["secret"].as_str().unwrap())
    .file("keys.json", made["jwks"].to_string())
    .file("rsa.pem", text("rsa"))
    .file("p256.pem", text("p256"))
    .file("p384.pem", text("p384"))
    .file("ed25519.pem", text("ed25519"))
    .start()
    .await;
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for minted in made["tokens"].as_array().unwrap() {
        let [library, what, token] = ["library", "what", "token"].map(|name| minted[name].as_str().unwrap());
        *seen.entry((library, what)).or_default() += 1;
        let response = gateway.get("/").bearer(token).send().await;
        if HMACS.contains(&what) || SIGNATURES.contains(&what) {
            assert_eq!(response.status, 200, "{library} {what}: {response:?}");
            let received = gateway.upstream().last();
            assert_eq!(received.header("x-auth-user"), Some("Ann M%C3%BCller"), "{library} {what}");
            assert_eq!(received.header("x-auth-roles"), Some("auditor"), "{library} {what}");
        } else {
            let reason = FAULTS.iter().find(|(fault, _)| *fault == what).map_or("no such fault", |(_, reason)| reason);
            assert_eq!(response.refusal(), (401, reason.to_owned()), "{library} {what}: {token}");
        }
    }
    for (library, signatures, faults) in libraries {
        for (algorithms, times) in [(&HMACS[..], 1), (signatures, 2)] {
            for algorithm in algorithms {
                assert_eq!(seen.remove(&(library, algorithm)), Some(times), "{library} {algorithm}");
            }
        }
        let refused = seen.keys().filter(|(of, _)| of == library).count();
        assert_eq!(refused, *faults, "{library}: {seen:?}");
    }
}
