//! The source of an issuer's keys: exactly one of `discovery`, `jwks_url`, `jwks_file`,
//! `public_keys` and `secret`.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;

use super::issuers::{Inline, is_hmac, is_true};
use super::{Compiler, StartSettings};
use crate::config::Problem;
use crate::config::file::Issuer as Written;
use crate::config::file::Text;
use crate::config::value::{self, SecretRef};
use crate::keys::{Cache, IssuerKeys, KeySettings, LastGood, Place, Remote, Source, digest};
use crate::outbound::{Outbound, Url};
use crate::tls;
use crate::token::{Algorithms, KeySet, LeftOut, key_from_pem, secret_is_short};

/// The sources, for help texts.
const SOURCES: &str = "`discovery`, `jwks_url`, `jwks_file`, `public_keys` and `secret`";

const DAY: Duration = Duration::from_hours(24);

/// The shortest configurable time between two fetches.
const SHORTEST: Duration = Duration::from_millis(100);

/// Keys that were read, what was left out, and the digest of their source.
struct Read {
    keys: KeySet,
    left_out: Vec<LeftOut>,
    digest: [u8; 32],
}

impl Compiler<'_> {
    /// The folder of persistent data: beside the database, or beside the file.
    pub(super) fn lasting_folder(&self, start: Option<&StartSettings>) -> PathBuf {
        let database = start
            .and_then(|start| start.store.as_ref())
            .and_then(|store| store.database.file()?.parent());
        database
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(self.source.folder())
            .to_owned()
    }

    /// The owner of a section's keys: the existing one if nothing has changed.
    pub(super) fn keys(
        &mut self,
        name: &Text,
        written: &Written,
        algorithms: Algorithms,
        folder: &Path,
    ) -> Option<Arc<IssuerKeys>> {
        let discovery = written.discovery.as_ref().filter(|discovery| *discovery.get_ref());
        let sources = [
            discovery.map(Spanned::span),
            written.jwks_url.as_ref().map(Spanned::span),
            written.jwks_file.as_ref().map(Spanned::span),
            written.public_keys.as_ref().map(Spanned::span),
            written.secret.as_ref().map(Spanned::span),
        ];
        let mut given: Vec<_> = sources.iter().flatten().collect();
        given.sort_by_key(|span| span.start);
        match given.as_slice() {
            [] => {
                self.error(
                    Problem::error(name.span(), format!("issuer `{}` has no keys", name.get_ref()))
                        .help(format!("give it one of {SOURCES}")),
                );
                return None;
            }
            [_] => {}
            [first, second, ..] => {
                self.error(
                    Problem::error((*second).clone(), "a second source of keys")
                        .related((*first).clone(), "the first")
                        .help(format!("keep exactly one of {SOURCES}")),
                );
                return None;
            }
        }
        let is_remote = discovery.is_some() || written.jwks_url.is_some();
        if !is_remote {
            self.refuse_remote_keys(written);
        }
        if written.secret.is_none() && algorithms.iter().any(is_hmac) {
            let span = written.algorithms.as_ref().map_or(name.span(), Spanned::span);
            self.error(
                Problem::error(span, "an HMAC algorithm cannot be combined with public keys")
                    .help("HS256, HS384 and HS512 need `secret`; anyone who knows a public key could forge such tokens"),
            );
            return None;
        }
        let settings = |source| KeySettings {
            name: name.get_ref().as_str().into(),
            issuer: written.issuer.as_ref().map(|issuer| issuer.get_ref().clone()),
            algorithms,
            source,
        };
        if is_remote {
            let source = Source::Remote(self.remote(name, written, discovery, folder)?);
            return self.remote_keys(name, written, settings(source));
        }
        let path = |text: &Text, compiler: &Self| compiler.source.folder().join(text.get_ref());
        let (source, read) = match (&written.jwks_file, &written.public_keys, &written.secret) {
            (Some(file), ..) => {
                (Source::JwksFile(path(file, self)), self.jwks_keys(file, algorithms)?)
            }
            (_, Some(files), _) => {
                let paths = files.get_ref().iter().map(|text| path(text, self)).collect();
                (Source::Pem(paths), self.pem_keys(files, algorithms)?)
            }
            (.., secret) => {
                let read = self.secret_keys(name, written, secret.as_ref()?, algorithms)?;
                (Source::Secret(read.digest), read)
            }
        };
        let settings = settings(source);
        let kept =
            self.previous_keys(&settings).filter(|kept| kept.contents_digest() == read.digest);
        Some(kept.unwrap_or_else(|| {
            Arc::new(IssuerKeys::local(settings, read.keys, read.left_out, read.digest))
        }))
    }

    /// The existing owner of exactly these keys, if there is one.
    pub(super) fn previous_keys(&self, settings: &KeySettings) -> Option<Arc<IssuerKeys>> {
        self.previous?.keys.iter().find(|owner| owner.settings() == settings).cloned()
    }

    /// Reports keys that would have no effect.
    fn refuse_remote_keys(&mut self, written: &Written) {
        let keys: [(&str, Option<Range<usize>>); 5] = [
            ("jwks_refresh", written.jwks_refresh.as_ref().map(Spanned::span)),
            ("jwks_refetch_cooldown", written.jwks_refetch_cooldown.as_ref().map(Spanned::span)),
            ("jwks_max_stale", written.jwks_max_stale.as_ref().map(Spanned::span)),
            ("ca", written.ca.as_ref().map(Spanned::span)),
            ("insecure_http_keys", written.insecure_http_keys.as_ref().map(Spanned::span)),
        ];
        for (key, span) in keys.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            self.error(
                Problem::error(span, format!("`{key}` has no effect here"))
                    .help("it is for `discovery` and `jwks_url`: remove it"),
            );
        }
    }

    fn remote(
        &mut self,
        name: &Text,
        written: &Written,
        discovery: Option<&Spanned<bool>>,
        folder: &Path,
    ) -> Option<Remote> {
        let allow_http = is_true(written.insecure_http_keys.as_ref());
        let place = match (discovery, &written.jwks_url) {
            (Some(discovery), _) => {
                self.metadata_url(written, discovery, allow_http).map(Place::Discovery)
            }
            (None, Some(text)) => self.key_url(text, "jwks_url", allow_http).map(Place::Jwks),
            (None, None) => None,
        };
        let ca = match &written.ca {
            None => Some(None),
            Some(text) => {
                self.read_file(text, "a PEM file with the certificates that are trusted").map(Some)
            }
        };
        let times = self.key_times(written);
        let cooldown = match &written.jwks_refetch_cooldown {
            None => Some(Duration::from_secs(10)),
            Some(text) => self.ok_or_report(value::duration(text, SHORTEST..=DAY * 31)),
        };
        let ((refresh, max_stale), cooldown) = (times?, cooldown?);
        if allow_http {
            self.weakened.push(format!(
                "issuer.{}.insecure_http_keys: anyone between here and the issuer can substitute other keys",
                name.get_ref()
            ));
        }
        Some(Remote {
            place: place?,
            refresh,
            cooldown,
            max_stale,
            ca: ca?,
            allow_http,
            folder: folder.to_owned(),
        })
    }

    /// How often keys are fetched, and how long they are used. A default is adjusted to a value in
    /// the file.
    fn key_times(&mut self, written: &Written) -> Option<(Duration, Duration)> {
        let mut time = |text: &Option<Text>, least: Duration| match text {
            None => Some(None),
            Some(text) => self.ok_or_report(value::duration(text, least..=DAY * 31)).map(Some),
        };
        let refresh = time(&written.jwks_refresh, SHORTEST);
        let max_stale = time(&written.jwks_max_stale, Duration::from_secs(1));
        match (refresh?, max_stale?) {
            (Some(refresh), Some(max_stale)) if max_stale < refresh => {
                let span = |text: &Option<Text>| text.as_ref().map_or(0..0, Spanned::span);
                self.error(
                    Problem::error(span(&written.jwks_max_stale), "keys would be too old before they are fetched again")
                        .related(span(&written.jwks_refresh), "they are fetched this often")
                        .help("`jwks_max_stale` is at least `jwks_refresh`; the defaults are \"24h\" and \"5m\""),
                );
                None
            }
            (Some(refresh), max_stale) => Some((refresh, max_stale.unwrap_or(DAY.max(refresh)))),
            (None, max_stale) => {
                let max_stale = max_stale.unwrap_or(DAY);
                Some((Duration::from_mins(5).min(max_stale), max_stale))
            }
        }
    }

    /// The URL of the metadata of the section's issuer.
    fn metadata_url(
        &mut self,
        written: &Written,
        discovery: &Spanned<bool>,
        allow_http: bool,
    ) -> Option<Url> {
        let Some(issuer) = &written.issuer else {
            self.error(
                Problem::error(discovery.span(), "`discovery` needs `issuer`")
                    .help("the URL of the metadata is derived from `issuer`; without one, set `jwks_url` to the URL of the key set"),
            );
            return None;
        };
        let url = self.key_url(issuer, "issuer", allow_http)?;
        if url.query().is_some() {
            self.error(
                Problem::error(
                    issuer.span(),
                    "an issuer with a query cannot have metadata (RFC 8414 §2)",
                )
                .related(discovery.span(), "requires it")
                .help("set `jwks_url` to the URL of the key set"),
            );
            return None;
        }
        Some(url)
    }

    fn key_url(&mut self, text: &Text, key: &str, allow_http: bool) -> Option<Url> {
        let url = match Url::parse(text.get_ref()) {
            Ok(url) => url,
            Err(error) => {
                self.error(
                    Problem::error(
                        text.span(),
                        format!("cannot fetch keys from this `{key}`: {error}"),
                    )
                    .help("write the complete URL, such as \"https://login.example.com/keys\""),
                );
                return None;
            }
        };
        if url.is_https() || url.is_loopback() || allow_http {
            return Some(url);
        }
        self.error(
            Problem::error(text.span(), "keys would be fetched over http://, so anyone on the network path could replace them")
                .help("write https://; to go on without, set `insecure_http_keys = true` in this section"),
        );
        None
    }

    fn remote_keys(
        &mut self,
        name: &Text,
        written: &Written,
        settings: KeySettings,
    ) -> Option<Arc<IssuerKeys>> {
        if let Some(kept) = self.previous_keys(&settings) {
            return Some(kept);
        }
        let Source::Remote(remote) = &settings.source else { return None };
        let outbound = self.key_client(name, written, remote)?;
        let last = self.last_good(name, &settings, remote);
        if let Some(last) = &last
            && KeySet::from_jwks(&last.document, settings.algorithms)
                .is_ok_and(|(keys, _)| keys.is_empty())
        {
            let span = written.algorithms.as_ref().map_or(name.span(), Spanned::span);
            self.error(
                Problem::warning(span, "no key of the last fetched set is usable")
                    .help("check `algorithms`: until the set has a key for one of them, no token of this issuer can be verified"),
            );
        }
        Some(Arc::new(IssuerKeys::remote(settings, outbound, last)))
    }

    fn key_client(&mut self, name: &Text, written: &Written, remote: &Remote) -> Option<Outbound> {
        match tls::client_config(remote.ca.as_deref(), None) {
            Ok(config) => Some(Outbound::new(Some(Arc::new(config)))),
            // A JWK Set on this machine needs no certificates.
            Err(tls::TlsError::NoSystemRoots(_)) if matches!(&remote.place, Place::Jwks(url) if !url.is_https()) => {
                Some(Outbound::new(None))
            }
            Err(error) => {
                let span = written.ca.as_ref().map_or(name.span(), Spanned::span);
                let help = "set `ca = \"ca.pem\"` in this section to the trusted certificates";
                self.error(Problem::error(span, error.to_string()).help(help));
                None
            }
        }
    }

    /// The newest key set known before anything is fetched: in memory if the section was changed,
    /// or on disk.
    pub(super) fn last_good(
        &mut self,
        name: &Text,
        settings: &KeySettings,
        remote: &Remote,
    ) -> Option<LastGood> {
        let cache = Cache::new(settings, remote);
        let mut others = self.previous.into_iter().flat_map(|previous| previous.keys.iter());
        let in_memory = others.find_map(|other| match &other.settings().source {
            Source::Remote(before) if Cache::new(other.settings(), before).is_for_same(&cache) => {
                other.last_good()
            }
            _ => None,
        });
        let on_disk = cache.load(self.now).unwrap_or_else(|fault| {
            let file = cache.path().display();
            self.error(
                Problem::warning(
                    name.span(),
                    format!("the keys saved in `{file}` are ignored: {fault}"),
                )
                .help("the gateway fetches the keys again; remove the file"),
            );
            None
        });
        let newest = [in_memory, on_disk].into_iter().flatten().max_by_key(|good| good.fetched_at);
        newest.filter(|good| !remote.is_too_old(self.now.saturating_sub(good.fetched_at)))
    }

    /// Reports missing key files, even though the algorithms that the other checks need are not
    /// known.
    pub(super) fn look_at_key_files(&mut self, written: &Written) {
        for file in written.public_keys.iter().flat_map(Spanned::get_ref) {
            self.read_file(file, "a PEM file with a public key");
        }
        if let Some(file) = &written.jwks_file {
            self.read_file(file, "a JWK Set");
        }
    }

    fn secret_keys(
        &mut self,
        name: &Text,
        written: &Written,
        secret: &Spanned<SecretRef>,
        algorithms: Algorithms,
    ) -> Option<Read> {
        if !algorithms.iter().all(is_hmac) {
            let span = written.algorithms.as_ref().map_or(name.span(), Spanned::span);
            self.error(
                Problem::error(span, "`secret` works only with HS256, HS384 and HS512")
                    .related(secret.span(), "the secret")
                    .help("use another source of keys for the other algorithms"),
            );
            return None;
        }
        let bytes = self.read_secret(
            secret,
            if written.insecure_inline_secret { Inline::Permitted } else { Inline::NotPermitted },
        )?;
        if let Some(needed) = secret_is_short(bytes.expose().len(), algorithms) {
            if written.insecure_short_secret {
                self.weakened.push(format!(
                    "issuer.{}.insecure_short_secret: the secret is shorter than the hash",
                    name.get_ref()
                ));
            } else {
                self.error(
                    Problem::error(secret.span(), format!("the secret has {} bytes; these algorithms need {needed}", bytes.expose().len())).help(
                        "make a longer one, for example with `openssl rand -base64 48`; to use this one anyway, set `insecure_short_secret = true` (RFC 7518 §3.2)",
                    ),
                );
                return None;
            }
        }
        if written.insecure_inline_secret {
            self.weakened.push(format!(
                "issuer.{}.insecure_inline_secret: the secret is in the configuration file",
                name.get_ref()
            ));
        }
        match KeySet::from_secret(bytes.expose(), algorithms) {
            Ok(keys) => Some(Read { keys, left_out: Vec::new(), digest: digest([bytes.expose()]) }),
            Err(error) => {
                self.error(Problem::error(secret.span(), error.to_string()));
                None
            }
        }
    }

    fn pem_keys(&mut self, files: &Spanned<Vec<Text>>, algorithms: Algorithms) -> Option<Read> {
        if files.get_ref().is_empty() {
            self.error(
                Problem::error(files.span(), "`public_keys` is empty")
                    .help("name at least one PEM file"),
            );
            return None;
        }
        let (mut keys, mut contents) = (Vec::new(), Vec::new());
        for text in files.get_ref() {
            let Some(pem) = self.read_file(text, "a PEM file with a public key") else { continue };
            match key_from_pem(&pem) {
                Ok((key, note)) => {
                    if let Some(note) = note {
                        self.error(Problem::warning(text.span(), note.to_string()));
                    }
                    keys.push(key);
                    contents.push(pem);
                }
                Err(error) => self
                    .error(Problem::error(text.span(), format!("`{}`: {error}", text.get_ref()))),
            }
        }
        if keys.len() < files.get_ref().len() {
            return None;
        }
        let keys = KeySet::from_keys(keys, algorithms)
            .map_err(|error| self.error(Problem::error(files.span(), error.to_string())))
            .ok()?;
        Some(Read {
            keys,
            left_out: Vec::new(),
            digest: digest(contents.iter().map(Vec::as_slice)),
        })
    }

    fn jwks_keys(&mut self, file: &Text, algorithms: Algorithms) -> Option<Read> {
        let json = self.read_file(file, "a JWK Set")?;
        match KeySet::from_jwks(&json, algorithms) {
            Ok((keys, left_out)) => {
                // If no key is left, these are the reason.
                let severity = if keys.is_empty() { Problem::error } else { Problem::warning };
                for left_out in &left_out {
                    self.error(severity(file.span(), left_out.to_string()));
                }
                if keys.is_empty() {
                    let problem = match left_out.as_slice() {
                        [] => Problem::error(file.span(), "the set has no keys")
                            .help("a JWK Set is `{\"keys\": [ … ]}` with at least one public key (RFC 7517 §5)"),
                        _ => Problem::error(file.span(), "no key of this set is usable")
                            .help("the errors above say why each key was left out; also check `algorithms`"),
                    };
                    self.error(problem);
                    return None;
                }
                Some(Read { keys, left_out, digest: digest([json.as_slice()]) })
            }
            Err(error) => {
                self.error(Problem::error(file.span(), format!("`{}`: {error}", file.get_ref())));
                None
            }
        }
    }
}
