//! Only a token that was signed with the issuer's key makes a caller, and every other input is
//! refused without a panic.
//!
//! Input: one byte that selects the kind of the rest: a complete token; a header and claims,
//! separated by a line feed, which are signed with the issuer's key and with another; a JWK Set; a
//! PEM file.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use portcullis::token::{Algorithm, Algorithms, ClaimPath, Issuer, IssuerSettings, Issuers, KeySet, inspect, install_crypto, key_from_pem};

const NOW: u64 = 1_780_000_000;
const LEEWAY: u64 = 30;
const SECRET: &[u8] = b"the secret of the issuer, of more than thirty-two bytes";
const OTHER: &[u8] = b"a secret of another issuer, of more than thirty-two bytes";

static ISSUERS: LazyLock<Issuers> = LazyLock::new(|| {
    install_crypto();
    let algorithms: Algorithms = [Algorithms::parse("HS256").expect("an algorithm")].into_iter().collect::<Algorithms>();
    let issuer = |name: &str, iss: Option<&str>| {
        let settings = IssuerSettings {
            name: name.into(),
            issuer: iss.map(str::to_owned),
            audience: iss.map(|_| vec!["app".to_owned()]),
            algorithms,
            roles: ClaimPath::new(vec!["realm_access".to_owned(), "roles".to_owned()]),
            subject: ClaimPath::new(vec!["sub".to_owned()]),
            leeway: Duration::from_secs(LEEWAY),
            max_token_lifetime: Duration::from_secs(86_400),
            logout_audience: None,
            is_built_in: false,
        };
        Arc::new(Issuer::new(settings, KeySet::from_secret(SECRET, algorithms).expect("a key")))
    };
    Issuers::new(vec![issuer("named", Some("https://issuer.example")), issuer("any", None)]).expect("two issuers")
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let issuers = &*ISSUERS;
    match choice % 4 {
        0 => {
            let Ok(token) = std::str::from_utf8(data) else { return };
            // Without the key, no valid token can be made.
            assert!(issuers.verify(token, NOW).is_err(), "forged: {token}");
            drop(format!("{:?}", inspect(token)));
        }
        1 => {
            let (header, claims) = match data.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&data[..at], &data[at + 1..]),
                None => (&br#"{"alg":"HS256"}"#[..], data),
            };
            let forged = sign(header, claims, OTHER);
            assert!(issuers.verify(&forged, NOW).is_err(), "signed by another issuer: {forged}");
            let token = sign(header, claims, SECRET);
            match issuers.verify(&token, NOW) {
                Err(error) => drop(error.to_string()),
                Ok(caller) => {
                    assert!(!caller.subject().is_empty());
                    assert!(caller.expires_at() + LEEWAY >= NOW, "expired at {}", caller.expires_at());
                    assert!(caller.issued_at().is_none_or(|issued| issued <= NOW + LEEWAY));
                    let sent: serde_json::Value = serde_json::from_slice(claims).expect("claims are JSON");
                    assert_eq!(sent["iss"].as_str(), caller.issuer());
                    assert_eq!(&**caller.issuer_name(), if sent.get("iss").is_some() { "named" } else { "any" });
                    let header: serde_json::Value = serde_json::from_slice(header).expect("a header is JSON");
                    assert_eq!(header["alg"], "HS256");
                    assert!(header.get("crit").is_none());
                    if caller.issuer().is_some() {
                        let audience = &sent["aud"];
                        let ours = |audience: &serde_json::Value| audience == "app";
                        assert!(ours(audience) || audience.as_array().is_some_and(|all| all.iter().any(ours)), "{audience}");
                    }
                }
            }
        }
        2 => {
            for algorithms in [Algorithms::all().iter().collect::<Algorithms>(), Algorithms::default()] {
                match KeySet::from_jwks(data, algorithms) {
                    Err(error) => drop(error.to_string()),
                    Ok((keys, left_out)) => {
                        assert!(keys.keys().iter().all(|key| key.algorithms().iter().any(|one: Algorithm| algorithms.contains(one))));
                        left_out.iter().for_each(|left_out| drop(left_out.to_string()));
                    }
                }
            }
        }
        _ => {
            if let Err(error) = key_from_pem(data) {
                drop(error.to_string());
            }
        }
    }
});

fn sign(header: &[u8], claims: &[u8], secret: &[u8]) -> String {
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!("{}.{}", text(header), text(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", text(signature.as_ref()))
}
