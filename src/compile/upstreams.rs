//! `[upstream.*]`

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use rustls::pki_types::ServerName;
use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use super::tls::WrittenPair;
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::file::Upstream as Written;
use crate::config::value::{self, SecretBytes};
use crate::gateway::upstream::{Application, KeepAlive, Upstream, UpstreamSettings};
use crate::outbound::{Url, UrlError};
use crate::tls::{self, CertifiedPair};

/// A certificate that applications are shown, and its private key, both as PEM.
struct OwnKey {
    certificate: Vec<u8>,
    key: SecretBytes,
}

impl Compiler<'_> {
    pub(super) fn upstreams(&mut self, workers: usize) -> BTreeMap<String, Arc<Upstream>> {
        let mut upstreams = BTreeMap::new();
        for (name, written) in &self.file.upstream {
            let Some((settings, own_key)) = self.upstream(name, written) else { continue };
            let mut before = self.previous.into_iter().flat_map(|previous| &previous.upstreams);
            let previous = before.find(|upstream| {
                let UpstreamSettings { name, application, .. } = upstream.settings();
                *name == settings.name && *application == settings.application
            });
            let upstream = match previous {
                // An unchanged upstream keeps its connections.
                Some(kept) if *kept.settings() == settings => Arc::clone(kept),
                _ => {
                    let Some(tls) = self.connector(name, written, &settings, own_key.as_ref())
                    else {
                        continue;
                    };
                    let upstream = Upstream::new(settings, tls, workers);
                    Arc::new(match previous {
                        Some(previous) => upstream.succeeding(previous),
                        None => upstream,
                    })
                }
            };
            upstreams.insert(name.get_ref().clone(), upstream);
        }
        upstreams
    }

    fn upstream(
        &mut self,
        name: &Text,
        written: &Written,
    ) -> Option<(UpstreamSettings, Option<OwnKey>)> {
        let application = self.application(name, written);
        let host = match &written.host {
            None => Some(None),
            Some(text) => self.host_header(text).map(Some),
        };
        let path_case = match &written.path_case {
            None => Some(false),
            Some(text) => self
                .ok_or_report(value::choice(text, &[("sensitive", false), ("insensitive", true)])),
        };
        let tls = written.tls.as_ref().map(Spanned::get_ref);
        let ca = match tls.and_then(|tls| tls.ca.as_ref()) {
            None => Some(None),
            Some(text) => {
                self.read_file(text, "a PEM file with the trusted certificates").map(Some)
            }
        };
        let own_key = self.own_key(written);
        let max_requests = match &written.max_requests {
            None => Some(0),
            Some(number) => self.number(number, 0, 1_000_000),
        };
        let total_timeout = self.duration(written.total_timeout.as_ref(), "0s");
        let settings = UpstreamSettings {
            name: name.get_ref().clone(),
            application: application?,
            host: host?,
            connect_timeout: self.timeout(written.connect_timeout.as_ref(), "2s"),
            response_timeout: self.timeout(written.response_timeout.as_ref(), "60s"),
            idle_timeout: self.timeout(written.idle_timeout.as_ref(), "5m"),
            keep_idle: self.duration(written.keep_idle.as_ref(), "1500ms"),
            keep_alive: match written.keep_alive {
                None => KeepAlive::Repeatable,
                Some(true) => KeepAlive::Always,
                Some(false) => KeepAlive::Never,
            },
            http2: written.http2.unwrap_or(false),
            max_requests: max_requests.filter(|&most| most > 0),
            total_timeout: Some(total_timeout).filter(|timeout| !timeout.is_zero()),
            folds_case: path_case?,
            ca: ca?,
            own_certificate: own_key
                .as_ref()
                .map(|own| (own.certificate.clone(), super::tls::sha256(own.key.expose()))),
            server_name: tls
                .and_then(|tls| tls.server_name.as_ref())
                .map(|name| name.get_ref().clone()),
        };
        Some((settings, own_key))
    }

    /// The certificate that the application is shown, and its private key, both as PEM.
    fn own_key(&mut self, written: &Written) -> Option<OwnKey> {
        let tls = written.tls.as_ref()?.get_ref();
        match (&tls.certificate, &tls.private_key) {
            (Some(certificate), Some(private_key)) => {
                let pem = self.read_file(
                    certificate,
                    "a PEM file with the certificate, then its intermediates",
                );
                let key = self.read_secret(private_key, Inline::Never);
                let (pem, key) = pem.zip(key)?;
                match CertifiedPair::new(&pem, key.expose()) {
                    Ok(_) => Some(OwnKey { certificate: pem, key }),
                    Err(error) => {
                        self.tls_error(&error, &WrittenPair { certificate, private_key });
                        None
                    }
                }
            }
            (Some(alone), None) => {
                self.error(
                    Problem::error(alone.span(), "the certificate has no `private_key`")
                        .help("add `private_key = { file = \"client.key\" }`"),
                );
                None
            }
            (None, Some(alone)) => {
                self.error(
                    Problem::error(alone.span(), "the private key has no `certificate`")
                        .help("add `certificate = \"client.crt\"`"),
                );
                None
            }
            (None, None) => None,
        }
    }

    fn application(&mut self, name: &Text, written: &Written) -> Option<Application> {
        match (&written.url, &written.builtin) {
            (Some(url), None) => self.url(url, written),
            (None, Some(builtin)) => {
                if let Some(tls) = &written.tls {
                    self.error(
                        Problem::error(tls.span(), "the built-in application does not use TLS")
                            .help("remove `tls`"),
                    );
                }
                self.ok_or_report(value::choice(builtin, &[("echo", ())]))
                    .map(|()| Application::Echo)
            }
            (Some(url), Some(builtin)) => {
                self.error(
                    Problem::error(builtin.span(), "`url` and `builtin` contradict each other")
                        .related(url.span(), "the other")
                        .help("keep one of them"),
                );
                None
            }
            (None, None) => {
                self.error(
                    Problem::error(name.span(), format!("upstream `{}` has no `url`", name.get_ref()))
                        .help("add `url = \"http://127.0.0.1:3000\"`, or `builtin = \"echo\"` to try things out"),
                );
                None
            }
        }
    }

    fn url(&mut self, text: &Text, written: &Written) -> Option<Application> {
        if let Some(path) = text.get_ref().strip_prefix("unix:") {
            return self.unix(text, path, written);
        }
        let example = "write scheme, host and port alone, such as \"http://127.0.0.1:3000\"";
        let read = match Url::parse(text.get_ref()) {
            Ok(url) if url.path() == "/" && url.query().is_none() => Ok(url),
            Ok(_) => Err((
                "an upstream's URL cannot have a path".to_owned(),
                "routes choose the path; see `strip_prefix` for a prefix that the application does not know",
            )),
            Err(error @ UrlError::UserInfo) => Err((
                format!("this cannot be an upstream's URL: {error}"),
                "remove it; the gateway sends no credentials of its own",
            )),
            Err(error) => Err((format!("this cannot be an upstream's URL: {error}"), example)),
        };
        let url = match read {
            Ok(url) => url,
            Err((message, help)) => {
                self.error(Problem::error(text.span(), message).help(help));
                return None;
            }
        };
        if let (Some(settings), false) = (&written.tls, url.is_https()) {
            self.error(
                Problem::error(settings.span(), "`tls` is for https:// upstreams")
                    .related(text.span(), "this one is cleartext")
                    .help("remove `tls`, or write https://"),
            );
            return None;
        }
        let (host, port) = (url.bare_host().to_owned(), url.port());
        Some(Application::Http { host, port, tls: url.is_https() })
    }

    /// An application on a socket of this machine.
    fn unix(&mut self, text: &Text, path: &str, written: &Written) -> Option<Application> {
        if let Some(settings) = &written.tls {
            self.error(
                Problem::error(settings.span(), "`tls` is for https:// upstreams")
                    .related(text.span(), "this one is a socket of this machine")
                    .help("remove `tls`"),
            );
        }
        let is_named = !path.is_empty();
        let path = self.source.folder().join(path);
        // The system's limit (unix(7)).
        if !is_named || path.as_os_str().len() > 107 {
            self.error(
                Problem::error(text.span(), "this cannot be the path of a socket")
                    .help("write a path of at most 107 bytes, such as \"unix:/run/app.sock\""),
            );
            return None;
        }
        Some(Application::Unix { path })
    }

    fn host_header(&mut self, text: &Text) -> Option<HeaderValue> {
        let valid = text
            .get_ref()
            .parse::<http::uri::Authority>()
            .is_ok_and(|authority| !authority.as_str().contains('@'));
        match HeaderValue::from_str(text.get_ref()) {
            Ok(value) if valid => Some(value),
            _ => {
                self.error(
                    Problem::error(text.span(), "not a valid Host")
                        .help("write a host name, with `:port` if the application expects it"),
                );
                None
            }
        }
    }

    /// The TLS settings of an upstream; `Some(None)` if it uses none.
    #[expect(clippy::option_option, reason = "outer: a problem was found; inner: cleartext")]
    fn connector(
        &mut self,
        name: &Text,
        written: &Written,
        settings: &UpstreamSettings,
        own_key: Option<&OwnKey>,
    ) -> Option<Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>> {
        let Application::Http { host, tls: true, .. } = &settings.application else {
            return Some(None);
        };
        let span = written.url.as_ref().map_or(name.span(), Spanned::span);
        let wanted = written.tls.as_ref().and_then(|tls| tls.get_ref().server_name.as_ref());
        let span = wanted.map_or(span, Spanned::span);
        let wanted = settings.server_name.clone().unwrap_or_else(|| host.clone());
        let Ok(server_name) = ServerName::try_from(wanted) else {
            self.error(
                Problem::error(span, "a certificate cannot contain this name")
                    .help("write a DNS name or an IP address"),
            );
            return None;
        };
        let own = own_key.map(|own| (own.certificate.as_slice(), own.key.expose()));
        match tls::client_config(settings.ca.as_deref(), own) {
            Ok(config) => Some(Some((Arc::new(config), server_name))),
            Err(error) => {
                let tls = written.tls.as_ref().map(Spanned::get_ref);
                let span = tls.and_then(|tls| tls.ca.as_ref()).map_or(span, Spanned::span);
                self.error(Problem::error(span, error.to_string()));
                None
            }
        }
    }
}
