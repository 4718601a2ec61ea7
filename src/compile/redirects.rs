//! `redirect` of a route.

use http::Method;
use toml::Spanned;

use super::Compiler;
use super::hidden_login::{example, example_path, target};
use super::routes::place;
use crate::config::Problem;
use crate::config::file::{Redirect as Written, Route as WrittenRoute};
use crate::gateway::redirect::Redirect;
use crate::gateway::route::{Destination, Methods, Route, RouteTable};

impl Compiler<'_> {
    pub(super) fn redirect(&mut self, written: &Spanned<Written>) -> Option<Redirect> {
        let status = match &written.get_ref().status {
            None => Some(308),
            Some(status) => {
                let known = Redirect::STATUSES
                    .into_iter()
                    .find(|known| i64::from(*known) == *status.get_ref());
                if known.is_none() {
                    let message = format!("{} is not the status of a redirect", status.get_ref());
                    self.error(Problem::error(status.span(), message).help(
                        "write 301, 302, 307 or 308; 307 and 308 keep the method and the body",
                    ));
                }
                known
            }
        };
        let Some(to) = &written.get_ref().to else {
            self.error(
                Problem::error(written.span(), "the redirect has no `to`")
                    .help("add the address, such as `to = \"https://dav.example.com{path}\"`"),
            );
            return None;
        };
        match Redirect::parse(to.get_ref(), status.unwrap_or_default()) {
            Ok(redirect) => status.map(|_| redirect),
            Err(invalid) => {
                self.error(Problem::error(to.span(), invalid.problem).help(invalid.help));
                None
            }
        }
    }

    /// Looks up the route at the address of each redirect. If it is the same one, a client would
    /// never arrive.
    pub(super) fn refuse_redirects_to_themselves(
        &mut self,
        table: &RouteTable,
        written: &[&Spanned<WrittenRoute>],
    ) {
        for route in table.routes() {
            let Some(end) = end(table, route) else { continue };
            let row = written.get(route.index);
            let span = row
                .and_then(|row| row.get_ref().redirect.as_ref().map(Spanned::span))
                .unwrap_or_default();
            let message = "the address of this redirect is on the same route: a client would be redirected forever";
            let problem = match end {
                End::SamePath => Problem::error(span, message),
                End::SameHost => Problem::warning(
                    span,
                    format!("{message}, unless another server answers there"),
                ),
            };
            let path = row.map(|row| place(row)).unwrap_or_default();
            self.error(
                problem.related(path, "this route matches the address too").help(
                    "redirect to another host or path, or give the address a route of its own",
                ),
            );
        }
    }
}

/// How a redirect comes back to its own route.
enum End {
    /// By a path.
    SamePath,
    /// By a URL with the host of the request: its scheme or port may lead to another server.
    SameHost,
}

/// Whether the address of a route's redirect is on the same route.
fn end(table: &RouteTable, route: &Route) -> Option<End> {
    let Destination::Redirect(redirect) = &route.destination else { return None };
    let host = example(&route.pattern.host);
    let asked = target(&host, &example_path(route))?;
    let sent = asked.rewritten(route.strip_segments, None).ok()?;
    let address = redirect.address(&asked, &sent).ok()?;
    let address: http::Uri = address.to_str().ok()?.parse().ok()?;
    let end = match address.host() {
        None => End::SamePath,
        Some(other) if other.eq_ignore_ascii_case(&host) => End::SameHost,
        Some(_) => return None,
    };
    let again = target(&host, address.path())?;
    let method = match &route.pattern.methods {
        Methods::All => &Method::GET,
        Methods::Only(methods) => methods.first()?,
    };
    let found = table.find_route(method, &again).ok()?;
    (found.index == route.index).then_some(end)
}
