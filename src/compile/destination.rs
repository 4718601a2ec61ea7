//! The destination of a route: `upstream`, `identity` or `external`.

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
        match (&written.upstream, &written.identity) {
            (_, Some(identity)) if *identity.get_ref() => {
                self.mount(row, identity.span(), pattern).map(Destination::Identity)
            }
            (Some(_), _) => self
                .find_section(
                    written.upstream.as_ref(),
                    upstreams,
                    "upstream",
                    self.file.upstream.keys(),
                )
                .map(Destination::Upstream),
            (None, _) => {
                self.error(
                    Problem::error(place(row), "the route has no `upstream`")
                        .help("add `upstream = \"…\"` with the name of an `[upstream.NAME]`, or `identity = true` for the built-in issuer, or `external = true` if another proxy forwards its requests"),
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
        self.reject_keys_without_effect(written, &identity);
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

    /// Keys of a route that control how requests are forwarded, or who may pass.
    fn reject_keys_without_effect(&mut self, written: &Written, identity: &Range<usize>) {
        let without_effect = [
            (written.token_from.as_ref().map(Spanned::span), "token_from"),
            (
                written
                    .forward_authorization
                    .as_ref()
                    .filter(|flag| *flag.get_ref())
                    .map(Spanned::span),
                "forward_authorization",
            ),
            (
                written.strip_prefix.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span),
                "strip_prefix",
            ),
            (written.insecure_path.first().map(Spanned::span), "insecure_path"),
            (
                written.method_override.as_ref().filter(|flag| *flag.get_ref()).map(Spanned::span),
                "method_override",
            ),
            (
                written.enforce.as_ref().filter(|flag| !*flag.get_ref()).map(Spanned::span),
                "enforce",
            ),
            (written.identity_headers.as_ref().map(|_| identity.clone()), "identity_headers"),
        ];
        for (span, key) in without_effect.into_iter().filter_map(|(span, key)| Some((span?, key))) {
            self.error(
                Problem::error(
                    span,
                    format!("`{key}` has no effect on a route of the built-in issuer"),
                )
                .help(format!("remove `{key}`")),
            );
        }
    }
}
