//! Checks the structure of the code: which module may use which, how long a file may be, and what
//! no file may contain.
//!
//! The layers are read from the table in `src/lib.rs`, so that the documentation is what is
//! checked. Exceptions are in the tables below, each with its reason; an unused exception is an
//! error too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};

/// Imports between modules of one layer.
const NEIGHBOURS: [(&str, &str, &str); 4] = [
    ("cli", "process", "`run` and `demo` are commands that serve"),
    ("redis", "token", "the keys that revoke tokens are a list of the issuer's section"),
    (
        "identity",
        "keys",
        "the keys of providers that people log in at have the same owner as others'",
    ),
    ("identity", "revocation", "what the built-in issuer takes away is revoked with it"),
];

/// The items of the gateway that the server layer may use.
const KNOWN_TO_SERVER: [(&str, &str); 16] = [
    (
        "snapshot::ConnectionLimits",
        "how a connection is read; `explain` reads one without the rest",
    ),
    ("body::BodyError", "a response that its HTTP/2 client does not read is ended from outside"),
    ("upload::RequestBody", "what the gateway does not read of it is given back to its connection"),
    ("upload::UnreadBodies", "the connection takes that"),
    ("Gateway", "a connection hands its requests to `Gateway::handle`"),
    (
        "Snapshot",
        "the limits and the certificate of a connection are those of the file that is in force",
    ),
    ("client::Door", "a connection tells `Gateway::handle` which listener accepted it"),
    ("snapshot::Tls", "the handshake takes the certificates of the file that is in force"),
    (
        "certificate::ClientCertificate",
        "`handle` gets the certificate that the other end has shown",
    ),
    (
        "refusal::explained_body",
        "plain HTTP on a port with TLS is refused in the same words as every request",
    ),
    ("client::Peer", "`handle` gets the address of the socket's other end"),
    ("exchange::RecordedBody", "the body of every response, for hyper to send"),
    ("exchange::Look", "what becomes of a response that the client does not read"),
    ("streams::Unread", "such a response on HTTP/2 is looked at from time to time"),
    ("worker::Worker", "each worker keeps its own things, and hands them to `Gateway::handle`"),
    (
        "refusal::problem_body",
        "a connection too many is refused in the same words as every request",
    ),
];

/// The items of the gateway that the admin listener may use.
const KNOWN_TO_ADMIN: [(&str, &str); 2] = [
    ("authenticate::bearer_token", "bearer tokens have one reader"),
    ("streams::Streams", "operators list streams and end one"),
];

/// The gateway's files in order: each may use those before it.
const WALK: [&str; 53] = [
    "target",
    "scheme",
    "token_names",
    "step_up",
    "guard",
    "headers",
    "token_memo",
    "certificate",
    "texts",
    "client",
    "origin",
    "dialect",
    "constant_headers",
    "watched_socket",
    "upload",
    "body",
    "grpc",
    "framing",
    "dial",
    "upstream",
    "redirect",
    "stream_rule",
    "cors",
    "route",
    "second_target",
    "personal",
    "authenticate",
    "online",
    "exchange_ids",
    "logout",
    "refusal",
    "snapshot",
    "streams",
    "observer",
    "matched",
    "counted",
    "authorize",
    "outgoing",
    "verdict",
    "redirected",
    "send",
    "navigation",
    "reader",
    "decide",
    "echo",
    "renewal",
    "exchange",
    "worker",
    "websocket",
    "tunnel",
    "https_only",
    "endpoint",
    "mod",
];

/// Imports against this order.
const AGAINST_THE_WALK: [(&str, &str, &str); 4] = [
    (
        "body",
        "upstream",
        "`Body` is one enum, unboxed: one of its kinds is an upstream's body, which gives its connection back at its end",
    ),
    ("exchange", "mod", "an exchange is written to the gateway's `Telemetry` when it ends"),
    ("https_only", "mod", "a step of `Gateway` in a file of its own, likewise"),
    (
        "endpoint",
        "mod",
        "a visit to the built-in issuer is the end of the line, as `send` is: a step of `Gateway` in a file of its own",
    ),
];

