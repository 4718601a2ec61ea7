//! Third-party software: tokens of its libraries are accepted, or refused for the right reason; the
//! files of the guides work with tokens in the form of each issuer; a certified OpenID provider
//! works with discovery, rotation and outages.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use toml::Table;

use crate::harness::accounts::PASSWORD;
use crate::harness::peers::Peer;
use crate::harness::{Gateway, Port, Response, within};

const HMACS: [&str; 3] = ["HS256", "HS384", "HS512"];
const SIGNATURES: [&str; 9] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// The faults of tokens, with the reasons of their refusals.
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

/// Accepts the tokens of each library with these signature algorithms, and refuses this many faulty
/// ones of each.
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
        let [library, what, token] =
            ["library", "what", "token"].map(|name| minted[name].as_str().unwrap());
        *seen.entry((library, what)).or_default() += 1;
        let response = gateway.get("/").bearer(token).send().await;
        if HMACS.contains(&what) || SIGNATURES.contains(&what) {
            assert_eq!(response.status, 200, "{library} {what}: {response:?}");
            let received = gateway.upstream().last();
            assert_eq!(received.header("x-auth-user"), Some("Ann M%C3%BCller"), "{library} {what}");
            assert_eq!(received.header("x-auth-roles"), Some("auditor"), "{library} {what}");
        } else {
            let reason = FAULTS
                .iter()
                .find(|(fault, _)| *fault == what)
                .map_or("no such fault", |(_, reason)| reason);
            assert_eq!(response.refusal(), (401, reason.to_owned()), "{library} {what}: {token}");
        }
    }
    for (library, signatures, faults) in libraries {
        for (algorithms, times) in [(&HMACS[..], 1), (signatures, 2)] {
            for algorithm in algorithms {
                assert_eq!(
                    seen.remove(&(library, algorithm)),
                    Some(times),
                    "{library} {algorithm}"
                );
            }
        }
        let refused = seen.keys().filter(|(of, _)| of == library).count();
        assert_eq!(refused, *faults, "{library}: {seen:?}");
    }
}

/// The contents of the fences of this kind in a guide.
fn fences(guide: &str, kind: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides").join(guide);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            let inside: Vec<&str> =
                lines.by_ref().take_while(|line| line.trim() != "```").collect();
            if info == kind || info.starts_with(&format!("{kind} ")) {
                found.push(format!("{}\n", inside.join("\n")));
            }
        }
    }
    found
}

/// A gateway with the file of a guide, and a mint for tokens of its issuer.
struct Guided {
    gateway: Gateway,
    mint: Peer,
    algorithm: &'static str,
}

impl Guided {
    /// Uses the first file of the guide; sections in `instead`, another fence of the guide, replace
    /// sections of the same name. The keys are those of the mint and are read from a file instead
    /// of fetched; the upstream records.
    async fn start(guide: &str, instead: Option<usize>, algorithm: &'static str) -> Option<Self> {
        let mut mint = Peer::start("sign.js")?;
        let fences = fences(guide, "toml");
        let mut file: Table = fences[0].parse().unwrap();
        if let Some(instead) = instead {
            file.remove("test");
            file.extend(fences[instead].parse::<Table>().unwrap());
        }
        for (_, issuer) in file["issuer"].as_table_mut().unwrap().iter_mut() {
            let issuer = issuer.as_table_mut().unwrap();
            let is_fetched =
                issuer.remove("discovery").is_some() | issuer.remove("jwks_url").is_some();
            let (key, source) = if is_fetched {
                ("jwks_file", "keys.json".into())
            } else {
                ("secret", Table::from_iter([("file".to_owned(), "secret".into())]).into())
            };
            issuer.insert(key.to_owned(), source);
        }
        for (_, upstream) in file["upstream"].as_table_mut().unwrap().iter_mut() {
            upstream.as_table_mut().unwrap().insert("url".to_owned(), "http://$UPSTREAM".into());
        }
        let made = mint.ask(json!({ "as": "jose", "alg": algorithm, "claims": {} }));
        let (keys, secret) =
            (made["jwks"].to_string(), made["secret"].as_str().unwrap_or_default().to_owned());
        let gateway = Gateway::setup(&toml::to_string(&file).unwrap())
            .file("keys.json", keys)
            .file("secret", secret)
            .start()
            .await;
        Some(Self { gateway, mint, algorithm })
    }

    async fn ask(&mut self, path: &str, request: Value) -> Response {
        let minted = self.mint.ask(request);
        self.gateway.get(path).bearer(minted["token"].as_str().unwrap()).send().await
    }

    fn with_jose(&self, claims: &Value) -> Value {
        json!({ "as": "jose", "alg": self.algorithm, "claims": claims })
    }

    /// Asserts that a token with these claims is accepted, and that the application receives
    /// exactly these identity headers.
    async fn passes(&mut self, path: &str, claims: &Value, headers: &[(&str, &str)]) {
        self.passes_as(path, self.with_jose(claims), headers).await;
    }

