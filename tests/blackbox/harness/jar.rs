//! The cookies of a browser that is logged in.

use serde_json::json;

use super::accounts::PASSWORD;
use super::client::Request;
use super::{Gateway, Response};

pub const ACCESS: &str = "__Host-portcullis";
pub const SESSION: &str = "__Host-portcullis-session";

/// The cookies of a browser.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jar {
    pub access: String,
    pub session: String,
}

impl Jar {
    /// What an answer sets; attributes are checked on the way.
    #[track_caller]
    pub fn of(response: &Response) -> Self {
        let mut jar = Self::default();
        for line in response.headers("set-cookie") {
            let (pair, attributes) = line.split_once("; ").unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match name {
                ACCESS => value.clone_into(&mut jar.access),
                SESSION => value.clone_into(&mut jar.session),
                _ => continue,
            }
            assert!(attributes.starts_with("Path=/; Max-Age="), "{line}");
            assert!(attributes.ends_with("; HttpOnly; Secure; SameSite=Lax"), "{line}");
            assert!(!attributes.contains("Domain"), "{line}");
        }
        jar
    }

    pub fn is_cleared_by(response: &Response) -> bool {
        let lines = response.headers("set-cookie");
        lines.len() == 2
            && lines.iter().all(|line| line.contains("=; ") && line.contains("Max-Age=0"))
    }

    /// As a browser sends them.
    pub fn send(&self, request: Request) -> Request {
        let Self { access, session } = self;
        request.header("Cookie", &format!("theme=dark; {ACCESS}={access}; {SESSION}={session}"))
    }
}

/// Registers, and logs in as a browser does.
pub async fn logged_in(gateway: &Gateway) -> Jar {
    gateway.register("ann@example.com").await;
    log_in(gateway).await
}

pub async fn log_in(gateway: &Gateway) -> Jar {
    let body = json!({ "email": "ann@example.com", "password": PASSWORD, "cookie": true });
    let response =
        gateway.post("/auth/login", &body).header("Origin", "http://app.test").send().await;
    // What is in a cookie that no script reads is not in a body that one can read.
    assert_eq!(response.status, 200, "{response:?}");
    let body = response.json();
    assert_eq!(body.as_object().unwrap().keys().collect::<Vec<_>>(), ["expires_in"], "{body}");
    let jar = Jar::of(&response);
    assert!(!jar.access.is_empty() && !jar.session.is_empty());
    jar
}

/// As a browser that goes to another page.
pub fn navigates(request: Request) -> Request {
    request
        .header("Sec-Fetch-Mode", "navigate")
        .header("Sec-Fetch-Site", "none")
        .header("Accept", "text/html,*/*")
}
