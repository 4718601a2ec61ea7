//! `[issuer.*]`, and the files and secrets that sections name.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::{Compiler, identity};
use crate::config::file::Issuer as Written;
use crate::config::file::Text;
use crate::config::value::{self, ClaimName, SecretBytes, SecretRef};
use crate::config::{Mark, Problem};
use crate::identity::Policy;
use crate::token::{Algorithm, Algorithms, ClaimPath, Family, Issuer, IssuerSettings, Issuers, KeySet, key_from_pem, secret_is_short};

/// The largest file that a section may name, in bytes.
const LARGEST_FILE: u64 = 4 * 1024 * 1024;

impl Compiler<'_> {
    pub(super) fn issuers(&mut self, built_in: Option<&Policy>) -> Issuers {
        let mut issuers: Vec<Arc<Issuer>> = built_in.map(|policy| self.built_in_issuer(policy)).into_iter().collect();
        let mut any: Option<&Text> = None;
        let mut taken: Vec<&Text> = self.file.identity.iter().filter_map(|identity| identity.get_ref().issuer.as_ref()).collect();
        for (name, written) in &self.file.issuer {
            if let (true, Some(section)) = (name.get_ref() == identity::NAME, &self.file.identity) {
                self.error(
                    Problem::error(name.span(), "`identity` is the name of the built-in issuer")
                        .related(section.span(), "which is set up here")
                        .help("give this issuer another name"),
                );
                continue;
            }
            if is_true(written.insecure_any_issuer.as_ref())
                && let Some(other) = any.replace(name)
            {
                self.error(
                    Problem::error(name.span(), "a second section takes tokens without `iss`")
                        .related(other.span(), "the first")
                        .help("tokens without `iss` cannot be told apart: keep one `insecure_any_issuer = true`"),
                );
            }
            if let Some(issuer) = &written.issuer {
                if let Some(other) = taken.iter().find(|other| other.get_ref() == issuer.get_ref()) {
                    self.error(
                        Problem::error(issuer.span(), "two sections accept the same `iss`")
                            .related(other.span(), "already taken here")
                            .help("merge the two sections: one issuer has one section"),
                    );
                    continue;
                }
                taken.push(issuer);
            }
            if let Some(issuer) = self.issuer(name, written) {
                issuers.push(Arc::new(issuer));
            }
        }
        Issuers::new(issuers).unwrap_or_default()
    }

    fn issuer(&mut self, name: &Text, written: &Written) -> Option<Issuer> {
        let algorithms = self.algorithms(name, written);
        let issuer = self.issuer_text(name, written);
        let audience = self.audience(name, written);
        let leeway = match &written.leeway {
            None => Some(Duration::from_secs(30)),
            Some(text) => self.take(value::duration(text, Duration::ZERO..=Duration::from_mins(5))),
        };
        let max_token_lifetime = match &written.max_token_lifetime {
            None => Some(Duration::from_hours(24)),
            Some(text) => self.take(value::duration(text, Duration::from_secs(1)..=Duration::from_hours(87840))),
        };
        let Some(algorithms) = algorithms else {
            self.look_at_key_files(written);
            return None;
        };
        let keys = self.keys(name, written, algorithms);
        let settings = IssuerSettings {
            name: name.get_ref().as_str().into(),
            issuer: issuer?,
            audience: audience?,
            algorithms,
            roles: self.claim_path(written.roles.as_ref(), "roles"),
            subject: self.claim_path(written.subject.as_ref(), "sub"),
            leeway: leeway?,
            max_token_lifetime: max_token_lifetime?,
            is_built_in: false,
        };
        Some(Issuer::new(settings, keys?))
    }

    #[expect(clippy::option_option, reason = "outer: a problem was found; inner: tokens without `iss` are taken")]
    fn issuer_text(&mut self, name: &Text, written: &Written) -> Option<Option<String>> {
        match (&written.issuer, &written.insecure_any_issuer) {
            (Some(issuer), None) if issuer.get_ref().is_empty() => {
                self.error(Problem::error(issuer.span(), "`issuer` is empty").help("write the `iss` that the tokens hold, byte for byte"));
                None
            }
            (Some(issuer), any) if !is_true(any.as_ref()) => Some(Some(issuer.get_ref().clone())),
            (Some(issuer), any) => {
                let span = any.as_ref().map_or(issuer.span(), Spanned::span);
                self.error(
                    Problem::error(issuer.span(), "`issuer` and `insecure_any_issuer` contradict each other")
                        .related(span, "takes only tokens without `iss`")
                        .help("keep `issuer` if the tokens have an `iss`, otherwise remove it"),
                );
                None
            }
            (None, any) if is_true(any.as_ref()) => {
                self.weakened.push(format!("issuer.{}.insecure_any_issuer: tokens without `iss` are accepted", name.get_ref()));
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

    #[expect(clippy::option_option, reason = "outer: a problem was found; inner: any audience is taken")]
    fn audience(&mut self, name: &Text, written: &Written) -> Option<Option<Vec<String>>> {
        match (&written.audience, is_true(written.insecure_any_audience.as_ref())) {
            (Some(audience), false) if audience.get_ref().iter().any(|text| !text.get_ref().is_empty()) => {
                Some(Some(audience.get_ref().iter().map(|text| text.get_ref().clone()).collect()))
            }
            (Some(audience), false) => {
                self.error(
                    Problem::error(audience.span(), "`audience` names nobody")
                        .help("write `audience = [\"…\"]` with the `aud` of the tokens"),
                );
                None
            }
            (Some(audience), true) => {
                self.error(
                    Problem::error(audience.span(), "`audience` and `insecure_any_audience` contradict each other")
                        .help("keep `audience` if the tokens have an `aud`, otherwise remove it"),
                );
                None
            }
            (None, true) => {
                self.weakened.push(format!("issuer.{}.insecure_any_audience: tokens for anybody are accepted", name.get_ref()));
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

    fn algorithms(&mut self, name: &Text, written: &Written) -> Option<Algorithms> {
        let Some(listed) = &written.algorithms else {
            self.error(
                Problem::error(name.span(), format!("issuer `{}` has no `algorithms`", name.get_ref()))
                    .help("add `algorithms = [\"RS256\"]`, or what its tokens are signed with"),
            );
            return None;
        };
        let choices: Vec<(&str, Algorithm)> = Algorithms::all().iter().map(|algorithm| (Algorithms::name(algorithm), algorithm)).collect();
        let mut algorithms = Vec::new();
        let mut sound = true;
        for text in listed.get_ref() {
            match value::choice(text, &choices) {
                Ok(algorithm) => algorithms.push(algorithm),
                Err(problem) => {
                    sound = false;
                    let problem = if text.get_ref().eq_ignore_ascii_case("none") {
                        Problem::error(text.span(), "tokens without a signature are never accepted").help("remove \"none\"")
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

    fn keys(&mut self, name: &Text, written: &Written, algorithms: Algorithms) -> Option<KeySet> {
        let sources = [
            written.secret.as_ref().map(Spanned::span),
            written.public_keys.as_ref().map(Spanned::span),
            written.jwks_file.as_ref().map(Spanned::span),
        ];
        let given: Vec<_> = sources.iter().flatten().collect();
        match given.as_slice() {
            [] if written.jwks_url.is_some() || written.discovery.is_some() => return None,
            [] => {
                self.error(
                    Problem::error(name.span(), format!("issuer `{}` has no keys", name.get_ref()))
                        .help("give it one of `secret`, `public_keys` and `jwks_file`"),
                );
                return None;
            }
            [_] => {}
            [first, second, ..] => {
                self.error(
                    Problem::error((*second).clone(), "a second source of keys")
                        .related((*first).clone(), "the first")
                        .help("keep exactly one of `secret`, `public_keys` and `jwks_file`"),
                );
                return None;
            }
        }
        if let Some(secret) = &written.secret {
            return self.secret_keys(name, written, secret, algorithms);
        }
        if algorithms.iter().any(is_hmac) {
            let span = written.algorithms.as_ref().map_or(name.span(), Spanned::span);
            self.error(
                Problem::error(span, "an HMAC algorithm beside public keys")
                    .help("HS256, HS384 and HS512 need `secret`; whoever knows a public key could forge such tokens"),
            );
            return None;
        }
        match (&written.public_keys, &written.jwks_file) {
            (Some(files), _) => self.pem_keys(files, algorithms),
            (None, Some(file)) => self.jwks_keys(file, algorithms),
            (None, None) => None,
        }
    }

    /// Tells of key files that are not there, where the algorithms are not known that would tell more of them.
    fn look_at_key_files(&mut self, written: &Written) {
        for file in written.public_keys.iter().flat_map(Spanned::get_ref) {
            self.read_file(file, "a PEM file with a public key");
        }
        if let Some(file) = &written.jwks_file {
            self.read_file(file, "a JWK Set");
        }
    }

    fn secret_keys(&mut self, name: &Text, written: &Written, secret: &Spanned<SecretRef>, algorithms: Algorithms) -> Option<KeySet> {
        if !algorithms.iter().all(is_hmac) {
            let span = written.algorithms.as_ref().map_or(name.span(), Spanned::span);
            self.error(
                Problem::error(span, "a secret verifies HS256, HS384 and HS512 only")
                    .related(secret.span(), "the secret")
                    .help("use `public_keys` or `jwks_file` for the other algorithms"),
            );
            return None;
        }
        let bytes = self.read_secret(secret, if written.insecure_inline_secret { Inline::Permitted } else { Inline::NotPermitted })?;
        if let Some(needed) = secret_is_short(bytes.expose().len(), algorithms) {
            if written.insecure_short_secret {
                self.weakened.push(format!("issuer.{}.insecure_short_secret: the secret is shorter than the hash", name.get_ref()));
            } else {
                self.error(
                    Problem::error(secret.span(), format!("the secret has {} bytes; these algorithms need {needed}", bytes.expose().len())).help(
                        "make a longer one, such as `openssl rand -base64 48`; to go on with this one, set `insecure_short_secret = true` (RFC 7518 §3.2)",
                    ),
                );
                return None;
            }
        }
        if written.insecure_inline_secret {
            self.weakened.push(format!("issuer.{}.insecure_inline_secret: the secret stands in the file", name.get_ref()));
        }
        match KeySet::from_secret(bytes.expose(), algorithms) {
            Ok(keys) => Some(keys),
            Err(error) => {
                self.error(Problem::error(secret.span(), error.to_string()));
                None
            }
        }
    }

    fn pem_keys(&mut self, files: &Spanned<Vec<Text>>, algorithms: Algorithms) -> Option<KeySet> {
        if files.get_ref().is_empty() {
            self.error(Problem::error(files.span(), "`public_keys` is empty").help("name at least one PEM file"));
            return None;
        }
        let mut keys = Vec::new();
        for text in files.get_ref() {
            let Some(pem) = self.read_file(text, "a PEM file with a public key") else { continue };
            match key_from_pem(&pem) {
                Ok((key, note)) => {
                    if let Some(note) = note {
                        self.error(Problem::warning(text.span(), note.to_string()));
                    }
                    keys.push(key);
                }
                Err(error) => self.error(Problem::error(text.span(), format!("`{}`: {error}", text.get_ref()))),
            }
        }
        if keys.len() < files.get_ref().len() {
            return None;
        }
        KeySet::from_keys(keys, algorithms).map_err(|error| self.error(Problem::error(files.span(), error.to_string()))).ok()
    }

    fn jwks_keys(&mut self, file: &Text, algorithms: Algorithms) -> Option<KeySet> {
        let json = self.read_file(file, "a JWK Set")?;
        match KeySet::from_jwks(&json, algorithms) {
            Ok((keys, left_out)) => {
                for left_out in &left_out {
                    self.error(Problem::warning(file.span(), left_out.to_string()));
                }
                if keys.is_empty() {
                    let problem = match left_out.as_slice() {
                        [] => Problem::error(file.span(), "the set has no keys")
                            .help("a JWK Set is `{\"keys\": [ … ]}` with at least one public key (RFC 7517 §5)"),
                        _ => Problem::error(file.span(), "no key of this set can be used")
                            .help("the warnings say why each was left out; look at `algorithms` as well"),
                    };
                    self.error(problem);
                    return None;
                }
                Some(keys)
            }
            Err(error) => {
                self.error(Problem::error(file.span(), format!("`{}`: {error}", file.get_ref())));
                None
            }
        }
    }

    /// A claim name as a path, with a warning where a URL was meant to be one segment.
    pub(super) fn claim_path(&mut self, written: Option<&Spanned<ClaimName>>, default: &str) -> ClaimPath {
        let Some(written) = written else { return ClaimPath::new(vec![default.to_owned()]) };
        self.claim_segments(written).map_or_else(|| ClaimPath::new(vec![default.to_owned()]), ClaimPath::new)
    }

    /// The segments of a claim name.
    pub(super) fn claim_segments(&mut self, written: &Spanned<ClaimName>) -> Option<Vec<String>> {
        let segments = written.get_ref().segments();
        if segments.is_empty() || segments.iter().any(String::is_empty) {
            self.error(
                Problem::error(written.span(), "a claim name with an empty part")
                    .help("write `\"realm_access.roles\"`, or `[\"one exact name\"]`"),
            );
            return None;
        }
        if written.get_ref().dotted().is_some() && segments.len() > 1 && segments.concat().contains("://") {
            self.error(
                Problem::warning(written.span(), "this is read as a path: each dot begins a new level")
                    .help(format!("a claim with this exact name is written [\"{}\"]", segments.join("."))),
            );
        }
        Some(segments)
    }

    /// Reads a secret reference; an inline one needs its permission.
    pub(super) fn read_secret(&mut self, secret: &Spanned<SecretRef>, inline: Inline) -> Option<SecretBytes> {
        let references = "write `{ env = \"NAME\" }` or `{ file = \"path\" }`";
        let help = match inline {
            _ if !secret.get_ref().is_inline() => None,
            Inline::Permitted => None,
            Inline::NotPermitted => Some(format!("{references}; to keep it here, set `insecure_inline_secret = true` in this section")),
            Inline::Never => Some(references.to_owned()),
        };
        if let Some(help) = help {
            self.error(Problem::error(secret.span(), "a secret in the file itself").help(help));
            return None;
        }
        if let Some(file) = secret.get_ref().file(self.source.folder()) {
            self.named_file(file);
        }
        match secret.get_ref().read(self.source.folder(), self.create) {
            Ok(read) => {
                // One that was just created has a version only now.
                if let Some((path, mark @ None)) = self.files.last_mut() {
                    *mark = Mark::of(path);
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

    /// Reads a file that a section names.
    pub(super) fn read_file(&mut self, text: &Text, what: &str) -> Option<Vec<u8>> {
        let path = self.named_file(self.source.folder().join(text.get_ref()));
        match read_bounded(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let help = match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        format!("{} is not there; relative paths start at the folder of the configuration file", path.display())
                    }
                    std::io::ErrorKind::PermissionDenied => format!("let the user that runs the gateway read {}", path.display()),
                    _ => format!("it must be {what}"),
                };
                let cause = match error.kind() {
                    std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                    std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
                    _ => error.to_string(),
                };
                self.error(Problem::error(text.span(), format!("cannot read `{}`: {cause}", text.get_ref())).help(help));
                None
            }
        }
    }
}

/// Whether a secret may stand in the configuration file itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inline {
    /// The section says so.
    Permitted,
    /// The section could say so.
    NotPermitted,
    /// No key permits it.
    Never,
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(std::io::Error::other("it is a folder"));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(std::io::Error::other(format!("it is larger than {LARGEST_FILE} bytes")));
    }
    std::fs::read(path)
}

fn is_hmac(algorithm: Algorithm) -> bool {
    Algorithms::of_family(Family::Hmac).contains(algorithm)
}

fn is_true(flag: Option<&Spanned<bool>>) -> bool {
    flag.is_some_and(|flag| *flag.get_ref())
}