    async fn passes_as(&mut self, path: &str, request: Value, headers: &[(&str, &str)]) {
        let response = self.ask(path, request).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        let received = self.gateway.upstream().last();
        for name in ["x-auth-user", "x-auth-roles", "x-auth-email", "x-auth-name"] {
            let expected =
                headers.iter().find(|(expected, _)| *expected == name).map(|(_, value)| *value);
            assert_eq!(received.header(name), expected, "{name}");
        }
    }

    /// Asserts that a token with these claims is refused.
    async fn refuses(&mut self, path: &str, claims: &Value, status: u16, reason: &str) {
        let response = self.ask(path, self.with_jose(claims)).await;
        assert_eq!(response.refusal(), (status, reason.to_owned()), "{claims}");
    }
}

/// These claims with changes; null removes one.
fn but(claims: &Value, changes: Value) -> Value {
    let mut claims = claims.clone();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

#[tokio::test]
async fn keycloak() {
    let Some(mut app) = Guided::start("keycloak.md", None, "RS256").await else { return };
    let access = json!({
        "jti": "onrtac:5f0c1d7e-2b39-44c8-9a61-3d8f1c5b7a90", "iss": "https://sso.example.com/realms/main", "aud": ["reports-api", "account"],
        "sub": "f1b5a6c2-7d3e-4c8a-9b0f-2a6d4e8c1b37", "typ": "Bearer", "azp": "reports-web",
        "sid": "0c7b3a9e-4d51-4e0f-8c26-9f1e7d5a3b42", "acr": "1", "allowed-origins": ["https://reports.example.com"],
        "realm_access": { "roles": ["default-roles-main", "offline_access", "admin"] },
        "resource_access": { "reports-web": { "roles": ["editor"] }, "account": { "roles": ["view-profile"] } },
        "scope": "openid email profile", "email_verified": true, "name": "Ann Müller", "preferred_username": "ann",
        "given_name": "Ann", "family_name": "Müller", "email": "ann@example.com",
    });
    let subject = ("x-auth-user", "f1b5a6c2-7d3e-4c8a-9b0f-2a6d4e8c1b37");
    let roles = ("x-auth-roles", "default-roles-main,offline_access,admin");
    app.passes(
        "/admin/users",
        &access,
        &[subject, roles, ("x-auth-name", "ann"), ("x-auth-email", "ann@example.com")],
    )
    .await;
    app.passes(
        "/",
        &but(&access, json!({ "email_verified": false })),
        &[subject, roles, ("x-auth-name", "ann")],
    )
    .await;
    app.refuses(
        "/admin/users",
        &but(&access, json!({ "realm_access": { "roles": ["user"] } })),
        403,
        "role_missing",
    )
    .await;
    app.refuses("/", &but(&access, json!({ "aud": "account" })), 401, "token_audience").await;
    app.refuses(
        "/",
        &but(&access, json!({ "typ": "ID", "aud": "reports-web" })),
        401,
        "token_audience",
    )
    .await;
    app.refuses(
        "/",
        &but(&access, json!({ "iss": "http://keycloak:8080/realms/main" })),
        401,
        "token_issuer",
    )
    .await;
    app.refuses("/", &but(&access, json!({ "sub": null })), 401, "token_claims").await;
    // The refresh token: HS512, for Keycloak itself.
    let refresh = json!({ "as": "jsonwebtoken", "options": { "algorithm": "HS512", "expiresIn": "30m" },
        "claims": { "iss": access["iss"], "aud": access["iss"], "sub": access["sub"], "typ": "Refresh", "azp": "reports-web" } });
    app.ask("/", refresh).await.is(401, "token_algorithm");
    // The client that receives logout tokens is not an audience for its ID tokens.
    let Some(mut app) = Guided::start("keycloak.md", Some(1), "RS256").await else { return };
    app.passes(
        "/",
        &access,
        &[subject, roles, ("x-auth-name", "ann"), ("x-auth-email", "ann@example.com")],
    )
    .await;
    app.refuses(
        "/",
        &but(&access, json!({ "typ": "ID", "aud": "reports-web" })),
        401,
        "token_audience",
    )
    .await;
}

#[tokio::test]
async fn auth0() {
    let Some(mut app) = Guided::start("auth0.md", None, "RS256").await else { return };
    let access = json!({
        "https://example.com/roles": ["editor", "auditor"], "https://example.com/email": "ann@example.com",
        "iss": "https://example.eu.auth0.com/", "sub": "auth0|66a1f0c2b7d94e3a5c8f1e20",
        "aud": ["https://reports.example.com", "https://example.eu.auth0.com/userinfo"],
        "scope": "openid profile email", "azp": "k3Yc9Qm2Lw7Xr5Tz8Vb1Nd4Hf6Js0Pa", "permissions": ["reports:read", "users:manage"],
    });
    let output = [
        ("x-auth-user", "auth0|66a1f0c2b7d94e3a5c8f1e20"),
        ("x-auth-roles", "editor,auditor"),
        ("x-auth-email", "ann@example.com"),
    ];
    app.passes("/admin/users", &access, &output).await;
    // The profile of RFC 9068, with Auth0's default lifetime.
    let mut rfc9068 =
        app.with_jose(&but(&access, json!({ "jti": "Xy1", "client_id": access["azp"] })));
    rfc9068["header"] = json!({ "typ": "at+jwt" });
    app.passes_as("/admin/users", rfc9068, &output).await;
    let machine = json!({ "iss": "https://example.eu.auth0.com/", "sub": "k3Yc9Qm2@clients", "aud": "https://reports.example.com",
        "scope": "reports:read", "gty": "client-credentials", "azp": "k3Yc9Qm2", "permissions": ["reports:read"] });
    app.passes("/", &machine, &[("x-auth-user", "k3Yc9Qm2@clients")]).await;
    app.refuses("/admin/users", &machine, 403, "claim_mismatch").await;
    app.refuses(
        "/",
        &but(&access, json!({ "iss": "https://example.eu.auth0.com" })),
        401,
        "token_issuer",
    )
    .await;
    app.refuses(
        "/",
        &but(&access, json!({ "aud": "k3Yc9Qm2Lw7Xr5Tz8Vb1Nd4Hf6Js0Pa" })),
        401,
        "token_audience",
    )
    .await;
    app.refuses(
        "/",
        &but(&access, json!({ "aud": ["https://example.eu.auth0.com/userinfo"] })),
        401,
        "token_audience",
    )
    .await;
}

#[tokio::test]
async fn supabase() {
    let access = json!({
        "iss": "https://abcdefghijklmnopqrst.supabase.co/auth/v1", "sub": "2f8d6c1a-93b4-4e7d-a0c5-6b1f9e3d7a28", "aud": "authenticated",
        "email": "ann@example.com", "phone": "", "role": "authenticated", "aal": "aal1", "is_anonymous": false,
        "amr": [{ "method": "password", "timestamp": 1_790_000_000 }], "session_id": "b3a7c9e1-5d2f-4086-9c4b-8e1a6f7d0c53",
        "app_metadata": { "provider": "email", "providers": ["email"], "roles": ["admin"] },
        "user_metadata": { "email": "ann@example.com", "email_verified": true, "sub": "2f8d6c1a", "roles": ["superuser"] },
    });
    let output = [
        ("x-auth-user", "2f8d6c1a-93b4-4e7d-a0c5-6b1f9e3d7a28"),
        ("x-auth-roles", "admin"),
        ("x-auth-email", "ann@example.com"),
    ];
    // With the published keys, and with the legacy secret.
    for (instead, algorithm) in [(None, "ES256"), (Some(1), "HS256")] {
        let Some(mut app) = Guided::start("supabase.md", instead, algorithm).await else { return };
        app.passes("/admin/users", &access, &output).await;
        let plain = but(&access, json!({ "app_metadata": { "provider": "email" } }));
        app.passes("/", &plain, &[output[0], output[2]]).await;
        app.refuses("/admin/users", &plain, 403, "role_missing").await;
        let anonymous = but(
            &access,
            json!({ "is_anonymous": true, "email": "", "app_metadata": {}, "user_metadata": {} }),
        );
        app.refuses("/", &anonymous, 403, "claim_mismatch").await;
        // The API keys that every browser and every server has.
        for role in ["anon", "service_role"] {
            let key = json!({ "iss": "supabase", "ref": "abcdefghijklmnopqrst", "role": role, "exp": 2_100_000_000 });
            app.refuses("/", &key, 401, "token_issuer").await;
        }
    }
}

#[tokio::test]
async fn entra_id() {
    let tenant = "9e3f6c1a-4d2b-4f7e-8a55-0c1d2e3f4a5b";
    let access = json!({
        "aud": "1b2c3d4e-5f60-4718-92a3-b4c5d6e7f809", "iss": format!("https://login.microsoftonline.com/{tenant}/v2.0"),
        "aio": "AXQAi/8", "azp": "77aa11bb-22cc-43dd-94ee-55ff66007788", "azpacr": "0", "name": "Ann Müller",
        "oid": "c0ffee00-1d2e-4f3a-8b4c-5d6e7f809a1b", "preferred_username": "ann@example.com", "rh": "0.AX0A",
        "roles": ["Reports.Admin"], "scp": "reports.read reports.write", "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
        "tid": tenant, "uti": "fqiBqXLPj0eQa82S-IYFAA", "ver": "2.0", "groups": ["3a4b5c6d-7e8f-4091-a2b3-c4d5e6f70819"],
    });
    let output = [
        ("x-auth-user", "c0ffee00-1d2e-4f3a-8b4c-5d6e7f809a1b"),
        ("x-auth-name", "ann@example.com"),
        ("x-auth-roles", "Reports.Admin"),
    ];
    let Some(mut app) = Guided::start("entra-id.md", None, "RS256").await else { return };
    app.passes("/admin/users", &access, &output).await;
    app.refuses("/admin/users", &but(&access, json!({ "roles": null })), 403, "role_missing").await;
    // The client's ID token, if client and API are one registration; an application without a user;
    // a token for Microsoft Graph.
    app.refuses(
        "/",
        &but(&access, json!({ "scp": null, "azp": null, "nonce": "n" })),
        403,
        "scope_missing",
    )
    .await;
    app.refuses("/", &but(&access, json!({ "scp": null, "idtyp": "app" })), 403, "scope_missing")
        .await;
    app.refuses(
        "/",
        &but(&access, json!({ "aud": "00000003-0000-0000-c000-000000000000" })),
        401,
        "token_audience",
    )
    .await;
    let v1 = json!({ "iss": format!("https://sts.windows.net/{tenant}/"), "aud": "api://1b2c3d4e-5f60-4718-92a3-b4c5d6e7f809", "ver": "1.0",
        "azp": null, "appid": access["azp"], "preferred_username": null, "upn": "ann@example.com", "unique_name": "ann@example.com" });
    let v1 = but(&access, v1);
    app.refuses("/", &v1, 401, "token_issuer").await;
    let another_tenant = but(
        &access,
        json!({ "iss": "https://login.microsoftonline.com/11112222-3333-4444-8555-666677778888/v2.0" }),
    );
    app.refuses("/", &another_tenant, 401, "token_issuer").await;
    // The section for tokens of version 1.0.
    let Some(mut app) = Guided::start("entra-id.md", Some(1), "RS256").await else { return };
    app.passes("/admin/users", &v1, &[output[0], output[2]]).await;
    app.refuses("/", &access, 401, "token_issuer").await;
}

#[tokio::test]
async fn okta() {
    let Some(mut app) = Guided::start("okta.md", None, "RS256").await else { return };
    let access = json!({
        "ver": 1, "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE", "iss": "https://example.okta.com/oauth2/default", "aud": "api://default",
        "cid": "0oa1k5d9xtQm3Wz7P5d7", "uid": "00u1k5d9y4Rn2Vb8C5d7", "scp": ["openid", "reports.read"], "auth_time": 1_790_000_000,
        "sub": "ann@example.com", "groups": ["reports-admins", "reports-eu, west"],
    });
    let roles = ("x-auth-roles", "reports-admins,reports-eu%2C west");
    app.passes("/admin/users", &access, &[("x-auth-user", "ann@example.com"), roles]).await;
    app.refuses("/", &but(&access, json!({ "scp": ["openid"] })), 403, "scope_missing").await;
    app.refuses("/admin/users", &but(&access, json!({ "groups": null })), 403, "role_missing")
        .await;
    // The ID token, and a token of the org authorization server.
    app.refuses(
        "/",
        &but(&access, json!({ "aud": "0oa1k5d9xtQm3Wz7P5d7", "scp": null })),
        401,
        "token_audience",
    )
    .await;
    app.refuses(
        "/",
        &but(&access, json!({ "iss": "https://example.okta.com" })),
        401,
        "token_issuer",
    )
    .await;
}

#[tokio::test]
async fn cognito() {
    let pool = "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI";
    let access = json!({
        "sub": "aaaabbbb-cccc-4ddd-8eee-ffff00001111", "device_key": "eu-central-1_f2", "cognito:groups": ["admins", "staff"], "iss": pool,
        "version": 2, "client_id": "4h57kexample9j2l6n8p0q1r3s", "origin_jti": "o1", "event_id": "e1", "token_use": "access",
        "scope": "openid reports/read", "auth_time": 1_790_000_000, "jti": "j1", "username": "ann",
    });
    let id = json!({
        "sub": access["sub"], "cognito:groups": ["admins", "staff"], "email_verified": true, "iss": pool, "cognito:username": "ann",
        "aud": "4h57kexample9j2l6n8p0q1r3s", "event_id": "e1", "token_use": "id", "auth_time": 1_790_000_000, "email": "ann@example.com",
    });
    let (user, roles) =
        (("x-auth-user", "aaaabbbb-cccc-4ddd-8eee-ffff00001111"), ("x-auth-roles", "admins,staff"));
    let Some(mut app) = Guided::start("cognito.md", None, "RS256").await else { return };
    app.passes("/admin/users", &access, &[user, roles, ("x-auth-name", "ann")]).await;
    app.refuses(
        "/admin/users",
        &but(&access, json!({ "cognito:groups": ["staff"] })),
        403,
        "role_missing",
    )
    .await;
    app.refuses("/", &but(&access, json!({ "client_id": "another" })), 403, "claim_mismatch").await;
    app.refuses("/", &id, 403, "claim_mismatch").await;
    app.refuses("/", &but(&access, json!({ "iss": format!("{pool}x") })), 401, "token_issuer")
        .await;
    // ID tokens, if clients send them nevertheless.
    let Some(mut app) = Guided::start("cognito.md", Some(1), "RS256").await else { return };
    app.passes(
        "/",
        &id,
        &[user, roles, ("x-auth-name", "ann"), ("x-auth-email", "ann@example.com")],
    )
    .await;
    app.refuses("/", &access, 401, "token_audience").await;
    app.refuses("/", &but(&id, json!({ "token_use": "access" })), 403, "claim_mismatch").await;
}

/// The gateway and passport-jwt agree about tokens of jsonwebtoken.
#[tokio::test]
async fn express_and_passport() {
    let Some(mut app) = Guided::start("express-and-jsonwebtoken.md", None, "HS256").await else {
        return;
    };
    let sign = |claims: Value, options: Value| json!({ "as": "jsonwebtoken", "claims": claims, "options": options });
    let (user, hour) = (json!({ "userId": 1, "role": "user" }), json!({ "expiresIn": "1h" }));
    app.passes_as(
        "/orders",
        sign(user.clone(), hour.clone()),
        &[("x-auth-user", "1"), ("x-auth-roles", "user")],
    )
    .await;
    app.ask("/ADMIN/accounts", sign(user.clone(), hour.clone())).await.is(403, "role_missing");
    app.ask("/orders", sign(user.clone(), json!({}))).await.is(401, "token_claims");
    app.ask("/orders", sign(user.clone(), json!({ "expiresIn": "2h" })))
        .await
        .is(401, "token_lifetime");

    for (options, what, reason) in [
        (hour.clone(), "", None),
        (json!({ "expiresIn": -60 }), "jwt expired", Some("token_expired")),
        (
            json!({ "expiresIn": "1h", "notBefore": "2m" }),
            "jwt not active",
            Some("token_not_yet_valid"),
        ),
    ] {
        let minted = app.mint.ask(sign(user.clone(), options));
        let token = minted["token"].as_str().unwrap();
        let (head, signature) = token.rsplit_once('.').unwrap();
        let flipped = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{head}.{flipped}{}", &signature[1..]);
        for (token, what, reason) in
            [(token, what, reason), (&forged, "invalid signature", Some("token_signature"))]
        {
            let response = app.gateway.get("/orders").bearer(token).send().await;
            let judged = app
                .mint
                .ask(json!({ "as": "passport", "authorization": format!("Bearer {token}") }));
            match reason {
                None => {
                    assert_eq!(response.status, 200, "{response:?}");
                    assert_eq!(judged["payload"]["userId"], 1, "{judged}");
                }
                Some(reason) => {
                    response.is(401, reason);
                    assert_eq!(judged["refused"], what);
                }
            }
        }
    }
}

#[tokio::test]
async fn nestjs() {
    // With and without an issuer and an audience in `signOptions`.
    for (instead, options) in [
        (
            None,
            json!({ "issuer": "https://app.example.com", "audience": "app", "expiresIn": "1h" }),
        ),
        (Some(1), json!({ "expiresIn": "1h" })),
    ] {
        let Some(mut app) = Guided::start("nestjs.md", instead, "HS256").await else { return };
        let sign = |roles: &[&str]| json!({ "as": "nestjs", "claims": { "sub": 1, "username": "john", "roles": roles }, "options": options });
        let (user, name) = (("x-auth-user", "1"), ("x-auth-name", "john"));
        app.passes_as(
            "/Admin/users",
            sign(&["admin", "user"]),
            &[user, name, ("x-auth-roles", "admin,user")],
        )
        .await;
        app.passes_as("/profile", sign(&[]), &[user, name]).await;
        app.ask("/admin/users", sign(&["user"])).await.is(403, "role_missing");
    }
}

#[tokio::test]
async fn strapi() {
    let Some(mut app) = Guided::start("strapi.md", None, "HS256").await else { return };
    let sign = |claims: Value, lifetime: &str| json!({ "as": "jsonwebtoken", "claims": claims, "options": { "expiresIn": lifetime } });
    app.passes_as("/api/orders", sign(json!({ "id": 7 }), "30d"), &[("x-auth-user", "7")]).await;
    assert!(
        app.gateway.upstream().last().header("authorization").is_some(),
        "Strapi looks up the roles by the token"
    );
    app.ask("/api/orders", sign(json!({ "id": 7 }), "31d")).await.is(401, "token_lifetime");
    assert_eq!(app.gateway.get("/api/articles/1").send().await.status, 200);
    app.gateway.get("/admin").send().await.is(404, "route_not_found");
    // Access and refresh tokens of `jwtManagement: "refresh"`.
    let Some(mut app) = Guided::start("strapi.md", Some(1), "HS256").await else { return };
    let session = |kind: &str| json!({ "userId": "7", "sessionId": "9b1d", "type": kind });
    app.passes_as("/api/orders", sign(session("access"), "10m"), &[("x-auth-user", "7")]).await;
    app.ask("/api/orders", sign(session("refresh"), "10m")).await.is(403, "claim_mismatch");
    app.ask("/api/orders", sign(session("refresh"), "30d")).await.is(401, "token_lifetime");
}

/// Auth.js 5 and next-auth 4 log a user in; the session cookie is an encrypted token, or a signed
/// one with the code of the guide.
#[tokio::test]
async fn nextauth() {
    let Some(mut authjs) = Peer::start("authjs.js") else { return };
    let shown = fences("nextauth.md", "js");
    let used =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/authjs-jwt.js"))
            .unwrap();
    assert_eq!(shown[0], used, "the guide shows the code that is tried here");
    for (version, cookie) in
        [(5, "__Secure-authjs.session-token"), (4, "__Secure-next-auth.session-token")]
    {
        let signed = authjs.ask(json!({ "version": version, "signed": true }));
        assert_eq!(
            signed["session"]["user"]["email"], "ann@example.com",
            "it takes its own session: {signed}"
        );
        assert_eq!(signed["cookie"], cookie);
        let mut file: Table = fences("nextauth.md", "toml")[0].parse().unwrap();
        let secret = Table::from_iter([("file".to_owned(), "secret".into())]);
        file["issuer"]["next"].as_table_mut().unwrap().insert("secret".into(), secret.into());
        file["upstream"]["api"]
            .as_table_mut()
            .unwrap()
            .insert("url".into(), "http://$UPSTREAM".into());
        file.insert(
            "server".into(),
            Table::from_iter([("token_cookie".to_owned(), cookie.into())]).into(),
        );
        file["route"][0]
            .as_table_mut()
            .unwrap()
            .insert("token_from".into(), vec!["header", "cookie"].into());
        let setup = Gateway::setup(&toml::to_string(&file).unwrap());
        let gateway = setup.file("secret", signed["secret"].as_str().unwrap()).start().await;

        let token = signed["token"].as_str().unwrap();
        let as_header = gateway.get("/audits/q3").bearer(token);
        let as_cookie = gateway.get("/").header("Cookie", &format!("theme=dark; {cookie}={token}"));
        for request in [as_header, as_cookie] {
            let response = request.send().await;
            assert_eq!(response.status, 200, "{version}: {response:?}");
            let received = gateway.upstream().last();
            let output = ["user", "name", "email", "roles"]
                .map(|name| received.header(&format!("x-auth-{name}")));
            assert_eq!(
                output,
                [Some("u-17"), Some("Ann"), Some("ann@example.com"), Some("auditor")]
            );
            assert!(received.header("cookie").is_none_or(|cookie| cookie == "theme=dark"));
        }
        // Their default.
        let encrypted = authjs.ask(json!({ "version": version, "signed": false }));
        let token = encrypted["token"].as_str().unwrap();
        assert_eq!((token.split('.').count(), &encrypted["cookie"]), (5, &json!(cookie)));
        gateway.get("/").bearer(token).send().await.is(401, "token_malformed");
    }
}

const RESOURCE: &str = "https://reports.example.com";

/// A certified OpenID provider (oidc-provider), which can be restarted on the same port.
struct Provider {
    process: Peer,
    port: Port,
    issuer: String,
}

impl Provider {
    /// Starts with these keys; the first one signs.
    fn start(keys: &[Value]) -> Option<Self> {
        Self::start_at(Port::reserve(), keys)
    }

    fn start_at(port: Port, keys: &[Value]) -> Option<Self> {
        let mut process = Peer::start("issuer.js")?;
        let served = process.ask(json!({ "do": "serve", "port": port.number(), "keys": keys }));
        let issuer = served["issuer"].as_str().unwrap().to_owned();
        Some(Self { process, port, issuer })
    }

    /// Stops. Its port stays reserved.
    fn stop(self) -> Port {
        self.port
    }

    /// From now on, signs with the first of these keys and publishes all of them.
    fn rotate(&mut self, keys: &[Value]) {
        let served = self.process.ask(json!({ "do": "serve", "keys": keys }));
        assert_eq!(served["issuer"], self.issuer);
    }

    /// Tokens of a user who logs in with a separate browser.
    fn login(&mut self, account: &str) -> [String; 2] {
        let tokens =
            self.process.ask(json!({ "do": "login", "account": account, "resource": RESOURCE }));
        ["access_token", "id_token"].map(|name| tokens[name].as_str().unwrap().to_owned())
    }

    /// An access token of the client itself.
    fn granted(&mut self) -> String {
        let granted = self.process.ask(json!({ "do": "grant", "resource": RESOURCE }));
        granted["access_token"].as_str().unwrap().to_owned()
    }

    /// `[issuer.op]`, and a route.
    fn config(&self, more: &str) -> String {
        format!(
            "[[route]]\npath = '/*'\nupstream = 'app'\nscopes = ['reports:read']\n[[route]]\npath = '/audits/*'\nupstream = 'app'\n\
             roles = ['auditor']\n[issuer.op]\nissuer = '{}'\naudience = ['{RESOURCE}']\nalgorithms = ['RS256', 'ES256']\ndiscovery = true\n{more}\n",
            self.issuer
        )
    }
}

/// New private keys, of these algorithms.
fn private_keys<const N: usize>(wanted: [(&str, &str); N]) -> Option<[Value; N]> {
    let mut process = Peer::start("issuer.js")?;
    Some(wanted.map(|(kid, alg)| {
        process.ask(json!({ "do": "key", "kid": kid, "alg": alg }))["key"].clone()
    }))
}

#[tokio::test]
async fn a_certified_provider_is_discovered() {
    let Some(keys) = private_keys([("k1", "RS256")]) else { return };
    let Some(mut provider) = Provider::start(&keys) else { return };
    let gateway = Gateway::start(&provider.config("")).await;
    let [access, id] = provider.login("ann");
    assert_eq!(gateway.get("/audits/q3").bearer(&access).send().await.status, 200);
    let received = gateway.upstream().last();
    let output = ["user", "roles", "issuer"].map(|name| received.header(&format!("x-auth-{name}")));
    assert_eq!(output, [Some("ann"), Some("auditor"), Some(&*provider.issuer)]);
    // An ID token tells the client who logged in. It is not an access token.
    gateway.get("/").bearer(&id).send().await.is(401, "token_audience");
    // Without a resource, the access token is opaque.
    let login = provider.process.ask(json!({ "do": "login", "account": "ann" }));
    gateway
        .get("/")
        .bearer(login["access_token"].as_str().unwrap())
        .send()
        .await
        .is(401, "token_malformed");
    let client = provider.granted();
    assert_eq!(gateway.get("/").bearer(&client).send().await.status, 200);
    assert_eq!(gateway.upstream().last().header("x-auth-user"), Some("reports-web"));
    gateway.get("/audits/q3").bearer(&client).send().await.is(403, "role_missing");
}

#[tokio::test]
async fn a_certified_provider_rotates_its_keys() {
    let Some([old, new]) = private_keys([("k1", "RS256"), ("k2", "ES256")]) else { return };
    let Some(mut provider) = Provider::start(std::slice::from_ref(&old)) else { return };
    let gateway = Gateway::start(&provider.config("jwks_refresh = '1s'")).await;
    let before = provider.granted();
    assert_eq!(gateway.get("/").bearer(&before).send().await.status, 200);
    // The new key signs at once; the old one stays published while its tokens are valid.
    provider.rotate(&[new.clone(), old]);
    let after = provider.granted();
    assert_eq!(
        gateway.get("/").bearer(&after).send().await.status,
        200,
        "no client waits for a schedule"
    );
    assert_eq!(gateway.get("/").bearer(&before).send().await.status, 200);
    // The key is withdrawn, and its tokens are refused.
    provider.rotate(&[new]);
    let refused = within(async {
        loop {
            let response = gateway.get("/").bearer(&before).send().await;
            if response.status != 200 {
                break response;
            }
        }
    })
    .await;
    refused.is(401, "token_key_unknown");
    assert_eq!(gateway.get("/").bearer(&after).send().await.status, 200);
}

#[tokio::test]
async fn a_certified_provider_can_fail_and_recover() {
    let Some([key, new]) = private_keys([("k1", "ES256"), ("k2", "ES256")]) else { return };
    let Some(mut provider) = Provider::start(std::slice::from_ref(&key)) else { return };
    let folder = tempfile::TempDir::new().unwrap();
    let store = format!(
        "[store]\ndatabase = 'sqlite:{0}/p.db'\nkey = {{ file = '{0}/p.key' }}",
        folder.path().display()
    );
    let (config, elsewhere) =
        (provider.config(&store), provider.config("jwks_refetch_cooldown = '1s'"));
    let gateway = Gateway::start(&config).await;
    let token = provider.granted();
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);

    let port = provider.stop();
    assert_eq!(gateway.get("/").bearer(&token).send().await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.exited().await.success());
    let gateway = Gateway::start(&config).await;
    assert_eq!(
        gateway.get("/").bearer(&token).send().await.status,
        200,
        "the last good keys were kept"
    );
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    // If there never were keys, it is an outage and not a fault of the token.
    let cold = Gateway::start(&elsewhere).await;
    cold.get("/").bearer(&token).send().await.is(503, "keys_unavailable");
    assert_eq!(cold.admin("/readyz").await.status, 503);

    let Some(mut provider) = Provider::start_at(port, &[new, key]) else { return };
    let after = provider.granted();
    for gateway in [&gateway, &cold] {
        for token in [&after, &token] {
            within(async { while gateway.get("/").bearer(token).send().await.status != 200 {} })
                .await;
        }
        assert_eq!(gateway.admin("/readyz").await.status, 200);
    }
}

