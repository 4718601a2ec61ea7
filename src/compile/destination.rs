//! The destination of a route: `upstream`, `identity`, `external` or `redirect`.

use std::ops::Range;

use toml::Spanned;

use super::Compiler;
use super::routes::{Named, place};
use crate::config::Problem;
use crate::config::file::Route as Written;
use crate::gateway::route::{Destination, Pattern, Segment};
use crate::gateway::upstream::Upstream;
use crate::identity::Mount;

/// Whether a route leads to the built-in issuer.
pub(super) fn leads_to_identity(written: &Written) -> bool {
    written.identity.as_ref().is_some_and(|identity| *identity.get_ref())
}

impl Compiler<'_> {
    pub(super) fn destination(
        &mut self,
        row: &Spanned<Written>,
        pattern: Option<&Pattern>,
        upstreams: &Named<Upstream>,
    ) -> Option<Destination> {
        let written = row.get_ref();
        if let Some(external) = written.external.as_ref().filter(|flag| *flag.get_ref()) {
            self.check_external(row, external.span());
            return Some(Destination::External);
        }
        if leads_to_identity(written) {
            let identity = written.identity.as_ref().map_or(0..0, Spanned::span);
            return self.mount(row, identity, pattern).map(Destination::Identity);
        }
        match (&written.upstream, &written.redirect) {
            (Some(upstream), Some(redirect)) => {
                self.error(
                    Problem::error(
                        upstream.span(),
                        "`upstream` and `redirect` contradict each other",
                    )
                    .related(redirect.span(), "the other")
                    .help("keep one of them"),
                );
                None
            }
            (Some(_), None) => self
                .find_section(
                    written.upstream.as_ref(),
                    upstreams,
                    "upstream",
                    self.file.upstream.keys(),
                )
                .map(Destination::Upstream),
            (None, Some(redirect)) => {
                self.reject_keys_without_effect(written, &redirect.span(), Nearby::Redirect);
                self.redirect(redirect).map(Destination::Redirect)
            }
            (None, None) => {
                self.error(
                    Problem::error(place(row), "the route has no `upstream`")
                        .help("add `upstream = \"…\"` with the name of an `[upstream.NAME]`, `identity = true` for the built-in issuer, `external = true` if another proxy forwards its requests, or `redirect = { to = \"…\" }`"),
                );
                None
            }
        }
    }

    /// The path at which the built-in issuer's endpoints start.
    fn mount(
        &mut self,
        row: &Spanned<Written>,
        identity: Range<usize>,
        pattern: Option<&Pattern>,
    ) -> Option<Mount> {
        let written = row.get_ref();
        let before = self.problems.len();
        if self.file.identity.is_none() {
            self.error(
                Problem::error(identity.clone(), "the route needs an `[identity]` section")
                    .help("add `[identity]` with `issuer = \"…\"`, the URL of this route"),
            );
        }
        if let Some(upstream) = &written.upstream {
            self.error(
                Problem::error(upstream.span(), "`upstream` and `identity` contradict each other")
                    .related(identity.clone(), "the built-in issuer handles this route")
                    .help("keep one of them"),
            );
        }
        if let Some(redirect) = &written.redirect {
            self.error(
                Problem::error(redirect.span(), "`redirect` and `identity` contradict each other")
                    .related(identity.clone(), "the built-in issuer handles this route")
                    .help("keep one of them"),
            );
        }
        if let Some(access) = written.access.as_ref().filter(|access| access.get_ref() != "public")
        {
            self.error(
                Problem::error(
                    access.span(),
                    "the built-in issuer must be public: its endpoints check access themselves",
                )
                .help("remove `access`, or write `access = \"public\"`"),
            );
        }
        self.reject_keys_without_effect(written, &identity, Nearby::Identity);
        let pattern = pattern?;
        let literals: Option<Vec<&str>> = pattern
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => Some(&**text),
                Segment::Any => None,
            })
            .collect();
        match literals {
            Some(literals) if pattern.subtree && self.problems.len() == before => {
                Some(Mount::new(literals))
            }
            Some(_) if pattern.subtree => None,
            _ => {
                self.error(
                    Problem::error(place(row), "the built-in issuer needs one fixed path")
                        .help("write `path = \"/auth/*\"`"),
                );
                None
            }
        }
    }

    /// Keys of a route that control how requests are forwarded; for the built-in issuer, also those
    /// that say who may pass.
    fn reject_keys_without_effect(
        &mut self,
        written: &Written,
        destination: &Range<usize>,
        nearby: Nearby,
    ) {
        let is_on = |flag: &Option<Spanned<bool>>| {
            flag.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span)
        };
        let forwards = [
            (is_on(&written.forward_authorization), "forward_authorization"),
            (is_on(&written.method_override), "method_override"),
            (written.identity_headers.as_ref().map(|_| destination.clone()), "identity_headers"),
            (written.set_headers.as_ref().map(Spanned::span), "set_headers"),
            (written.streams.as_ref().map(Spanned::span), "streams"),
            (written.stream_max_age.as_ref().map(Spanned::span), "stream_max_age"),
        ];
        let enforce = written.enforce.as_ref().filter(|flag| !*flag.get_ref());
        let decides = [
            (written.token_from.as_ref().map(Spanned::span), "token_from"),
            (is_on(&written.strip_prefix), "strip_prefix"),
            (written.insecure_path.first().map(Spanned::span), "insecure_path"),
            (enforce.map(Spanned::span), "enforce"),
        ];
        let (kind, decides) = match nearby {
            Nearby::Identity => ("of the built-in issuer", Some(decides)),
            Nearby::Redirect => ("that redirects", None),
        };
        let without_effect = forwards.into_iter().chain(decides.into_iter().flatten());
        for (span, key) in without_effect.filter_map(|(span, key)| Some((span?, key))) {
            self.error(
                Problem::error(span, format!("`{key}` has no effect on a route {kind}"))
                    .help(format!("remove `{key}`")),
            );
        }
    }
}

/// The destinations that are not an application.
#[derive(Clone, Copy)]
enum Nearby {
    Identity,
    Redirect,
}
