//! Checks the documents against the program: every shown file compiles, and every key, reason,
//! metric, event and command has an entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use portcullis::compile::{CompileOptions, Compiled};
use portcullis::config;
use portcullis::config::file::File;
use portcullis::config::value::CreateFiles;
use portcullis::config::{Problems, Severity};
use portcullis::gateway::Snapshot;
use portcullis::reason::{Outcome, Reason};
use portcullis::telemetry::access::{AccessRecord, LoggedCaller};
use portcullis::telemetry::metrics::Metrics;
use serde_json::Value;

/// Some time in 2026, for `[[test]]` blocks.
const NOW: u64 = 1_780_000_000;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every Markdown file for readers, by its path from the root.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"]
        .into_iter()
        .filter(|name| root().join(name).exists())
        .map(str::to_owned)
        .collect();
    let mut folders: Vec<PathBuf> = ["docs", "examples", "tests", "fuzz", "benches"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("it can be read").path()) {
            // Skip fetched and generated files.
            let is_ours = !["node_modules", "venv", "target", "corpus"]
                .iter()
                .any(|name| path.ends_with(name));
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(
                    path.strip_prefix(root()).expect("it is below the root").display().to_string(),
                );
            }
        }
    }
    found.sort();
    found
}

// --- files that the documents show
// -----------------------------------------------------------------------------------------------------