#[tokio::test]
async fn a_certified_provider_sends_logout_tokens() {
    let Some(keys) = private_keys([("k1", "ES256")]) else { return };
    for by_session in [true, false] {
        let Some(mut provider) = Provider::start(&keys) else { return };
        let config =
            provider.config("backchannel_logout = '/told'\nlogout_audience = ['reports-web']");
        let gateway = Gateway::start(&config).await;
        let logout =
            json!({ "uri": format!("http://{}/told", gateway.address()), "session": by_session });
        provider.process.ask(json!({ "do": "serve", "keys": keys, "logout": logout }));
        let ([here, id], [elsewhere, _], [other, _]) =
            (provider.login("ann"), provider.login("ann"), provider.login("bob"));
        for token in [&here, &elsewhere, &other] {
            assert_eq!(gateway.get("/").bearer(token).send().await.status, 200);
        }
        assert_eq!(
            provider.process.ask(json!({ "do": "logout", "id_token": id })),
            json!({ "told": 1 })
        );
        gateway.get("/").bearer(&here).send().await.is(401, "token_revoked");
        // Her session on another device continues if the logout names one session.
        let response = gateway.get("/").bearer(&elsewhere).send().await;
        assert_eq!(response.status, if by_session { 200 } else { 401 }, "{response:?}");
        assert_eq!(gateway.get("/").bearer(&other).send().await.status, 200);
        // This does not make the client's ID tokens access tokens.
        let [_, id] = provider.login("eve");
        gateway.get("/").bearer(&id).send().await.is(401, "token_audience");
    }
}

