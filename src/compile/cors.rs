//! `cors` of a route.

use http::{HeaderName, HeaderValue, Uri};
use toml::Spanned;

use super::Compiler;
use crate::config::Problem;
use crate::config::file::{Route as Written, Text};
use crate::gateway::cors::Cors;

impl Compiler<'_> {
    pub(super) fn cors(&mut self, written: &Written) -> Option<Box<Cors>> {
        let section = written.cors.as_ref()?;
        if let Some(external) = written.external.as_ref().filter(|flag| *flag.get_ref()) {
            self.error(
                Problem::error(section.span(), "`cors` has no effect on an external route")
                    .related(external.span(), "another proxy forwards the requests of this route")
                    .help("remove it, and configure that proxy"),
            );
        }
        let listed = section.get_ref().origins.as_ref().map(Spanned::get_ref);
        if listed.is_none_or(Vec::is_empty) {
            self.error(
                Problem::error(section.span(), "`cors` names no origins")
                    .help("add `origins = [\"https://app.example.com\"]`"),
            );
        }
        let origins = listed.into_iter().flatten().filter_map(|text| self.origin(text)).collect();
        let mut names = Vec::new();
        for text in &section.get_ref().headers {
            match HeaderName::from_bytes(text.get_ref().as_bytes()) {
                Ok(name) => names.push(name.to_string()),
                Err(_) => self.error(Problem::error(text.span(), "not a valid header name")),
            }
        }
        let max_age = self.duration(section.get_ref().max_age.as_ref(), "10m");
        let headers = HeaderValue::try_from(names.join(", ")).ok();
        Some(Box::new(Cors {
            origins,
            headers: headers.filter(|list| !list.is_empty()),
            credentials: section.get_ref().credentials,
            max_age: max_age.as_secs(),
        }))
    }

    /// An origin as browsers write it (RFC 6454 §6.2).
    fn origin(&mut self, text: &Text) -> Option<HeaderValue> {
        let written = text.get_ref();
        let uri = written.parse::<Uri>().ok();
        let serialized = uri.as_ref().and_then(|uri| {
            let (scheme, host) = (uri.scheme_str()?, uri.host()?.to_ascii_lowercase());
            let default = match scheme {
                "https" => 443,
                "http" => 80,
                _ => return None,
            };
            if host.contains('*') {
                return None;
            }
            let port = uri.port_u16().filter(|port| *port != default);
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            Some(format!("{scheme}://{host}{port}"))
        });
        if serialized.as_ref() == Some(written) {
            return HeaderValue::from_str(written).ok();
        }
        let help = match serialized {
            Some(origin) => format!("write \"{origin}\""),
            None => "write scheme and host, with the port if it is not the default, such as \"https://app.example.com\"; each origin is listed, without `*`".to_owned(),
        };
        self.error(Problem::error(text.span(), "this is not an origin").help(help));
        None
    }
}