/// The info string and the content of a fence, with the line where it begins.
fn fences(text: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (line, text) in text.lines().enumerate() {
        let fence = text.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => open = Some((line + 1, info.trim().to_owned(), String::new())),
            (Some(_), Some(rest)) if rest.trim().is_empty() => found.extend(open.take()),
            (Some((_, _, inside)), _) => {
                inside.push_str(text);
                inside.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    found
}

fn compile(path: &Path, text: String) -> Result<Compiled, Problems> {
    portcullis::token::install_crypto();
    let options = CompileOptions {
        previous: None,
        create: CreateFiles::No,
        metrics: &Metrics::new(),
        now: NOW,
    };
    Snapshot::compile(config::parse(path, text)?, &options)
}

/// The problems of form of a text: syntax, types, unknown keys.
fn unreadable(text: &str) -> Option<String> {
    match config::parse(Path::new("gateway.toml"), text.to_owned()) {
        Err(problems) => Some(problems.to_string()),
        Ok(loaded) => {
            let errors: Vec<_> = loaded
                .problems
                .into_iter()
                .filter(|problem| problem.severity == Severity::Error)
                .collect();
            (!errors.is_empty()).then(|| Problems::new(loaded.source, errors).to_string())
        }
    }
}

#[test]
fn every_file_in_the_documents_compiles() {
    let (mut whole, mut fragments) = (0, 0);
    let mut wrong = Vec::new();
    for name in documents() {
        for (line, info, text) in fences(&read(&name)) {
            match info.as_str() {
                "toml fragment" => {
                    fragments += 1;
                    wrong.extend(
                        unreadable(&text).map(|problems| format!("{name}:{line}: {problems}")),
                    );
                }
                "toml" => {
                    whole += 1;
                    let folder = tempfile::tempdir().expect("a temporary folder");
                    // Replace environment variables with files.
                    let text = text.replace("{ env = \"", "{ file = \"");
                    let made = config::parse(Path::new("gateway.toml"), text.clone())
                        .map(|loaded| make_named_files(&loaded.file, folder.path()));
                    if let Err(problems) =
                        made.and_then(|()| compile(&folder.path().join("gateway.toml"), text))
                    {
                        wrong.push(format!("{name}:{line}: {problems}"));
                    }
                }
                info => assert!(
                    !info.starts_with("toml"),
                    "{name}:{line}: write `toml` or `toml fragment`, not `{info}`"
                ),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(whole > 0 && fragments > 0, "no fences were found");
}

/// Generates the keys and certificates that a file names, of the kinds that it needs.
fn make_named_files(file: &File, folder: &Path) {
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder can be made");
        fs::write(&path, text).expect("a file can be made");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
    };
    let texts = |list: &Option<toml::Spanned<Vec<toml::Spanned<String>>>>| -> Vec<String> {
        list.iter().flat_map(toml::Spanned::get_ref).map(|text| text.get_ref().clone()).collect()
    };
    for issuer in file.issuer.values() {
        let algorithms = texts(&issuer.algorithms);
        for name in texts(&issuer.public_keys) {
            write(&name, &public_key(algorithms.first().map_or("", String::as_str)));
        }
        if let Some(name) = &issuer.jwks_file {
            let keys: Vec<String> = algorithms.iter().map(|algorithm| jwk(algorithm)).collect();
            write(name.get_ref(), &format!("{{\"keys\": [{}]}}", keys.join(",")));
        }
        let secret = issuer.secret.as_ref().and_then(|secret| secret.get_ref().file(folder));
        if let Some(path) = secret {
            write(
                &path.strip_prefix(folder).unwrap_or(&path).display().to_string(),
                &"0123456789abcdef".repeat(5),
            );
        }
    }
    let logins = file.identity.iter().flat_map(|identity| identity.get_ref().login.values());
    for secret in logins.filter_map(|login| login.client_secret.as_ref()) {
        if let Some(path) = secret.get_ref().file(folder) {
            let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
            write(&name, "a secret of a client");
        }
    }
    let made =
        rcgen::generate_simple_self_signed(["app.example.com".to_owned()]).expect("a certificate");
    let server = file.server.tls.iter().map(toml::Spanned::get_ref);
    let upstreams = file.upstream.values().filter_map(|upstream| upstream.tls.as_ref());
    let upstreams = upstreams.map(toml::Spanned::get_ref);
    let more = || server.clone().flat_map(|tls| &tls.certificates);
    let certificates = server.clone().flat_map(|tls| tls.certificate.iter().chain(&tls.client_ca));
    let certificates = certificates.chain(more().map(|pair| &pair.certificate));
    let certificates =
        certificates.chain(upstreams.clone().flat_map(|tls| tls.certificate.iter().chain(&tls.ca)));
    for name in certificates {
        write(name.get_ref(), &made.cert.pem());
    }
    let keys = server.clone().filter_map(|tls| tls.private_key.as_ref());
    let keys = keys.chain(more().map(|pair| &pair.private_key));
    for key in keys.chain(upstreams.filter_map(|tls| tls.private_key.as_ref())) {
        if let Some(path) = key.get_ref().file(folder) {
            write(
                &path.strip_prefix(folder).unwrap_or(&path).display().to_string(),
                &made.signing_key.serialize_pem(),
            );
        }
    }
    if let Some(path) = file.admin.token.as_ref().and_then(|token| token.get_ref().file(folder)) {
        write(
            &path.strip_prefix(folder).unwrap_or(&path).display().to_string(),
            "0123456789abcdef0123456789abcdef",
        );
    }
    for upstream in file.upstream.values() {
        if let Some(ca) = upstream.tls.as_ref().and_then(|tls| tls.get_ref().ca.as_ref()) {
            write(ca.get_ref(), &made.cert.pem());
        }
    }
}

fn public_key(algorithm: &str) -> String {
    let made = match algorithm {
        "ES256" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ES384" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "EdDSA" => rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519),
        _ => rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
    };
    made.expect("a key can be made").public_key_pem()
}

fn jwk(algorithm: &str) -> String {
    use rcgen::PublicKeyData;
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    if algorithm == "ES256" {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("a key can be made");
        let point = key.der_bytes();
        let (x, y) = (text(&point[1..33]), text(&point[33..]));
        return format!(r#"{{"kty":"EC","crv":"P-256","kid":"{algorithm}","x":"{x}","y":"{y}"}}"#);
    }
    // A modulus of 2048 bits: only its form is checked.
    let modulus: Vec<u8> = (0..256_u32)
        .map(|at| if at == 0 || at == 255 { 0xc5 } else { (at * 37 % 251) as u8 })
        .collect();
    format!(
        r#"{{"kty":"RSA","kid":"{algorithm}","alg":"{algorithm}","n":"{}","e":"AQAB"}}"#,
        text(&modulus)
    )
}

#[test]
fn every_example_compiles() {
    let mut found = 0;
    for entry in fs::read_dir(root().join("examples")).expect("there are examples") {
        let path = entry.expect("it can be read").path().join("gateway.toml");
        if !path.exists() {
            continue;
        }
        found += 1;
        let text = fs::read_to_string(&path).expect("it can be read");
        let compiled = compile(&path, text.clone()).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(compiled.warnings.list.is_empty(), "{}", compiled.warnings);
        assert!(text.contains("[[test]]"), "{}: an example says what must hold", path.display());
        assert!(path.with_file_name("README.md").exists(), "{} has no README.md", path.display());
    }
    assert!(found >= 3, "{found} examples");
}

// --- gateway.toml
// ----------------------------------------------------------------------------------------------------------------------

#[test]
fn the_default_file_compiles_without_a_warning() {
    let compiled = compile(Path::new("gateway.toml"), read("gateway.toml"))
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert!(compiled.warnings.list.is_empty(), "{}", compiled.warnings);
    assert!(compiled.snapshot.weakened.is_empty(), "{:?}", compiled.snapshot.weakened);
}

/// The key of a commented line.
fn commented(line: &str) -> Option<(&str, &str)> {
    let written = line.strip_prefix("# ")?;
    let (key, _) = written.split_once(" = ")?;
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_key.then_some((written, key))
}

/// Commented lines that show a value other than the default, so that they change the meaning of the
/// file.
const NO_DEFAULT: [&str; 27] = [
    "cors",
    "redirect_http",
    "client_ca",
    "certificates",
    "redis",
    "login",
    "acr",
    "max_age",
    "keep_alive",
    "cookie_domain",
    "mail",
    "token",
    "url",
    "host",
    "tls",
    "methods",
    "all_roles",
    "scopes",
    "claims",
    "issuers",
    "identity_headers",
    "set_headers",
    "response_headers",
    "redirect",
    "private_key",
    "certificate",
    "audience",
];

/// Each commented line is a key, and if it shows the default, uncommenting it does not change the
/// meaning of the file.
#[test]
fn every_commented_default_is_the_default() {
    let text = read("gateway.toml");
    let lines: Vec<&str> = text.lines().collect();
    let as_is = meaning(&text);
    let (mut keys, mut sections) = (0, 0);
    let mut at = 0;
    while at < lines.len() {
        // A section that is commented out completely is uncommented completely.
        let is_section = lines[at].starts_with("# [");
        let end = if is_section {
            lines[at..]
                .iter()
                .position(|line| !line.starts_with("# "))
                .map_or(lines.len(), |end| at + end)
        } else {
            at + 1
        };
        let uncommented: Vec<&str> =
            lines[at..end].iter().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
        let written = [&lines[..at], &uncommented, &lines[end..]].concat().join("\n");
        if is_section {
            sections += 1;
            // Its two sources of keys are alternatives, so the section need not compile, but it
            // must parse.
            if let Some(problems) = unreadable(&written) {
                panic!("gateway.toml with the section of line {} uncommented: {problems}", at + 1);
            }
        } else if let Some((line, key)) = commented(lines[at]) {
            keys += 1;
            if let Some(problems) = unreadable(&written) {
                panic!("gateway.toml with line {} uncommented: {problems}", at + 1);
            }
            if !NO_DEFAULT.contains(&key) {
                assert_eq!(
                    meaning(&written),
                    as_is,
                    "`{line}` of line {} is not the default",
                    at + 1
                );
            }
        }
        at = end;
    }
    assert!(keys >= 40 && sections >= 2, "{keys} keys and {sections} sections were found");
}

/// The meaning of a file as text, without generated parts: keys, counters, connections.
fn meaning(text: &str) -> String {
    let Compiled { snapshot, .. } = compile(Path::new("gateway.toml"), text.to_owned())
        .unwrap_or_else(|problems| panic!("{problems}"));
    let Snapshot {
        start,
        limits,
        h2c,
        proxies,
        max_body,
        body_idle_timeout,
        access_log,
        drain_delay,
        drain_timeout,
        watch,
        ..
    } = &snapshot;
    let identity = &snapshot.identity;
    let mut issuers: Vec<String> =
        snapshot.issuers.iter().map(|issuer| format!("{:?}", issuer.settings())).collect();
    issuers.sort();
    let upstreams: Vec<String> =
        snapshot.upstreams.iter().map(|upstream| format!("{:?}", upstream.settings())).collect();
    let counters: Vec<String> = snapshot
        .counters
        .iter()
        .map(|limit| format!("{} {:?}", limit.name(), limit.settings()))
        .collect();
    let names = &snapshot.rules.token_names;
    let routes: Vec<String> = snapshot
        .routes
        .routes()
        .iter()
        .map(|route| {
            let limit = route.limit.as_ref().map(|limit| limit.name());
            format!(
                "{} {:?} {:?} {:?} {:?} {limit:?} {:?} {} {} {:?} {} {}",
                route.name,
                route.pattern,
                route.guard.access,
                route.guard.demands,
                route.guard.token_from,
                route.identity_headers,
                route.forward_authorization,
                route.strip_segments,
                route.permitted,
                route.method_override,
                route.guard.enforce
            )
        })
        .collect();
    format!(
        "{start:?} {limits:?} {h2c} {proxies:?} {max_body} {body_idle_timeout:?} {access_log} {drain_delay:?} {drain_timeout:?} {watch} \
         {names:?}\n{identity:#?}\n{issuers:#?}\n{upstreams:#?}\n{counters:#?}\n{routes:#?}"
    )
}

#[test]
fn the_default_file_names_every_key() {
    let text = read("gateway.toml");
    let mut sections: BTreeMap<String, String> = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)) {
        if line.starts_with('[') {
            let title = line.split_once(" #").map_or(line, |(title, _)| title).trim();
            let named = ["issuer", "limit", "upstream", "identity.login"]
                .into_iter()
                .find(|kind| title.starts_with(&format!("[{kind}.")));
            section = named.map_or_else(|| title.to_owned(), |kind| format!("[{kind}.NAME]"));
        }
        let text = sections.entry(section.clone()).or_default();
        text.push_str(line);
        text.push('\n');
    }
    let names = |key: &Key| {
        let Some(text) = sections.get(&key.section) else { return false };
        let name = &key.name;
        text.lines().any(|line| {
            line.starts_with(&format!("{name} = "))
                || ["{", ","].iter().any(|before| line.contains(&format!("{before} {name} = ")))
        })
    };
    let missing: Vec<String> = keys()
        .into_iter()
        .filter(|key| !key.is_section && !names(key))
        .map(|key| key.place())
        .collect();
    // Keys of a `[[test]]` that the file does not use.
    assert_eq!(missing, ["[[test]] issuer", "[[test]] peer"]);
}

// --- the reference
// ---------------------------------------------------------------------------------------------------------------------

/// A key of the file.
#[derive(Debug)]
struct Key {
    /// The section's heading.
    section: String,
    /// For a key of an inline table: the key that holds the table.
    within: Option<String>,
    name: String,
    is_section: bool,
}

impl Key {
    fn place(&self) -> String {
        format!("{} {}", self.section, self.name)
    }
}

fn schema() -> Value {
    let printed = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("schema")
        .output()
        .expect("the binary runs");
    assert!(printed.status.success());
    serde_json::from_slice(&printed.stdout).expect("a schema is JSON")
}

#[test]
fn the_stored_openapi_description_is_current() {
    let printed = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("openapi")
        .output()
        .expect("the binary runs");
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).expect("JSON is UTF-8");
    let stale =
        "docs/reference/openapi.json is stale: `portcullis openapi > docs/reference/openapi.json`";
    assert!(read("docs/reference/openapi.json") == printed, "{stale}");
}

/// Every key of the schema, with the heading of its section.
fn keys() -> Vec<Key> {
    let schema = schema();
    let mut keys = Vec::new();
    for (name, property) in schema["properties"].as_object().expect("the file has keys") {
        let (section, definition) = if let Some(one) = reference(property) {
            (format!("[{name}]"), Some(one))
        } else if let Some(many) =
            named(property).filter(|many| schema["$defs"][many]["properties"].is_object())
        {
            (format!("[{name}.NAME]"), Some(many))
        } else if let Some(items) = reference(&property["items"]) {
            (format!("[[{name}]]"), Some(items))
        } else {
            (format!("[{name}]"), None)
        };
        keys.push(Key {
            section: section.clone(),
            within: None,
            name: name.clone(),
            is_section: true,
        });
        if let Some(definition) =
            definition.filter(|definition| schema["$defs"][definition]["properties"].is_object())
        {
            section_keys(&schema, &definition, &section, &mut keys);
        }
    }
    assert!(keys.len() > 80, "the schema was not read: {keys:#?}");
    keys
}

fn section_keys(schema: &Value, definition: &str, section: &str, keys: &mut Vec<Key>) {
    for (name, property) in
        schema["$defs"][definition]["properties"].as_object().expect("a section has keys")
    {
        let below =
            reference(property).filter(|below| schema["$defs"][below]["properties"].is_object());
        let sections = ["[server.tls]", "[server.limits]", "[identity.brand]"].map(str::to_owned);
        let own = format!("[{}.{name}]", section.trim_matches(['[', ']']));
        let is_section = below.is_some() && sections.contains(&own);
        let many = named(property).filter(|many| {
            section == "[identity]" && schema["$defs"][many]["properties"].is_object()
        });
        if let Some(many) = many {
            let own = format!("[identity.{name}.NAME]");
            section_keys(schema, &many, &own, keys);
            continue;
        }
        let heading = if is_section { own.clone() } else { section.to_owned() };
        keys.push(Key { section: heading, within: None, name: name.clone(), is_section });
        match below {
            Some(below) if is_section => section_keys(schema, &below, &own, keys),
            Some(below) => {
                for (inner, _) in
                    schema["$defs"][&below]["properties"].as_object().expect("a table has keys")
                {
                    let within = Some(name.clone());
                    keys.push(Key {
                        section: section.to_owned(),
                        within,
                        name: inner.clone(),
                        is_section: false,
                    });
                }
            }
            None => {}
        }
    }
}

/// The definition of values under names that the user chooses.
fn named(property: &Value) -> Option<String> {
    reference(&property["additionalProperties"])
}

/// The definition that a schema refers to, however it is wrapped.
fn reference(schema: &Value) -> Option<String> {
    let direct = |schema: &Value| {
        schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")).map(str::to_owned)
    };
    direct(schema).or_else(|| {
        ["anyOf", "allOf", "oneOf"]
            .iter()
            .find_map(|any| schema[any].as_array()?.iter().find_map(direct))
    })
}

/// The headings of a document, each with its level and its text up to the next heading of the same
/// or a higher level.
fn headings(text: &str) -> Vec<(usize, String, String)> {
    let mut found: Vec<(usize, String, String)> = Vec::new();
    let mut in_fence = false;
    for line in text.lines() {
        in_fence ^= line.trim_start().starts_with("```");
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if !in_fence && (1..=6).contains(&level) && line[level..].starts_with(' ') {
            found.push((level, line[level..].trim().to_owned(), String::new()));
        }
        let open: Vec<usize> = (0..found.len())
            .filter(|at| found[at + 1..].iter().all(|(other, ..)| *other > found[*at].0))
            .collect();
        for at in open {
            found[at].2.push_str(line);
            found[at].2.push('\n');
        }
    }
    found
}

#[test]
fn every_key_has_its_entry() {
    let reference = read("docs/reference/configuration.md");
    let headings = headings(&reference);
    let sections: BTreeMap<&str, &str> = headings
        .iter()
        .filter(|(level, ..)| *level == 2)
        .map(|(_, title, body)| (title.as_str(), body.as_str()))
        .collect();
    let entries = |section: &str| -> BTreeMap<String, String> {
        let body = sections.get(section).copied().unwrap_or_default();
        self::headings(body)
            .into_iter()
            .filter(|(level, ..)| *level == 3)
            .map(|(_, title, body)| (title.trim_matches('`').to_owned(), body))
            .collect()
    };
    let mut missing = Vec::new();
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for key in keys() {
        let named = |text: &str| text.contains(&format!("`{}`", key.name));
        let is_there = match &key.within {
            _ if key.is_section => sections.contains_key(key.section.as_str()),
            Some(within) => entries(&key.section).get(within).is_some_and(|body| named(body)),
            None => entries(&key.section).contains_key(&key.name),
        };
        if !is_there {
            missing.push(key.place());
        }
        if !key.is_section && key.within.is_none() {
            known.entry(key.section.clone()).or_default().insert(key.name);
        }
    }
    assert!(
        missing.is_empty(),
        "without an entry in docs/reference/configuration.md: {missing:#?}"
    );
    for (section, keys) in &known {
        let stale: Vec<String> =
            entries(section).into_keys().filter(|entry| !keys.contains(entry)).collect();
        assert!(
            stale.is_empty(),
            "{section} has no {stale:?}, but docs/reference/configuration.md has"
        );
    }
}

/// An entry consists of a sentence, type and default, meaning, and an example. This checks that an
/// example contains the key.
#[test]
fn every_entry_of_a_key_has_an_example() {
    let reference = read("docs/reference/configuration.md");
    for (_, title, body) in headings(&reference).into_iter().filter(|(level, ..)| *level == 3) {
        let key = title.trim_matches('`');
        let shown = fences(&body)
            .iter()
            .any(|(_, info, text)| info.starts_with("toml") && text.contains(key));
        assert!(shown, "`{key}` has no example in docs/reference/configuration.md");
    }
}

/// Compares names with the headings of level 3 in backticks.
fn compare(document: &str, names: &BTreeSet<String>) {
    let headings = headings(&read(document));
    let entries: BTreeSet<String> = headings
        .iter()
        .filter_map(|(_, title, _)| title.strip_prefix('`')?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    let missing: Vec<_> = names.difference(&entries).collect();
    let stale: Vec<_> = entries.difference(names).collect();
    assert!(missing.is_empty(), "{document} has no heading for {missing:?}");
    assert!(stale.is_empty(), "{document} has headings for what does not exist: {stale:?}");
}

#[test]
fn every_reason_has_its_entry() {
    let names = Reason::ALL.iter().map(|reason| reason.as_str().to_owned()).collect();
    compare("docs/reference/reasons.md", &names);
    // Each refusal is listed under its status.
    let text = read("docs/reference/reasons.md");
    for (_, title, body) in headings(&text).into_iter().filter(|(level, ..)| *level == 2) {
        let statuses: Vec<u16> =
            title.split([',', ' ']).filter_map(|word| word.parse().ok()).collect();
        for reason in Reason::ALL.iter().filter(|reason| {
            !reason.is_pass() && body.contains(&format!("### `{}`", reason.as_str()))
        }) {
            assert!(
                statuses.contains(&reason.status().as_u16()),
                "`{}` stands under \"{title}\"",
                reason.as_str()
            );
        }
    }
}

#[test]
fn every_metric_has_its_entry() {
    let metrics = Metrics::new();
    metrics.started(NOW);
    let route = metrics.route("app");
    route.request(0, "GET", 200, 0.01, Some(0.005));
    route.decision(0, Outcome::Allowed.as_str(), Reason::Public.as_str());
    metrics.rate_limited("login").inc();
    metrics.verified("nginx", "allowed");
    metrics.login("succeeded");
    metrics.refresh("succeeded");
    metrics.jwks_fetched("corp", "succeeded", 1);
    metrics.show_key_age("corp", || Some(1));
    metrics.certificates([("app.example.com".to_owned(), NOW)], || NOW);
    metrics.show_limiter_mode("login", || Some(false));
    metrics.store_up("redis", true);
    let text = metrics.encode();
    let names: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            let (name, kind) = line.split_once(' ').expect("a type");
            match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            }
        })
        .collect();
    assert!(
        names.len() > 8
            && names
                .iter()
                .all(|name| name.starts_with("portcullis_") || name.starts_with("process_")),
        "{text}"
    );
    compare("docs/reference/metrics.md", &names);
    // The entry of each metric mentions every label.
    let document = read("docs/reference/metrics.md");
    for (_, title, body) in headings(&document) {
        let name = title.trim_matches('`');
        let series = text.lines().filter(|line| {
            line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_bucket{{"))
        });
        for label in series
            .filter_map(|line| line.split_once('{')?.1.split_once('}'))
            .flat_map(|(labels, _)| labels.split("\","))
        {
            let label = label.split('=').next().unwrap_or_default();
            assert!(
                label == "le"
                    || body.contains(&format!("`{label}"))
                    || body.contains(&format!("{label}`")),
                "{name}: nothing of `{label}`"
            );
        }
    }
}

#[test]
fn every_field_of_the_access_log_has_its_entry() {
    let record = AccessRecord {
        timestamp: Duration::from_secs(NOW),
        request_id: "id",
        trace_id: "trace",
        client_address: None,
        method: "GET",
        path: "/",
        route: None,
        status: 200,
        duration: Duration::ZERO,
        upstream: None,
        bytes_in: 0,
        bytes_out: 0,
        outcome: "allowed",
        reason: "public",
        via: Some("nginx"),
        caller: LoggedCaller::default(),
    };
    let mut line = Vec::new();
    record.write_json(&mut line);
    let line: Value = serde_json::from_slice(&line).expect("a line is JSON");
    let document = read("docs/reference/log.md");
    let rows: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    for name in line.as_object().expect("an object").keys() {
        assert!(rows.contains(name.as_str()), "docs/reference/log.md has no row for `{name}`");
    }
    for outcome in [Outcome::Allowed, Outcome::Refused, Outcome::WouldRefuse, Outcome::Failed] {
        assert!(
            document.contains(&format!("`{}`", outcome.as_str())),
            "docs/reference/log.md does not say `{}`",
            outcome.as_str()
        );
    }
}

/// The messages of the events that a source file writes at `info` and above, with `…` for variable
/// parts, without its tests.
fn messages(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let macros = ["tracing::info!(", "tracing::warn!(", "tracing::error!("];
    let starts = macros
        .into_iter()
        .flat_map(|opening| source.match_indices(opening).map(|(at, opening)| at + opening.len()));
    let mut found = Vec::new();
    for start in starts {
        let (mut depth, mut literal, mut in_literal, mut is_filled_in) =
            (1, String::new(), false, false);
        // The message is the last literal before the macro's end.
        for letter in source[start..].chars() {
            match letter {
                '"' if in_literal => in_literal = false,
                '"' => (in_literal, literal) = (true, String::new()),
                '{' if in_literal => {
                    is_filled_in = true;
                    literal.push('…');
                }
                '}' if in_literal => is_filled_in = false,
                _ if in_literal && !is_filled_in => literal.push(letter),
                _ if in_literal => {}
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        found.push(literal);
    }
    found
}

#[test]
fn every_event_has_its_entry() {
    let (mut sources, mut folders) = (Vec::new(), vec![root().join("src")]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder)
            .expect("it can be read")
            .map(|entry| entry.expect("it can be read").path())
        {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                sources.push(fs::read_to_string(path).expect("it is UTF-8"));
            }
        }
    }
    let document = read("docs/reference/log.md");
    // A row may contain a shortened message.
    let rows: Vec<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| line.split(" | ").take(2))
        .filter_map(|cell| cell.trim_start_matches("| ").strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let is_told = |message: &str| {
        rows.iter().any(|row| {
            *row == message || row.strip_suffix('…').is_some_and(|row| message.starts_with(row))
        })
    };
    let messages: Vec<String> = sources.iter().flat_map(|source| messages(source)).collect();
    assert!(messages.len() > 40, "{messages:#?}");
    // A message that is only `…` is one of several texts, which are in other places.
    let missing: Vec<&String> =
        messages.iter().filter(|message| *message != "…" && !is_told(message)).collect();
    assert!(missing.is_empty(), "docs/reference/log.md has no row for {missing:#?}");
}

#[test]
fn every_command_has_its_entry() {
    let help = |arguments: &[&str]| {
        let printed = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(arguments)
            .arg("--help")
            .output()
            .expect("the binary runs");
        String::from_utf8(printed.stdout).expect("help is UTF-8")
    };
    let commands = |help: &str| -> Vec<String> {
        let listed = help.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
        let names = listed
            .lines()
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_whitespace().next());
        names.filter(|name| *name != "help").map(str::to_owned).collect()
    };
    let document = headings(&read("docs/reference/command-line.md"));
    let mut names = BTreeSet::new();
    for command in commands(&help(&[])) {
        let below = commands(&help(&[&command]));
        let whole = if below.is_empty() {
            vec![command.clone()]
        } else {
            below.iter().map(|name| format!("{command} {name}")).collect()
        };
        for name in whole {
            let words: Vec<&str> = name.split(' ').collect();
            let body = document
                .iter()
                .find(|(_, title, _)| *title == format!("`{name}`"))
                .map(|(.., body)| body.as_str());
            let body = body.unwrap_or_else(|| {
                panic!("docs/reference/command-line.md has no heading for `{name}`")
            });
            // Every long option of the command.
            let options = help(&words);
            for option in options
                .split(|letter: char| letter.is_whitespace() || letter == ',')
                .filter(|word| word.starts_with("--"))
            {
                let is_common = ["--config", "--help"].contains(&option);
                assert!(
                    is_common || body.contains(option),
                    "docs/reference/command-line.md: `{name}` does not tell of `{option}`"
                );
            }
            names.insert(name);
        }
    }
    assert!(names.len() >= 10, "{names:?}");
    compare("docs/reference/command-line.md", &names);
}

/// Runs each `check` and `explain` that the reference shows for a file of the repository, and
/// compares the output.
#[test]
fn the_output_shown_in_the_reference_is_current() {
    let mut run = 0;
    for (_, info, text) in fences(&read("docs/reference/command-line.md")) {
        let text = format!("\n{text}");
        for (command, shown) in
            text.split("\n$ ").filter(|_| info == "console").filter_map(|one| one.split_once('\n'))
        {
            let is_repeatable = ["portcullis check", "portcullis explain"]
                .iter()
                .any(|start| command.starts_with(start));
            if !is_repeatable || command.contains("broken.toml") {
                continue;
            }
            run += 1;
            let written = command.replacen("portcullis", env!("CARGO_BIN_EXE_portcullis"), 1);
            let printed = Command::new("sh")
                .args(["-c", &written])
                .current_dir(root())
                .env_remove("PORTCULLIS_CONFIG")
                .output()
                .expect("a shell runs");
            let printed = String::from_utf8(printed.stdout).expect("the output is UTF-8");
            assert_eq!(printed.trim_end(), shown.trim_end(), "{command}");
        }
    }
    assert!(run >= 3, "{run} commands were found");
}

#[test]
fn the_stored_schema_is_current() {
    // Stored only for readers without the binary.
    if let Ok(kept) = fs::read_to_string(root().join("docs/gateway.schema.json")) {
        let kept: Value = serde_json::from_str(&kept).expect("it is JSON");
        assert_eq!(kept, schema(), "write it anew: portcullis schema > docs/gateway.schema.json");
    }
}

// --- links
// -----------------------------------------------------------------------------------------------------------------------------

/// The text of a document without fences and code spans, which contain no links.
fn without_code(text: &str) -> String {
    let mut in_fence = false;
    let mut kept = String::new();
    for line in text.lines() {
        let delimits = line.trim_start().starts_with("```");
        in_fence ^= delimits;
        if !in_fence && !delimits {
            kept.extend(line.split('`').step_by(2));
        }
        kept.push('\n');
    }
    kept
}

/// The anchor that a heading gets.
fn anchor(title: &str) -> String {
    let kept = title
        .chars()
        .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

#[test]
fn every_link_has_a_target() {
    let mut wrong = Vec::new();
    let mut followed = 0;
    for name in documents() {
        let text = read(&name);
        let folder = root().join(&name).parent().expect("a folder").to_owned();
        let plain = without_code(&text);
        for (at, _) in plain.match_indices("](") {
            let Some((target, _)) = plain[at + 2..].split_once(')') else { continue };
            let target = target.split_whitespace().next().unwrap_or_default();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            if !file.exists() {
                wrong.push(format!("{name}: {target} is not there"));
            } else if !fragment.is_empty()
                && file.extension().is_some_and(|extension| extension == "md")
            {
                let text = fs::read_to_string(&file).expect("it can be read");
                if !headings(&text).iter().any(|(_, title, _)| anchor(title) == fragment) {
                    wrong.push(format!("{name}: {target} has no such heading"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(followed > 10, "no links were found");
}

#[test]
fn the_book_has_every_page() {
    let summary = read("docs/SUMMARY.md");
    let pages: Vec<String> = documents()
        .iter()
        .filter_map(|name| name.strip_prefix("docs/"))
        .filter(|name| *name != "SUMMARY.md")
        .map(str::to_owned)
        .collect();
    assert!(pages.len() > 30, "{pages:?}");
    let missing: Vec<&String> =
        pages.iter().filter(|name| !summary.contains(&format!("]({name})"))).collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md does not list {missing:?}");
}

// --- configurations of other proxies
// ---------------------------------------------------------------------------------------------------

/// The guide shows exactly what `proxy-config` writes for its file.
#[test]
fn the_guide_shows_what_is_written_for_other_proxies() {
    let guide = read("docs/guides/forward-authentication.md");
    let (_, _, file) = fences(&guide)
        .into_iter()
        .find(|(_, info, _)| info == "toml")
        .expect("the guide has a configuration");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("gateway.toml");
    fs::write(&path, file).expect("it can be written");
    for kind in ["nginx", "caddy", "traefik", "envoy", "haproxy"] {
        let out = folder.path().join(kind);
        let written = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["proxy-config", kind, "--listen", "0.0.0.0:80"])
            .args(["--upstream", "http://127.0.0.1:3000", "--config"])
            .arg(&path)
            .arg("--out")
            .arg(&out)
            .output()
            .expect("the binary runs");
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        for entry in fs::read_dir(&out).expect("something is written") {
            let path = entry.expect("it can be read").path();
            let text = fs::read_to_string(&path).expect("it can be read");
            assert!(
                guide.contains(&text),
                "docs/guides/forward-authentication.md does not show {kind}/{}:\n{text}",
                path.file_name().expect("a name").display()
            );
        }
    }
    for implementation in ["envoy-gateway", "external-auth", "traefik"] {
        let manifests = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["proxy-config", "gateway-api", "--upstream", "http://wiki:3000"])
            .args(["--implementation", implementation, "--config"])
            .arg(&path)
            .output()
            .expect("the binary runs");
        assert!(manifests.status.success(), "{}", String::from_utf8_lossy(&manifests.stderr));
        let text = String::from_utf8(manifests.stdout).expect("text");
        assert!(guide.contains(&text), "the guide does not show the manifests:\n{text}");
    }
}

// --- the deployment of several replicas
// ---------------------------------------------------------------------------------------------------

/// The file in the manifests of the guide, where its Secret is mounted.
#[test]
fn the_file_for_several_replicas_is_accepted() {
    let guide = read("docs/guides/several-replicas.md");
    let (_, after) = guide.split_once("  gateway.toml: |\n").expect("the guide has a ConfigMap");
    let lines = after.lines().map_while(|line| line.strip_prefix("    "));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("portcullis.key");
    fs::write(&key, "a key that is long enough for a test").expect("it can be written");
    let file = lines.collect::<Vec<_>>().join("\n");
    let file = file.replace("/run/secrets/portcullis.key", &key.display().to_string());
    let path = folder.path().join("gateway.toml");
    fs::write(&path, file).expect("it can be written");
    let url = "postgres://portcullis:secret@database/portcullis?sslmode=verify-full";
    let checked = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .env("DATABASE_URL", url)
        .args(["check", "--config"])
        .arg(&path)
        .output()
        .expect("the binary runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

// --- the service of the example
// -----------------------------------------------------------------------------------------------------

/// Hashing threads lower their own priority. A system call filter that forbids this returns EPERM,
/// and logins then slow down requests. Later lines of a unit override earlier ones.
#[test]
fn the_service_may_lower_the_priority_of_its_threads() {
    let unit = read("examples/systemd/portcullis.service");
    let mut is_allowed = false;
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (names, allows) = line.strip_prefix('~').map_or((line, true), |names| (names, false));
        // `setpriority` is in @resources, and that is in @system-service.
        let holds_it = |name| ["setpriority", "@resources", "@system-service"].contains(&name);
        if names.split(' ').any(holds_it) {
            is_allowed = allows;
        }
    }
    assert!(is_allowed, "{unit}");
}

/// With a start each second, systemd's limit of five in ten seconds would end the service.
#[test]
fn the_service_is_started_again_until_it_runs() {
    let unit = read("examples/systemd/portcullis.service");
    let (head, service) = unit.split_once("\n[Service]\n").expect("a section");
    // systemd ignores it in another section.
    assert!(head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{head}");
    assert!(service.lines().any(|line| line == "RestartSec=1"), "{service}");
}

/// Docker gets only the files that `.dockerignore` allows: if a file that the build reads is
/// missing there, every `docker build` fails.
#[test]
fn the_image_contains_every_input_of_the_build() {
    let ignore = read(".dockerignore");
    for needed in ["Cargo.toml", "Cargo.lock", "askama.toml", "gateway.toml", "benches", "src"] {
        assert!(root().join(needed).exists(), "{needed} is no longer there: shorten this list");
        let is_let_through = ignore.lines().any(|line| line == format!("!{needed}"));
        assert!(is_let_through, "`.dockerignore` keeps {needed} from the engine");
    }
}