/// The maximum number of lines of code in a file, without comments and tests.
const LONGEST: usize = 520;

#[test]
fn every_module_uses_only_the_layers_below() {
    let house = House::read();
    let layers = house.layers();
    let mut used = BTreeSet::new();
    let mut breaches = Vec::new();
    for file in house.code() {
        let from = file.module[0].as_str();
        let Some(&layer) = layers.get(from) else { continue };
        for path in file.paths() {
            let to = path[0].as_str();
            let Some(&other) = layers.get(to).filter(|_| to != from) else { continue };
            if let Some((from, to, _)) =
                NEIGHBOURS.iter().find(|(one, another, _)| (*one, *another) == (from, to))
            {
                used.insert((*from, *to));
            } else if other >= layer {
                breaches.push(format!(
                    "{}: `{from}` (layer {layer}) knows {}, of layer {other}",
                    file.name,
                    path.join("::")
                ));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    assert_eq!(used.len(), NEIGHBOURS.len(), "a grant that nothing uses; used are {used:?}");
}

#[test]
fn the_server_layer_uses_little_of_the_gateway() {
    let house = House::read();
    let mut used = BTreeSet::new();
    let mut breaches = Vec::new();
    for file in house.code().filter(|file| ["server", "admin"].contains(&file.module[0].as_str())) {
        for path in file.paths().into_iter().filter(|path| path[0] == "gateway") {
            let of = path[1..].join("::");
            let granted =
                if file.module[0] == "server" { &KNOWN_TO_SERVER[..] } else { &KNOWN_TO_ADMIN };
            match granted
                .iter()
                .find(|(known, _)| of == *known || of.starts_with(&format!("{known}::")))
            {
                Some((known, _)) => {
                    used.insert((file.module[0].clone(), *known));
                }
                None => breaches.push(format!("{} knows gateway::{of}", file.name)),
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    assert_eq!(
        used.len(),
        KNOWN_TO_SERVER.len() + KNOWN_TO_ADMIN.len(),
        "a grant that nothing uses; used are {used:?}"
    );
}

#[test]
fn gateway_files_use_only_earlier_files() {
    let house = House::read();
    let place = |name: &str| WALK.iter().position(|file| *file == name);
    let mut used = BTreeSet::new();
    let mut breaches = Vec::new();
    for file in house.code().filter(|file| file.module[0] == "gateway") {
        let from = file.module.get(1).map_or("mod", String::as_str);
        let Some(here) = place(from) else {
            breaches.push(format!("{}: not in the walk; say where it belongs", file.name));
            continue;
        };
        for path in file.paths().into_iter().filter(|path| path[0] == "gateway") {
            // A name that is not a file of the gateway is an item of its `mod.rs`, or a re-export
            // of a file.
            let to = path.get(1).map_or("mod", String::as_str);
            let to = if place(to).is_some() { to } else { house.reexported(to) };
            if let Some((from, to, _)) =
                AGAINST_THE_WALK.iter().find(|(one, another, _)| (*one, *another) == (from, to))
            {
                used.insert((*from, *to));
            } else if to != from && place(to).is_none_or(|there| there > here) {
                breaches.push(format!(
                    "{}: `{from}` knows {}, which comes later",
                    file.name,
                    path.join("::")
                ));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    assert_eq!(used.len(), AGAINST_THE_WALK.len(), "a grant that nothing uses; used are {used:?}");
    for name in WALK {
        assert!(
            house.files.iter().any(|file| file.module == ["gateway", name]) || name == "mod",
            "there is no gateway/{name}"
        );
    }
}

/// The tree in `docs/architecture.md` contains each source file once, in its folder, and nothing that
/// does not exist. Modules that only tests use are left out.
#[test]
fn the_architecture_names_each_file_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/architecture.md")).expect("it can be read");
    let named = paths_of_tree(&document);
    let missing: Vec<&String> = named.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty(), "the tree names what does not exist: {missing:#?}");

    let once: BTreeSet<&str> = named.iter().map(String::as_str).collect();
    let twice: Vec<&str> = once
        .iter()
        .copied()
        .filter(|path| named.iter().filter(|other| other == path).count() > 1)
        .collect();
    assert!(twice.is_empty(), "the tree names more than once: {twice:#?}");

    let house = House::read();
    let roots = ["src/main.rs".to_owned(), "src/lib.rs".to_owned()];
    let unnamed: Vec<String> = house
        .code()
        .map(|file| format!("src/{}", file.name))
        .chain(roots)
        .filter(|path| !once.contains(path.as_str()))
        .collect();
    assert!(unnamed.is_empty(), "the tree does not name: {unnamed:#?}");
}

/// The files and folders in the tree of the document, from the root. A line is indented by two
/// spaces for each folder, and its names end at the first gap of two spaces or more.
fn paths_of_tree(document: &str) -> Vec<String> {
    let (_, tree) = document.split_once("```text\nsrc/\n").expect("there is a tree");
    let (tree, _) = tree.split_once("```").expect("the tree ends");
    let mut folders = vec!["src/".to_owned()];
    let mut found = folders.clone();
    for line in tree.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        folders.truncate(depth);
        let above = folders.concat();
        let names = line.trim_start().split("  ").next().unwrap_or_default();
        for name in names.split(' ').filter(|name| name.contains(['.', '/'])) {
            found.push(format!("{above}{name}"));
            if name.ends_with('/') {
                folders.push(name.to_owned());
            }
        }
    }
    found
}

/// A token is expired, not `401`: only HTTP modules use status codes. `reason` lists the status of
/// each reason.
#[test]
fn status_codes_appear_only_in_http_modules() {
    let house = House::read();
    for file in house.code().filter(|file| {
        !["gateway", "server", "admin", "identity", "reason"].contains(&file.module[0].as_str())
    }) {
        assert!(
            !file.code.contains("StatusCode"),
            "{}: a status code below or above the layers that speak HTTP",
            file.name
        );
    }
}

#[test]
fn every_file_has_a_module_comment() {
    let house = House::read();
    for file in house.files.iter().filter(|file| file.module.is_empty()).chain(house.code()) {
        let said = file
            .text
            .lines()
            .next()
            .is_some_and(|line| line.strip_prefix("//! ").is_some_and(|text| text.len() > 10));
        assert!(said, "{} does not begin with a `//!` that says what it is for", file.name);
    }
}

#[test]
fn no_file_is_too_long() {
    let house = House::read();
    let lines = |file: &File| file.code.lines().filter(|line| !line.trim().is_empty()).count();
    let long: Vec<(&str, usize)> = house
        .code()
        .map(|file| (file.name.as_str(), lines(file)))
        .filter(|(_, lines)| *lines > LONGEST)
        .collect();
    assert!(long.is_empty(), "at most {LONGEST} lines of code: {long:?}");
}

#[test]
fn forbidden_text_is_absent() {
    for file in House::read().code() {
        for (what, instead) in [
            (".unwrap()", "`expect(\"why it holds\")`, or an error"),
            ("env::var(", "secrets are references in the file"),
            ("env::vars(", "secrets are references in the file"),
            ("todo!(", "finish it"),
            ("unimplemented!(", "finish it"),
            ("dbg!(", "an event"),
            ("#[allow(", "`#[expect(…, reason = \"…\")]`"),
        ] {
            if let Some((before, _)) = file.code.split_once(what) {
                panic!(
                    "{}:{}: `{what}`; write instead: {instead}",
                    file.name,
                    before.lines().count().max(1)
                );
            }
        }
    }
}

/// A column that a newer version adds beside a running gateway would change what such a statement
/// returns.
#[test]
fn statements_name_their_columns() {
    let entries = fs::read_dir("src/store").unwrap().map(|entry| entry.unwrap().path());
    for path in entries.filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let all = line.contains("SELECT *") || line.contains(".*,") || line.contains(".* FROM");
            assert!(is_comment || !all, "{}:{}: name the columns", path.display(), number + 1);
        }
    }
}

#[test]
fn the_source_parser_works() {
    let text = "//! About `crate::one`.\nuse crate::{two::{self, Three}, four as Four};\nuse super::five::*;\n// crate::six\n\
                const TEXT: &str = \"crate::seven \\\" crate::eight\"; const RAW: &str = r#\"crate::nine \" \"#; const C: char = '\"';\n\
                fn f<'a>(x: &'a str) -> crate::ten::Eleven { /* crate::twelve */ crate::thirteen::<u8>(x) }\n\
                #[cfg(test)]\nmod tests { use crate::fourteen; fn g() { x.unwrap(); } }\nuse crate::fifteen;\n#[cfg(test)]\nmod samples;\n";
    let file = File::new("gateway/mod.rs".to_owned(), text.to_owned());
    let found: Vec<String> = file.paths().iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        ["two", "two::Three", "four", "five::*", "ten::Eleven", "thirteen", "fifteen"]
    );
    assert!(!file.code.contains(".unwrap()") && file.code.contains("fn f"));
    assert_eq!(file.test_modules, ["samples"]);
}

/// Steps of the decision that only one place may call, except tests.
const SOLE_CALLERS: [(&str, &[&str], &str); 7] = [
    ("as_if_verified(", &["token/issuers/mod.rs", "gateway/authenticate.rs"], "an assumed token"),
    (
        "found_personal(",
        &["token/issuers/mod.rs", "gateway/authenticate.rs"],
        "claims that were not signed",
    ),
    (
        "found_certificate(",
        &["token/issuers/mod.rs", "gateway/certificate.rs"],
        "claims that were not signed",
    ),
    (
        "ClientCertificate::verified(",
        &["server/connection.rs"],
        "a certificate that no handshake has verified",
    ),
    ("Verifier::offline(", &["explain/mod.rs"], "a verifier that believes an assumed token"),
    (".dispatch(", &["gateway/send.rs"], "a request that was not made from a permit"),
    (".into_request(", &["gateway/send.rs"], "a request for the wire"),
];

#[test]
fn steps_of_the_decision_have_one_caller() {
    let house = House::read();
    for (call, callers, what) in SOLE_CALLERS {
        let found: Vec<&str> = house
            .code()
            .filter(|file| file.code.contains(call))
            .map(|file| file.name.as_str())
            .collect();
        let strangers: Vec<_> = found.iter().filter(|name| !callers.contains(name)).collect();
        assert!(strangers.is_empty(), "{what}: `{call}` in {strangers:?}");
        assert!(!found.is_empty(), "nothing calls `{call}`: the check looks for an old name");
    }
}

/// The source.
struct House {
    files: Vec<File>,
}

/// A source file.
struct File {
    /// Its path below `src`.
    name: String,
    /// Its path as a module, without `crate`.
    module: Vec<String>,
    text: String,
    /// The code without comments, contents of strings, and tests.
    code: String,
    /// Modules that it declares only for tests.
    test_modules: Vec<String>,
}

/// Read once, for all tests.
static HOUSE: LazyLock<House> = LazyLock::new(House::from_source);

impl House {
    fn read() -> &'static Self {
        &HOUSE
    }

    fn from_source() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("src can be read") {
                let path: PathBuf = entry.expect("src can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let name =
                        path.strip_prefix(&root).expect("it is below src").display().to_string();
                    files.push(File::new(name, fs::read_to_string(&path).expect("it can be read")));
                }
            }
        }
        files.sort_by(|one, another| one.name.cmp(&another.name));
        assert!(files.len() > 40, "the source was not found");
        Self { files }
    }

    /// Every file of a module, except tests.
    fn code(&self) -> impl Iterator<Item = &File> {
        let tests: BTreeSet<Vec<String>> = self
            .files
            .iter()
            .flat_map(|file| {
                file.test_modules
                    .iter()
                    .map(|name| file.module.iter().cloned().chain([name.clone()]).collect())
            })
            .collect();
        self.files
            .iter()
            .filter(move |file| !file.module.is_empty() && !tests.contains(&file.module))
    }

    /// The table in `lib.rs`: module and layer. It must name every module, and no other.
    fn layers(&self) -> BTreeMap<String, u32> {
        let lib =
            &self.files.iter().find(|file| file.name == "lib.rs").expect("there is a lib.rs").text;
        let mut layers = BTreeMap::new();
        for row in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
            let mut cells = row.split('|').map(str::trim);
            let Some(layer) = cells.next().and_then(|cell| cell.parse().ok()) else { continue };
            for module in cells.next().unwrap_or_default().split(',') {
                layers.insert(module.trim().trim_matches(['[', ']', '`']).to_owned(), layer);
            }
        }
        let declared: BTreeSet<&str> = lib
            .lines()
            .filter_map(|line| {
                line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.strip_suffix(';')
            })
            .collect();
        assert_eq!(
            layers.keys().map(String::as_str).collect::<BTreeSet<_>>(),
            declared,
            "the table in lib.rs names every module"
        );
        layers
    }

    /// The file of the gateway that defines an item of its `mod.rs`.
    fn reexported(&self, item: &str) -> &'static str {
        let door = self
            .files
            .iter()
            .find(|file| file.name == "gateway/mod.rs")
            .expect("there is a gateway");
        let found = WALK.iter().find(|file| {
            [format!("pub use self::{file}::{item};"), format!("pub use {file}::{item};")]
                .iter()
                .any(|line| door.code.contains(line))
        });
        found.copied().unwrap_or("mod")
    }
}

