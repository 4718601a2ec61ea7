//! A gateway with a built-in issuer, and clients that log in.

use serde_json::{Value, json};

use super::client::Request;
use super::{Gateway, Response};

/// A password that is accepted.
pub const PASSWORD: &str = "plum orbit tenant 71";

/// The built-in issuer at `/auth` with open registration and these lines in its section; a limit
/// that no test reaches; an application for every logged-in user, by header or cookie.
pub fn open(lines: &str) -> String {
    format!("{}\nlimit = 'wide'\n[limit.wide]\nrequests = 100000\nper = '1s'\n", limited(lines))
}

/// The same with the built-in limits. The lines that follow belong to the route of the issuer.
pub fn limited(lines: &str) -> String {
    format!(
        "[identity]\nissuer = 'http://app.test/auth'\nregistration = 'open'\n{lines}\n[[route]]\npath = '/*'\nupstream = 'app'\n\
         token_from = ['header', 'cookie']\nissuers = ['identity']\n[[route]]\npath = '/auth/*'\nidentity = true\n"
    )
}

/// The tokens of a session.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
}

impl Tokens {
    /// The tokens of a response.
    #[track_caller]
    pub fn of(response: &Response) -> Self {
        assert_eq!(response.status, 200, "{response:?}");
        let body = response.json();
        assert_eq!(body["token_type"], "Bearer");
        let text = |name: &str| {
            body[name].as_str().unwrap_or_else(|| panic!("no {name}: {body}")).to_owned()
        };
        Self { access: text("access_token"), refresh: text("refresh_token") }
    }

    /// The claims of the access token, unverified.
    pub fn claims(&self) -> Value {
        use base64::Engine;
        let payload = self.access.split('.').nth(1).unwrap();
        serde_json::from_slice(&base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap())
            .unwrap()
    }
}

impl Gateway {
    /// A request with a JSON body.
    pub fn post(&self, target: &str, body: &Value) -> Request {
        self.request("POST", target)
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// Creates an account.
    pub async fn register(&self, email: &str) -> Value {
        let response = self
            .post("/auth/register", &json!({ "email": email, "password": PASSWORD }))
            .send()
            .await;
        assert_eq!(response.status, 201, "{response:?}");
        response.json()
    }

    /// Tries to log in.
    pub async fn try_login(&self, email: &str, password: &str) -> Response {
        self.post("/auth/login", &json!({ "email": email, "password": password })).send().await
    }

    /// Logs in.
    pub async fn login(&self, email: &str) -> Tokens {
        Tokens::of(&self.try_login(email, PASSWORD).await)
    }

    /// Exchanges a refresh token.
    pub async fn refresh(&self, token: &str) -> Response {
        self.post("/auth/refresh", &json!({ "refresh_token": token })).send().await
    }

    /// The status of a request to the application.
    pub async fn reaches(&self, access: &str) -> u16 {
        self.get("/reports").bearer(access).send().await.status
    }
}
