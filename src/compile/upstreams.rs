//! `[upstream.*]`

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderValue;
use rustls::pki_types::ServerName;
use toml::Spanned;

use super::Compiler;
use crate::config::Problem;
use crate::config::file::Text;
use crate::config::file::Upstream as Written;
use crate::config::value;
use crate::gateway::upstream::{Application, KeepAlive, Upstream, UpstreamSettings};
use crate::outbound::{Url, UrlError};
use crate::tls;

impl Compiler<'_> {
    pub(super) fn upstreams(&mut self, workers: usize) -> BTreeMap<String, Arc<Upstream>> {
        let mut upstreams = BTreeMap::new();
        for (name, written) in &self.file.upstream {
            let Some(settings) = self.upstream(name, written) else { continue };
            let previous = self.previous.into_iter().flat_map(|previous| &previous.upstreams);
            let upstream =
                match previous.into_iter().find(|upstream| *upstream.settings() == settings) {
                    // An unchanged upstream keeps its connections.
                    Some(kept) => Arc::clone(kept),
                    None => match self.connector(name, written, &settings) {
                        Some(tls) => Arc::new(Upstream::new(settings, tls, workers)),
                        None => continue,
                    },
                };
            upstreams.insert(name.get_ref().clone(), upstream);
        }
        upstreams
    }

    fn upstream(&mut self, name: &Text, written: &Written) -> Option<UpstreamSettings> {
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
        let ca = written.tls.as_ref().and_then(|tls| tls.get_ref().ca.as_ref());
        let ca = match ca {
            None => Some(None),
            Some(text) => {
                self.read_file(text, "a PEM file with the trusted certificates").map(Some)
            }
        };
        Some(UpstreamSettings {
            name: name.get_ref().clone(),
            application: application?,
            host: host?,
            connect_timeout: self.timeout(written.connect_timeout.as_ref(), "2s"),
            response_timeout: self.timeout(written.response_timeout.as_ref(), "60s"),
            idle_timeout: self.timeout(written.idle_timeout.as_ref(), "5m"),
            keep_idle: self.duration(written.keep_idle.as_ref(), "1500ms"),
            keep_alive: match written.keep_alive {
                None => KeepAlive::WithoutBody,
                Some(true) => KeepAlive::Always,
                Some(false) => KeepAlive::Never,
            },
            folds_case: path_case?,
            ca: ca?,
        })
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
    ) -> Option<Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>> {
        let Application::Http { host, tls: true, .. } = &settings.application else {
            return Some(None);
        };
        let span = written.url.as_ref().map_or(name.span(), Spanned::span);
        let Ok(server_name) = ServerName::try_from(host.clone()) else {
            self.error(
                Problem::error(span, "a certificate cannot contain this host")
                    .help("write a DNS name or an IP address"),
            );
            return None;
        };
        match tls::client_config(settings.ca.as_deref()) {
            Ok(config) => Some(Some((Arc::new(config), server_name))),
            Err(error) => {
                let span = written
                    .tls
                    .as_ref()
                    .and_then(|tls| tls.get_ref().ca.as_ref())
                    .map_or(span, Spanned::span);
                self.error(Problem::error(span, error.to_string()));
                None
            }
        }
    }
}