impl File {
    fn new(name: String, text: String) -> Self {
        let mut module: Vec<String> =
            name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| last == "mod")
            || ["lib", "main"].contains(&module[0].as_str())
        {
            module.pop();
        }
        let (code, test_modules) = code_of(&text);
        Self { name, module, text, code, test_modules }
    }

    /// Every path into the crate, from its root.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let bytes = self.code.as_bytes();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        for (start, keyword) in
            ["crate::", "super::", "self::"].iter().flat_map(|word| self.code.match_indices(word))
        {
            // Neither the middle of a path nor part of another word.
            if start > 0
                && (is_word(bytes[start - 1])
                    || bytes[start - 1] == b':'
                    || bytes[start - 1] == b'$')
            {
                continue;
            }
            let mut base = match keyword {
                "crate::" => Vec::new(),
                "super::" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
                _ => self.module.clone(),
            };
            let mut at = start + keyword.len();
            while self.code[at..].starts_with("super::") {
                base.pop();
                at += "super::".len();
            }
            tree(&self.code[at..], &base, &mut found, start);
        }
        found.sort_by_key(|(start, _)| *start);
        found.into_iter().map(|(_, path)| path).filter(|path| !path.is_empty()).collect()
    }
}

/// Parses a path or a tree of paths, and returns the rest.
fn tree<'a>(
    text: &'a str,
    base: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
    start: usize,
) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        while !rest.trim_start().starts_with('}') && !rest.is_empty() {
            rest = tree(rest, base, found, start).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        return rest.trim_start().strip_prefix('}').unwrap_or_default();
    }
    let end = text
        .find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '*')
        .unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let mut path = base.to_vec();
    if word != "self" && !word.is_empty() {
        path.push(word.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(below)
            if below
                .starts_with(|letter: char| letter.is_alphabetic() || "_{*".contains(letter)) =>
        {
            tree(below, &path, found, start)
        }
        _ => {
            found.push((start, path));
            match rest.trim_start().strip_prefix("as ") {
                Some(renamed) => {
                    &renamed[renamed.find([',', '}', ';', '\n']).unwrap_or(renamed.len())..]
                }
                // An empty word would cause an endless loop.
                None if word.is_empty() => rest.get(1..).unwrap_or_default(),
                None => rest,
            }
        }
    }
}

