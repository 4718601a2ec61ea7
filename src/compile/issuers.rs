//! `[issuer.*]`, and the files and secrets that sections refer to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::Compiler;
use crate::config::file::Issuer as Written;
use crate::config::file::Text;
use crate::config::identity::NAME;
use crate::config::value::{self, ClaimName, SecretBytes, SecretRef};
use crate::config::{FileVersion, Problem, read_bounded};
use crate::identity::Policy;
use crate::keys::{IssuerKeys, Keys};
use crate::token::{
    Algorithm, Algorithms, ClaimPath, Family, Issuer, IssuerSettings, Issuers, KeyPattern,
    RevokedKeys,
};

impl Compiler<'_> {
    /// The accepted issuers, and the owner of the keys of each.
    pub(super) fn issuers(&mut self, built_in: Option<&Policy>, folder: &Path) -> (Issuers, Keys) {
        let mut owners: Vec<Arc<IssuerKeys>> = Vec::new();
        let mut issuers: Vec<Arc<Issuer>> =
            built_in.map(|policy| self.built_in_issuer(policy)).into_iter().collect();
        let mut any: Option<&Text> = None;
        let mut taken: Vec<&Text> = self
            .file
            .identity
            .iter()
            .filter_map(|identity| identity.get_ref().issuer.as_ref())
            .collect();
        for (name, written) in &self.file.issuer {
            if let (true, Some(section)) = (name.get_ref() == NAME, &self.file.identity) {
                self.error(
                    Problem::error(name.span(), "`identity` is the name of the built-in issuer")
                        .related(section.span(), "which is configured here")
                        .help("give this issuer another name"),
                );
                continue;
            }
            if is_true(written.insecure_any_issuer.as_ref())
                && let Some(other) = any.replace(name)
            {
                self.error(
                    Problem::error(name.span(), "a second section accepts tokens without `iss`")
                        .related(other.span(), "the first")
                        .help("tokens without `iss` are indistinguishable: keep only one `insecure_any_issuer = true`"),
                );
            }
            if let Some(issuer) = &written.issuer {
                if let Some(other) = taken.iter().find(|other| other.get_ref() == issuer.get_ref())
                {
                    self.error(
                        Problem::error(issuer.span(), "two sections accept the same `iss`")
                            .related(other.span(), "already taken here")
                            .help("merge the two sections: each issuer has exactly one"),
                    );
                    continue;
                }
                taken.push(issuer);
            }
            self.refuse_certificate_issuer(name, written);
            if let Some((issuer, keys)) = self.issuer(name, written, folder) {
                issuers.push(issuer);
                owners.push(keys);
            }
        }
        let issuers = Issuers::new(issuers).unwrap_or_else(|duplicate| {
            // Sections with different spellings may still have the same `iss`.
            self.error(
                Problem::error(0..0, duplicate.to_string())
                    .help("give each issuer its own `iss`: each issuer has exactly one section"),
            );
            Issuers::default()
        });
        (issuers, Keys::new(owners))
    }

    fn issuer(
        &mut self,
        name: &Text,
        written: &Written,
        folder: &Path,
    ) -> Option<(Arc<Issuer>, Arc<IssuerKeys>)> {
        let algorithms = self.algorithms(name, written);
        let issuer = self.issuer_text(name, written);
        let audience = self.audience(name, written);
        let logout_audience = self.logout_audience(written);
        let revoked_keys = self.revoked_keys(written);
        let leeway = match &written.leeway {
            None => Some(Duration::from_secs(30)),
            Some(text) => {
                self.ok_or_report(value::duration(text, Duration::ZERO..=Duration::from_mins(5)))
            }
        };
        let max_token_lifetime = match &written.max_token_lifetime {
            None => Some(Duration::from_hours(24)),
            Some(text) => self.ok_or_report(value::duration(
                text,
                Duration::from_secs(1)..=Duration::from_hours(87840),
            )),
        };
        let Some(algorithms) = algorithms else {
            self.look_at_key_files(written);
            return None;
        };
        let keys = self.keys(name, written, algorithms, folder);
        let settings = IssuerSettings {
            name: name.get_ref().as_str().into(),
            issuer: issuer?,
            audience: audience?,
            algorithms,
            roles: self.claim_path(written.roles.as_ref(), "roles"),
            subject: self.claim_path(written.subject.as_ref(), "sub"),
            leeway: leeway?,
            max_token_lifetime: max_token_lifetime?,
            logout_audience,
            is_built_in: false,
        };
        let keys = keys?;
        // An unchanged section keeps its issuer, so its verified tokens stay cached.
        let mut previous = self.previous.into_iter().flat_map(|previous| previous.issuers.iter());
        let revoked_keys = revoked_keys?;
        let kept = previous.find(|issuer| {
            *issuer.settings() == settings
                && Arc::ptr_eq(issuer.keys(), keys.live())
                && issuer.revoked_keys().map(Arc::as_ptr) == revoked_keys.as_ref().map(Arc::as_ptr)
        });
        let issuer = kept.cloned().unwrap_or_else(|| {
            let issuer = Issuer::with_live_keys(settings, Arc::clone(keys.live()));
            Arc::new(issuer.with_revoked_keys(revoked_keys))
        });
        Some((issuer, keys))
    }

    /// Outer `None`: a problem was found; inner: there is no list of revoked keys.
    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: no list is configured"
    )]
    fn revoked_keys(&mut self, written: &Written) -> Option<Option<Arc<RevokedKeys>>> {
        let Some(text) = &written.revoked_keys else { return Some(None) };
        let pattern = match KeyPattern::parse(text.get_ref()) {
            Ok(pattern) => pattern,
            Err(error) => {
                self.error(
                    Problem::error(text.span(), error.to_string())
                        .help("write the names of the keys as the application does, such as `revoked_keys = \"bl_{jti}\"`"),
                );
                return None;
            }
        };
        if self.file.store.as_ref().is_none_or(|store| store.get_ref().redis.is_none()) {
            self.error(
                Problem::error(text.span(), "`revoked_keys` needs Redis").help(
                    "name the application's server: `[store] redis = { env = \"REDIS_URL\" }`",
                ),
            );
            return None;
        }
        // The keys that are known stay known, whatever else changes in the section.
        let known = self.previous.into_iter().flat_map(|previous| previous.issuers.iter());
        let known = known
            .filter_map(|issuer| issuer.revoked_keys())
            .find(|keys| *keys.pattern() == pattern);
        Some(Some(known.cloned().unwrap_or_else(|| Arc::new(RevokedKeys::new(pattern)))))
    }

    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: tokens without `iss` are accepted"
    )]
    fn issuer_text(&mut self, name: &Text, written: &Written) -> Option<Option<String>> {
        match (&written.issuer, &written.insecure_any_issuer) {
            (Some(issuer), None) if issuer.get_ref().is_empty() => {
                self.error(
                    Problem::error(issuer.span(), "`issuer` is empty")
                        .help("write the `iss` that the tokens hold, byte for byte"),
                );
                None
            }
            (Some(issuer), any) if !is_true(any.as_ref()) => Some(Some(issuer.get_ref().clone())),
            (Some(issuer), any) => {
                let span = any.as_ref().map_or(issuer.span(), Spanned::span);
                self.error(
                    Problem::error(
                        issuer.span(),
                        "`issuer` and `insecure_any_issuer` contradict each other",
                    )
                    .related(span, "accepts only tokens without `iss`")
                    .help("keep `issuer` if the tokens have an `iss`, otherwise remove it"),
                );
                None
            }
            (None, any) if is_true(any.as_ref()) => {
                self.weakened.push(format!(
                    "issuer.{}.insecure_any_issuer: tokens without `iss` are accepted",
                    name.get_ref()
                ));
                Some(None)
            }
            (None, _) => {
                self.error(
                    Problem::error(name.span(), format!("issuer `{}` has no `issuer`", name.get_ref()))
                        .help("add `issuer = \"…\"`, the `iss` of its tokens; for tokens without one, `insecure_any_issuer = true`"),
                );
                None
            }
        }
    }

    #[expect(
        clippy::option_option,
        reason = "outer: a problem was found; inner: any audience is accepted"
    )]
    fn audience(&mut self, name: &Text, written: &Written) -> Option<Option<Vec<String>>> {
        match (&written.audience, is_true(written.insecure_any_audience.as_ref())) {
            (Some(audience), false)
                if audience.get_ref().iter().any(|text| !text.get_ref().is_empty()) =>
            {
                Some(Some(audience.get_ref().iter().map(|text| text.get_ref().clone()).collect()))
            }
            (Some(audience), false) => {
                self.error(
                    Problem::error(audience.span(), "`audience` is empty")
                        .help("write `audience = [\"…\"]` with the `aud` of the tokens"),
                );
                None
            }
            (Some(audience), true) => {
                self.error(
                    Problem::error(
                        audience.span(),
                        "`audience` and `insecure_any_audience` contradict each other",
                    )
                    .help("keep `audience` if the tokens have an `aud`, otherwise remove it"),
                );
                None
            }
            (None, true) => {
                self.weakened.push(format!(
                    "issuer.{}.insecure_any_audience: tokens for any audience are accepted",
                    name.get_ref()
                ));
                Some(None)
            }
            (None, false) => {
                self.error(
                    Problem::error(name.span(), format!("issuer `{}` has no `audience`", name.get_ref()))
                        .help("add `audience = [\"…\"]`, the `aud` of its tokens; for tokens without one, `insecure_any_audience = true`"),
                );
                None
            }
        }
    }

    /// `None`: the same audience as other tokens.
    fn logout_audience(&mut self, written: &Written) -> Option<Vec<String>> {
        let audience = written.logout_audience.as_ref()?;
        if audience.get_ref().is_empty()
            || audience.get_ref().iter().any(|text| text.get_ref().is_empty())
        {
            self.error(Problem::error(audience.span(), "`logout_audience` is empty").help(
                "write `logout_audience = [\"…\"]` with the id of the client that is logged out",
            ));
        } else if written.backchannel_logout.is_none() {
            self.error(
                Problem::error(
                    audience.span(),
                    "`logout_audience` has no effect without `backchannel_logout`",
                )
                .help("add `backchannel_logout = \"/…\"`, or remove it"),
            );
        }
        Some(audience.get_ref().iter().map(|text| text.get_ref().clone()).collect())
    }

    fn algorithms(&mut self, name: &Text, written: &Written) -> Option<Algorithms> {
        let Some(listed) = &written.algorithms else {
            self.error(
                Problem::error(
                    name.span(),
                    format!("issuer `{}` has no `algorithms`", name.get_ref()),
                )
                .help("add `algorithms = [\"RS256\"]`, or what its tokens are signed with"),
            );
            return None;
        };
        let choices: Vec<(&str, Algorithm)> = Algorithms::all()
            .iter()
            .map(|algorithm| (Algorithms::name(algorithm), algorithm))
            .collect();
        let mut algorithms = Vec::new();
        let mut sound = true;
        for text in listed.get_ref() {
            match value::choice(text, &choices) {
                Ok(algorithm) => algorithms.push(algorithm),
                Err(problem) => {
                    sound = false;
                    let problem = if text.get_ref().eq_ignore_ascii_case("none") {
                        Problem::error(text.span(), "tokens without a signature are never accepted")
                            .help("remove \"none\"")
                    } else {
                        problem
                    };
                    self.error(problem);
                }
            }
        }
        if listed.get_ref().is_empty() {
            self.error(
                Problem::error(listed.span(), "`algorithms` is empty")
                    .help("write `algorithms = [\"RS256\"]`, or what the tokens are signed with"),
            );
        }
        (sound && !listed.get_ref().is_empty()).then(|| algorithms.into_iter().collect())
    }

    /// Parses a claim name as a path. Warns if a URL was probably meant as a single segment.
    pub(super) fn claim_path(
        &mut self,
        written: Option<&Spanned<ClaimName>>,
        default: &str,
    ) -> ClaimPath {
        let Some(written) = written else { return ClaimPath::new(vec![default.to_owned()]) };
        self.claim_segments(written)
            .map_or_else(|| ClaimPath::new(vec![default.to_owned()]), ClaimPath::new)
    }

    /// The segments of a claim name.
    pub(super) fn claim_segments(&mut self, written: &Spanned<ClaimName>) -> Option<Vec<String>> {
        let segments = written.get_ref().segments();
        if segments.is_empty() || segments.iter().any(String::is_empty) {
            self.error(
                Problem::error(written.span(), "the claim name has an empty part")
                    .help("write `\"realm_access.roles\"`, or `[\"one exact name\"]`"),
            );
            return None;
        }
        if written.get_ref().dotted().is_some()
            && segments.len() > 1
            && segments.concat().contains("://")
        {
            self.error(
                Problem::warning(written.span(), "this is a path: each dot starts a new level")
                    .help(format!("to use this exact name, write [\"{}\"]", segments.join("."))),
            );
        }
        Some(segments)
    }

    /// Reads a secret reference. An inline secret needs a key that permits it.
    pub(super) fn read_secret(
        &mut self,
        secret: &Spanned<SecretRef>,
        inline: Inline,
    ) -> Option<SecretBytes> {
        let references = "write `{ env = \"NAME\" }` or `{ file = \"path\" }`";
        let help = match inline {
            _ if !secret.get_ref().is_inline() => None,
            Inline::Permitted => None,
            Inline::NotPermitted => Some(format!(
                "{references}; to keep it here, set `insecure_inline_secret = true` in this section"
            )),
            Inline::Never => Some(references.to_owned()),
        };
        if let Some(help) = help {
            self.error(
                Problem::error(secret.span(), "the secret is in the configuration file").help(help),
            );
            return None;
        }
        if let Some(file) = secret.get_ref().file(self.source.folder()) {
            self.named_file(file);
        }
        match secret.get_ref().read(self.source.folder(), self.create) {
            Ok(read) => {
                // A file that was just created has a version only now.
                if let Some((path, mark @ None)) = self.files.last_mut() {
                    *mark = FileVersion::current(path);
                }
                self.problems.extend(read.warning);
                Some(read.bytes)
            }
            Err(problem) => {
                self.error(problem);
                None
            }
        }
    }

    /// Reads a file that a section refers to.
    pub(super) fn read_file(&mut self, text: &Text, what: &str) -> Option<Vec<u8>> {
        let path = self.named_file(self.source.folder().join(text.get_ref()));
        match read_bounded(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let help = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        format!(
                            "create {}; relative paths start at the folder of the configuration file",
                            path.display()
                        )
                    }
                    std::io::ErrorKind::PermissionDenied => {
                        format!("let the user that runs the gateway read {}", path.display())
                    }
                    _ => format!("it must be {what}"),
                };
                let cause = match error.kind() {
                    std::io::ErrorKind::NotFound => "no such file".to_owned(),
                    std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                    _ => error.to_string(),
                };
                self.error(
                    Problem::error(
                        text.span(),
                        format!("cannot read `{}`: {cause}", text.get_ref()),
                    )
                    .help(help),
                );
                None
            }
        }
    }
}

/// Whether a secret may be inline, in the configuration file itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inline {
    /// The section permits it.
    Permitted,
    /// The section does not permit it, but a key could.
    NotPermitted,
    /// No key can permit it.
    Never,
}

pub(super) fn is_hmac(algorithm: Algorithm) -> bool {
    Algorithms::of_family(Family::Hmac).contains(algorithm)
}

pub(super) fn is_true(flag: Option<&Spanned<bool>>) -> bool {
    flag.is_some_and(|flag| *flag.get_ref())
}