/// The opposite direction: third-party libraries accept tokens of the built-in issuer with its
/// published keys, and refuse them when they should.
#[tokio::test]
async fn other_libraries_verify_tokens_of_the_built_in_issuer() {
    let (Some(node), Some(python)) = (Peer::start("verify.js"), Peer::start("verify.py")) else {
        return;
    };
    let mut peers = [node, python];
    for algorithm in ["ES256", "RS256", "EdDSA"] {
        let gateway = Gateway::start(&format!(
            "[identity]\nissuer = 'https://app.test/auth'\naudience = ['reports']\nalgorithm = '{algorithm}'\nregistration = 'open'\n\
             [store]\ndatabase = 'sqlite:p.db'\nkey = {{ file = 'p.key' }}\n[[route]]\npath = '/auth/*'\nidentity = true\n"
        ))
        .await;
        let post = |path: &str, body: Value| {
            gateway
                .request("POST", path)
                .header("Content-Type", "application/json")
                .body(body.to_string())
        };
        let account = json!({ "email": "ann@example.com", "password": "plum-Kettle-93-orbit" });
        let registered = post("/auth/register", account.clone()).send().await;
        assert_eq!(registered.status, 201, "{registered:?}");
        let login = post("/auth/login", account).send().await.json();
        let token = login["access_token"].as_str().unwrap();
        let (head, signature) = token.rsplit_once('.').unwrap();
        let forged = format!(
            "{head}.{}{}",
            if signature.starts_with('A') { "B" } else { "A" },
            &signature[1..]
        );
        let keys = format!("http://{}/auth/.well-known/jwks.json", gateway.address());
        for (token, audience, is_good) in
            [(token, "reports", true), (token, "payroll", false), (&forged, "reports", false)]
        {
            for peer in &mut peers {
                let judged = peer.ask(
                    json!({ "keys": keys, "token": token, "algorithm": algorithm, "typ": "at+jwt",
                    "issuer": "https://app.test/auth", "audience": audience }),
                );
                for (library, outcome) in judged["by"].as_object().unwrap() {
                    let expected = if is_good {
                        outcome["subject"].is_string()
                    } else {
                        outcome["refused"].is_string()
                    };
                    assert!(expected, "{algorithm} {library} {audience}: {outcome}");
                }
            }
        }
    }
}

/// Clients generated from the OpenAPI description work without changes.
#[tokio::test]
async fn generated_clients_log_in_refresh_and_log_out() {
    let description = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/openapi.json");
    for name in ["client.py", "client.js"] {
        let Some(mut client) = Peer::start(name) else { return };
        let gateway = Gateway::start(
            "[identity]\nissuer = 'https://app.test/auth'\nregistration = 'open'\n[[route]]\npath = '/auth/*'\nidentity = true\n",
        )
        .await;
        gateway.register("ann@example.com").await;
        let done = client.ask(json!({
            "description": description,
            "address": format!("http://{}/auth", gateway.address()),
            "email": "ann@example.com",
            "password": PASSWORD,
        }));
        let wanted = json!({ "wrong": "login_failed", "email": "ann@example.com", "is_successor": true, "after": "invalid_grant" });
        assert_eq!(done, wanted, "{name}");
    }
}