/// The code of a file, in which comments, strings, characters and items under `#[cfg(test)]` are
/// replaced with spaces, and the modules that it declares under `#[cfg(test)]`.
fn code_of(text: &str) -> (String, Vec<String>) {
    let tokens: TokenStream = text.parse().expect("the source is Rust");
    let blank = text.bytes().map(|byte| if byte == b'\n' { b'\n' } else { b' ' }).collect();
    let mut kept = Kept { text: text.as_bytes(), code: blank, test_modules: Vec::new() };
    kept.tokens(tokens);
    (String::from_utf8(kept.code).expect("whole tokens were kept"), kept.test_modules)
}

/// The output so far.
struct Kept<'t> {
    text: &'t [u8],
    code: Vec<u8>,
    test_modules: Vec<String>,
}

impl Kept<'_> {
    fn tokens(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            if !matches!(&token, TokenTree::Punct(sign) if sign.as_char() == '#') {
                self.token(token);
                continue;
            }
            let inner = tokens
                .next_if(|next| matches!(next, TokenTree::Punct(sign) if sign.as_char() == '!'));
            let Some(TokenTree::Group(attribute)) =
                tokens.next_if(|next| matches!(next, TokenTree::Group(_)))
            else {
                for token in [token].into_iter().chain(inner) {
                    self.token(token);
                }
                continue;
            };
            let said = attribute.stream().to_string().replace(' ', "");
            if said == "cfg(test)" {
                self.skip_item(&mut tokens);
            } else if !said.starts_with("doc=") {
                // Comments for readers are attributes to the compiler.
                for token in [token].into_iter().chain(inner).chain([attribute.into()]) {
                    self.token(token);
                }
            }
        }
    }

    fn token(&mut self, token: TokenTree) {
        match token {
            TokenTree::Group(group) => {
                self.keep(group.span_open());
                self.tokens(group.stream());
                self.keep(group.span_close());
            }
            TokenTree::Literal(literal) if literal.to_string().contains(['"', '\'']) => {}
            other => self.keep(other.span()),
        }
    }

    fn keep(&mut self, span: Span) {
        let range = span.byte_range();
        self.code[range.clone()].copy_from_slice(&self.text[range]);
    }

    /// An item ends with its braces or, without braces, with a semicolon.
    fn skip_item(&mut self, tokens: &mut impl Iterator<Item = TokenTree>) {
        let mut is_module = false;
        for token in tokens {
            match token {
                TokenTree::Ident(word) if word == "mod" => is_module = true,
                TokenTree::Ident(name) if is_module => self.test_modules.push(name.to_string()),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    if is_module {
                        // Its body is here and is skipped with it.
                        self.test_modules.pop();
                    }
                    return;
                }
                TokenTree::Punct(sign) if sign.as_char() == ';' => return,
                _ => {}
            }
        }
    }
}

/// Two schema steps with one number would leave each database with one of them.
#[test]
fn each_step_of_the_schema_has_its_own_number() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/migrations");
    let mut steps = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the steps") {
        let name = entry.expect("a step").file_name().into_string().expect("UTF-8");
        let number = name.split('_').next().unwrap_or_default().to_owned();
        if let Some(other) = steps.insert(number, name.clone()) {
            panic!("{other} and {name} have the same number");
        }
    }
}
