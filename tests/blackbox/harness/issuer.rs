//! An issuer that publishes its keys: a JWK Set at `/keys`, and metadata at configurable paths.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::certificates::authority;
use super::mint::Published;
use super::upstream::answer;
use super::{Step, Upstream};

/// An issuer. It ends with the test.
#[derive(Clone)]
pub struct Issuer {
    server: Upstream,
    scheme: &'static str,
}

impl Issuer {
    /// Starts over cleartext and publishes these keys.
    pub async fn start(keys: &[&Published]) -> Self {
        Self { server: Upstream::start().await, scheme: "http" }.with(keys)
    }

    /// Starts over TLS, with a certificate of [`authority`].
    pub async fn start_tls(keys: &[&Published]) -> Self {
        let certificate = authority().issue(&["127.0.0.1"]);
        Self { server: Upstream::start_tls(certificate.server()).await, scheme: "https" }.with(keys)
    }

    /// Starts at the address of a stopped one.
    pub async fn start_at(address: SocketAddr, keys: &[&Published]) -> Self {
        Self { server: Upstream::start_at(address).await, scheme: "http" }.with(keys)
    }

    fn with(self, keys: &[&Published]) -> Self {
        self.server.answers("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        self.publish(keys);
        self
    }

    /// Publishes only these keys from now on.
    pub fn publish(&self, keys: &[&Published]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.answers("/keys", &json!({ "keys": keys }));
    }

    /// Responds with this document from now on.
    pub fn answers(&self, path: &str, document: &Value) {
        self.says(path, "200 OK", "application/json", &document.to_string());
    }

    /// Responds with these bytes from now on.
    pub fn says(&self, path: &str, status: &str, kind: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.does(path, answer(&format!("{head}{body}")));
    }

    /// Handles each request like this from now on.
    pub fn does(&self, path: &str, steps: Vec<Step>) {
        self.server.does_at(path, steps);
    }

    /// Its URL without a final slash.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.server.address())
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn server(&self) -> &Upstream {
        &self.server
    }

    /// How often this path was requested.
    pub fn asked(&self, path: &str) -> usize {
        self.server.seen().requests.iter().filter(|request| request.target == path).count()
    }

    /// Waits until the set was requested this often.
    pub async fn until_asked(&self, times: usize) {
        self.server
            .until(|seen| {
                seen.requests.iter().filter(|request| request.target == "/keys").count() >= times
            })
            .await;
    }

    /// Stops.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// A section that fetches from `/keys`, with these lines in addition to the usual ones
    /// (`issuer.NAME.jwks_url` and so on).
    pub fn section(&self, name: &str, more: &str) -> String {
        let url = self.url();
        format!(
            "[issuer.{name}]\nissuer = 'https://login.test/{name}'\naudience = ['reports']\nalgorithms = ['ES256']\njwks_url = '{url}/keys'\n{more}\n"
        )
    }
}
