//! The requests that a route matches: its `host`, `path` and `methods`.

use http::Method;
use toml::Spanned;

use super::Compiler;
use super::routes::Named;
use crate::config::Problem;
use crate::config::file::Route as Written;
use crate::config::file::Text;
use crate::gateway::route::{HostPattern, Methods, Pattern, Segment};
use crate::gateway::upstream::Upstream;

impl Compiler<'_> {
    /// The requests that a route matches, as far as the file is valid.
    pub(super) fn pattern(
        &mut self,
        row: &Spanned<Written>,
        upstreams: &Named<Upstream>,
    ) -> Option<Pattern> {
        let written = row.get_ref();
        let path = self.path(row);
        let host = match &written.host {
            None => Some(HostPattern::Any),
            Some(text) => self.host(text),
        };
        let methods = match &written.methods {
            None => Some(Methods::All),
            Some(methods) => self.methods(methods),
        };
        let upstream = written.upstream.as_ref().and_then(|name| upstreams.get(name.get_ref()));
        let (segments, subtree) = path?;
        let fold_case = upstream.is_some_and(|upstream| upstream.settings().folds_case);
        Some(Pattern { host: host?, segments, subtree, methods: methods?, fold_case })
    }

    fn path(&mut self, row: &Spanned<Written>) -> Option<(Vec<Segment>, bool)> {
        let Some(text) = &row.get_ref().path else {
            self.error(
                Problem::error(row.span(), "the route has no `path`")
                    .help("add `path = \"/*\"` for everything, or `path = \"/reports/*\"`"),
            );
            return None;
        };
        match Pattern::parse_path(text.get_ref()) {
            Ok(parsed) => {
                let decoded = text.get_ref();
                let escape = decoded.as_bytes().windows(3).any(|window| {
                    window[0] == b'%' && window[1..].iter().all(u8::is_ascii_hexdigit)
                });
                if escape {
                    self.error(
                        Problem::error(text.span(), "route paths must be written decoded")
                            .help("write the character itself instead of its percent-encoding"),
                    );
                    return None;
                }
                self.warn_about_foreign_syntax(text);
                Some(parsed)
            }
            Err(wrong) => {
                self.error(Problem::error(text.span(), format!("the path {wrong}")).help(
                    "write a path such as `/reports`, `/reports/*` or `/reports/{id}/pages`",
                ));
                None
            }
        }
    }

    /// Warns about parameters and expressions of other routers, which match only themselves here.
    fn warn_about_foreign_syntax(&mut self, path: &Text) {
        let is_parameter = |segment: &str| {
            segment.starts_with(':') || (segment.starts_with('<') && segment.ends_with('>'))
        };
        let is_expression = |segment: &str| {
            segment.starts_with('^')
                || segment.ends_with('$')
                || segment.contains(".*")
                || segment.contains(".+")
                || (segment.contains('[') && segment.contains(']'))
                || (segment.contains('(') && segment.contains('|'))
        };
        let segments =
            || path.get_ref().split('/').filter(|segment| segment.len() > 1 || *segment == "$");
        let (segment, help) =
            if let Some(segment) = segments().find(|segment| is_parameter(segment)) {
                let name = segment.trim_matches([':', '<', '>']);
                let name = name.rsplit(':').next().filter(|name| !name.is_empty()).unwrap_or("id");
                (segment, format!("write `{{{name}}}` for a segment of any text"))
            } else if let Some(segment) = segments().find(|segment| is_expression(segment)) {
                (
                segment,
                "write `{id}` for a segment of any text, and `/*` at the end for everything below"
                    .to_owned(),
            )
            } else {
                return;
            };
        let segment = segment.escape_debug();
        self.problems.push(
            Problem::warning(
                path.span(),
                format!("`{segment}` matches only a segment with exactly this text"),
            )
            .help(help),
        );
    }

    fn host(&mut self, text: &Text) -> Option<HostPattern> {
        let lower = text.get_ref().to_ascii_lowercase();
        let valid = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && !name.ends_with('.')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if let Some(suffix) = lower.strip_prefix('*') {
            if suffix.starts_with('.') && valid(&suffix[1..]) {
                return Some(HostPattern::Suffix(suffix.into()));
            }
        } else if valid(&lower)
            || (lower.starts_with('[')
                && lower.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok())
        {
            return Some(HostPattern::Exact(lower.into()));
        }
        self.error(
            Problem::error(text.span(), format!("`{}` is not a valid host", text.get_ref().escape_debug()))
                .help("write `app.example.com` or `*.example.com`, without scheme, port, path or final dot"),
        );
        None
    }

    fn methods(&mut self, methods: &Spanned<Vec<Text>>) -> Option<Methods> {
        let mut found = Vec::new();
        for text in methods.get_ref() {
            let upper = text.get_ref().to_ascii_uppercase();
            match Method::from_bytes(upper.as_bytes()) {
                Ok(method) if method == Method::CONNECT || method == Method::TRACE => {
                    self.error(
                        Problem::error(text.span(), format!("{method} is never forwarded"))
                            .help("remove it"),
                    );
                }
                Ok(method) if upper == *text.get_ref() => found.push(method),
                Ok(_) => self.error(
                    Problem::error(text.span(), "methods must be in upper case")
                        .help(format!("write \"{upper}\"")),
                ),
                Err(_) => self.error(
                    Problem::error(text.span(), "not a valid method")
                        .help("write a method such as \"GET\" or \"POST\""),
                ),
            }
        }
        if methods.get_ref().is_empty() {
            self.error(
                Problem::error(methods.span(), "`methods` is empty: the route would match nothing")
                    .help("remove it for every method"),
            );
        }
        (found.len() == methods.get_ref().len() && !found.is_empty()).then(|| Methods::only(found))
    }
}
