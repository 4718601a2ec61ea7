//! `backchannel_logout` of issuers.

use super::Compiler;
use crate::config::Problem;
use crate::config::file::Text;
use crate::gateway::logout::LogoutPaths;
use crate::token::Issuers;

impl Compiler<'_> {
    /// The paths, each with its issuer. Reports invalid ones.
    pub(super) fn logouts(&mut self, issuers: &Issuers) -> LogoutPaths {
        let mut paths: Vec<(&Text, String)> = Vec::new();
        for (name, written) in &self.file.issuer {
            let Some(path) = &written.backchannel_logout else { continue };
            if written.insecure_any_issuer.as_ref().is_some_and(|any| *any.get_ref()) {
                self.error(
                    Problem::error(path.span(), "a logout token names its issuer, but this section accepts tokens without `iss`")
                        .help("give the section its `issuer`, or remove `backchannel_logout`"),
                );
            }
            if let Some(problem) = self.logout_path(path, &paths) {
                self.error(problem);
                continue;
            }
            paths.push((path, name.get_ref().clone()));
        }
        let found =
            |name: &str| issuers.iter().find(|issuer| &*issuer.settings().name == name).cloned();
        LogoutPaths::new(
            paths.iter().filter_map(|(path, name)| Some((path.get_ref().clone(), found(name)?))),
        )
    }

    fn logout_path(&self, path: &Text, others: &[(&Text, String)]) -> Option<Problem> {
        let text = path.get_ref().as_str();
        let is_plain = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
        };
        if !text.strip_prefix('/').is_some_and(|path| path.split('/').all(is_plain)) {
            return Some(
                Problem::error(path.span(), "not a valid path for back-channel logout")
                    .help("write a fixed path of letters, digits, `-`, `_`, `.` and `~`, such as \"/backchannel-logout\""),
            );
        }
        if let Some((other, _)) =
            others.iter().find(|(other, _)| other.get_ref().eq_ignore_ascii_case(text))
        {
            return Some(
                Problem::error(path.span(), "two issuers have the same path")
                    .related(other.span(), "already taken here")
                    .help("give each issuer its own path, and register it there"),
            );
        }
        // Logout paths are matched before routes, so this one would take a route's requests on
        // every host.
        let taken = self.file.route.iter().find_map(|row| {
            let route = row.get_ref();
            let place = route.path.as_ref()?;
            let is_same = place.get_ref().eq_ignore_ascii_case(text);
            let is_identity = route.identity.as_ref().is_some_and(|identity| *identity.get_ref());
            (is_same || is_identity && is_below(text, place.get_ref())).then(|| place.span())
        });
        taken.map(|route| {
            Problem::error(path.span(), "this path is taken by a route")
                .related(route, "this route")
                .help("choose a path that no route matches")
        })
    }
}

/// Whether a path is in the subtree of a pattern such as `/auth/*`.
fn is_below(path: &str, pattern: &str) -> bool {
    let Some(root) = pattern.strip_suffix("/*") else { return false };
    let (path, root) = (path.to_ascii_lowercase(), root.to_ascii_lowercase());
    path.strip_prefix(&root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
