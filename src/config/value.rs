//! Values that stand in several sections: one or many, claim names, secret references, durations,
//! sizes, networks.
//!
//! The types are what serde fills in; the functions judge text when the file is compiled, so that a
//! rejected value is a [`Problem`] with its place and its remedy, beside all the others.

use std::cmp::Ordering;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::Spanned;
use zeroize::Zeroizing;

use super::file::Text;
use super::problem::Problem;

/// One text, or a list of them. Each keeps its own place, also when it stands alone.
#[derive(Debug, Clone)]
pub struct OneOrMany(pub Vec<Text>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<StringOrList<Text>>::deserialize(deserializer)?;
        let span = written.span();
        Ok(match written.into_inner() {
            StringOrList::String(text) => Self(vec![Spanned::new(span, text)]),
            StringOrList::List(texts) => Self(texts),
        })
    }
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "One text, or a list of them.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        })
    }
}

/// Where a claim stands in a token: `"a.b.c"` is a path that is split at its dots,
/// `["https://x.y/z"]` names each segment exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimName(StringOrList<String>);

impl ClaimName {
    /// The names to follow, from the outermost. May hold empty names: `"a..b"`.
    pub fn segments(&self) -> Vec<String> {
        match &self.0 {
            StringOrList::String(path) => path.split('.').map(str::to_owned).collect(),
            StringOrList::List(names) => names.clone(),
        }
    }

    /// The text, when it was written as one: `"https://x.y/roles"` is split at its dot, which is
    /// hardly what was meant.
    pub fn dotted(&self) -> Option<&str> {
        match &self.0 {
            StringOrList::String(path) => Some(path),
            StringOrList::List(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for ClaimName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StringOrList::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for ClaimName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ClaimName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "\"realm_access.roles\" is a path, split at its dots; [\"https://example.com/roles\"] names each segment exactly.",
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
        })
    }
}

/// A value that a claim is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// A string: equal byte for byte.
    Text(String),
    /// An integer: equal by value, so `1` is `1.0`.
    Integer(i64),
    /// A float: equal by value.
    Float(f64),
    /// `true` or `false`.
    Boolean(bool),
}

impl Scalar {
    /// Whether a claim has this value. A list never has: its items are compared one by one, by the
    /// caller.
    pub fn matches(&self, claim: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (self, claim) {
            (Self::Text(text), Value::String(claim)) => text == claim,
            (Self::Boolean(boolean), Value::Bool(claim)) => boolean == claim,
            (Self::Integer(integer), Value::Number(claim)) => match claim.as_i64() {
                Some(claim) => *integer == claim,
                None => {
                    claim.is_f64()
                        && claim.as_f64().is_some_and(|claim| whole(claim) == Some(*integer))
                }
            },
            (Self::Float(float), Value::Number(claim)) => match claim.as_i64() {
                Some(claim) => whole(*float) == Some(claim),
                // Exactly: what is written is what is asked for.
                None => claim
                    .as_f64()
                    .is_some_and(|claim| claim.partial_cmp(float) == Some(Ordering::Equal)),
            },
            _ => false,
        }
    }
}

/// The integer that a float is exactly, if it is one that fits.
fn whole(float: f64) -> Option<i64> {
    // 2^63 is the first float past `i64::MAX`, which itself is no float.
    let fits = float.fract() == 0.0
        && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&float);
    fits.then_some(float as i64)
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a number, true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_i64<E>(self, integer: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(integer))
            }

            fn visit_f64<E>(self, float: f64) -> Result<Scalar, E> {
                Ok(Scalar::Float(float))
            }

            fn visit_bool<E>(self, boolean: bool) -> Result<Scalar, E> {
                Ok(Scalar::Boolean(boolean))
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl JsonSchema for Scalar {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A value that a claim is compared with.",
            "anyOf": [{ "type": "string" }, { "type": "integer" }, { "type": "number" }, { "type": "boolean" }],
        })
    }
}

/// Any value at all: of a key that is known, and refused by compiling because it is not supported
/// yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IgnoredAny).map(|_| Self)
    }
}

impl JsonSchema for Unsupported {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unsupported".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "Not supported yet." })
    }
}

/// Where a secret is: `{ env = "NAME" }`, `{ file = "path" }`, or, for trying things out, the
/// secret itself.
#[derive(Debug, Clone)]
pub struct SecretRef {
    span: Range<usize>,
    form: SecretForm,
}

#[derive(Clone)]
enum SecretForm {
    Inline(Zeroizing<String>),
    Table { env: Option<Text>, file: Option<Text>, create: Option<Spanned<bool>> },
}

impl SecretRef {
    /// Whether the secret stands in the configuration file itself.
    pub fn is_inline(&self) -> bool {
        matches!(self.form, SecretForm::Inline(_))
    }

    /// A file of this name, made with a random secret where there is none.
    pub fn created_file(name: &str) -> Self {
        let file = Some(Spanned::new(0..0, name.to_owned()));
        Self { span: 0..0, form: SecretForm::Table { env: None, file, create: None } }.created()
    }

    /// The same, but a file that is not there is made.
    #[must_use]
    pub fn created(&self) -> Self {
        let mut created = self.clone();
        if let SecretForm::Table { file: Some(_), create, .. } = &mut created.form {
            create.get_or_insert(Spanned::new(0..0, true));
        }
        created
    }

    /// The file that it is read from, when it is one: what `watch` looks at.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match &self.form {
            SecretForm::Table { file: Some(file), .. } => Some(folder.join(file.get_ref())),
            _ => None,
        }
    }

    /// Where it is written, as a byte range of the file.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Reads the secret, without the one newline that editors and `echo` leave at its end. Paths
    /// start at `folder`, that of the configuration file.
    pub fn read(&self, folder: &Path, create: CreateFiles) -> Result<ReadSecret, Problem> {
        match &self.form {
            SecretForm::Inline(text) if text.is_empty() => {
                Err(Problem::error(self.span(), "the secret is empty")
                    .help("write `{ env = \"NAME\" }` or `{ file = \"path\" }`"))
            }
            SecretForm::Inline(text) => {
                Ok(ReadSecret { bytes: SecretBytes::new(text.as_bytes().to_vec()), warning: None })
            }
            SecretForm::Table { env: Some(env), file: Some(file), .. } => Err(Problem::error(
                file.span(),
                "a secret is read from one place, and this names two",
            )
            .related(env.span(), "the other")
            .help("keep `env` or `file`")),
            SecretForm::Table { env: Some(_), file: None, create: Some(create) } => {
                Err(Problem::error(create.span(), "only a file can be created")
                    .help("remove `create`, or name a `file` instead of `env`"))
            }
            SecretForm::Table { env: Some(env), file: None, create: None } => {
                Ok(ReadSecret { bytes: from_environment(env)?, warning: None })
            }
            SecretForm::Table { env: None, file: Some(file), create: wanted } => from_file(
                file,
                folder,
                wanted.as_ref().is_some_and(|wanted| *wanted.get_ref()),
                create,
            ),
            SecretForm::Table { env: None, file: None, .. } => {
                Err(Problem::error(self.span(), "this does not say where the secret is")
                    .help("write `{ env = \"NAME\" }` or `{ file = \"path\" }`"))
            }
        }
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<SecretForm>::deserialize(deserializer)?;
        Ok(Self { span: written.span(), form: written.into_inner() })
    }
}

impl<'de> Deserialize<'de> for SecretForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FormVisitor;

        impl<'de> Visitor<'de> for FormVisitor {
            type Value = SecretForm;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`{ env = \"NAME\" }` or `{ file = \"path\" }`")
            }

            fn visit_str<E>(self, text: &str) -> Result<SecretForm, E> {
                Ok(SecretForm::Inline(Zeroizing::new(text.to_owned())))
            }

            // Taken, not copied: a copy would stay behind in memory.
            fn visit_string<E>(self, text: String) -> Result<SecretForm, E> {
                Ok(SecretForm::Inline(Zeroizing::new(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretForm, A::Error> {
                let (mut env, mut file, mut create) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "env" => env = Some(map.next_value()?),
                        "file" => file = Some(map.next_value()?),
                        "create" => create = Some(map.next_value()?),
                        unknown => {
                            return Err(serde::de::Error::unknown_field(
                                unknown,
                                &["env", "file", "create"],
                            ));
                        }
                    }
                }
                Ok(SecretForm::Table { env, file, create })
            }
        }

        deserializer.deserialize_any(FormVisitor)
    }
}

impl fmt::Debug for SecretForm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "{ env = \"NAME\" }, { file = \"path\" }, or the secret itself where `insecure_inline_secret` allows it.",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": {
                        "env": { "type": "string", "description": "The environment variable that holds it. For example `\"JWT_SECRET\"`." },
                        "file": { "type": "string", "description": "The file that holds it. For example `\"jwt.secret\"`." },
                        "create": { "type": "boolean", "description": "Make the file, with a random secret, where there is none. Default false." },
                    },
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// A secret that was read. The memory is cleared when it is dropped, and `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// What reading a secret gave.
#[derive(Debug)]
pub struct ReadSecret {
    /// The secret, never empty.
    pub bytes: SecretBytes,
    /// A warning: others may read the file.
    pub warning: Option<Problem>,
}

/// Whether a file with `create = true` may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateFiles {
    /// At start and on reload.
    Yes,
    /// The same, and a database although its key is there already: `--new-store`.
    NewStore,
    /// By `check`: a missing file is a random secret that is forgotten again.
    No,
}

/// Reads a duration: `"30s"`, `"1m 30s"`, `"24h"`.
pub fn duration(text: &Text, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let written = text.get_ref().trim();
    let Ok(duration) = humantime::parse_duration(written) else {
        let problem = Problem::error(text.span(), format!("{} is not a duration", quoted(written)));
        return Err(match written.parse::<u64>() {
            Ok(_) => problem.help(format!(
                "add a unit: `\"{written}s\"`, `\"{written}ms\"`, `\"{written}m\"` (minutes)"
            )),
            Err(_) => problem
                .help("write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`"),
        });
    };
    let limit = |word: &str, limit: Duration| {
        Problem::error(text.span(), format!("{} is too {word}", quoted(written)))
            .help(format!("from `\"{}\"` to `\"{}\"`", plain(*range.start()), plain(*range.end())))
            .label(format!("the limit is {}", plain(limit)))
    };
    if duration < *range.start() {
        return Err(limit("short", *range.start()));
    }
    if duration > *range.end() {
        return Err(limit("long", *range.end()));
    }
    Ok(duration)
}

/// A duration as it would be written by hand: in the largest unit that it is whole in, and one day
/// as hours.
fn plain(duration: Duration) -> String {
    let millis = duration.as_millis();
    let is_whole = |unit: u128| millis > 0 && millis.is_multiple_of(unit);
    match millis {
        _ if is_whole(86_400_000) && millis > 86_400_000 => format!("{}d", millis / 86_400_000),
        _ if is_whole(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if is_whole(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

/// Reads a size in bytes: `"32KiB"`, `"1MB"`, `"1024"`.
pub fn size(text: &Text) -> Result<u64, Problem> {
    let written = text.get_ref().trim();
    let help =
        "write a whole number and a unit: `\"512\"` (bytes), `\"32KiB\"`, `\"10MiB\"`, `\"1GB\"`";
    let problem = || Problem::error(text.span(), format!("{} is not a size", quoted(written)));
    let digits = written.len() - written.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = written.split_at(digits);
    let unit = unit.trim_start();
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        letter @ ("k" | "m" | "g" | "t") if !number.is_empty() => {
            let letter = letter.to_ascii_uppercase();
            return Err(
                problem().help(format!("write `\"{number}{letter}iB\"` (powers of 1024) or `\"{number}{letter}B\"` (powers of 1000)"))
            );
        }
        _ => return Err(problem().help(help)),
    };
    if number.is_empty() {
        return Err(problem().help(help));
    }
    // Only digits are left, so that all that can fail is the range.
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(|| {
        Problem::error(
            text.span(),
            format!("{} is more bytes than can be counted", quoted(written)),
        )
        .help(help)
    })
}

/// Reads a CIDR block; an address alone is the block of that one.
pub fn network(text: &Text) -> Result<IpNet, Problem> {
    let written = text.get_ref().trim();
    if let Ok(address) = written.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let problem = Problem::error(text.span(), format!("{} is not a network", quoted(written)));
    let Ok(network) = written.parse::<IpNet>() else {
        return Err(match written.split_once('/') {
            Some((address, _)) if address.parse::<Ipv4Addr>().is_ok() => {
                problem.help("an IPv4 prefix is a number from 0 to 32, as in `\"10.0.0.0/8\"`")
            }
            Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => {
                problem.help("an IPv6 prefix is a number from 0 to 128, as in `\"fd00::/8\"`")
            }
            _ => problem.help("write an address or a block: `\"192.0.2.7\"`, `\"10.0.0.0/8\"`, `\"fd00::/8\"`; names are not looked up"),
        });
    };
    if network.trunc() != network {
        return Err(Problem::error(
            text.span(),
            format!("{} has address bits behind its prefix", quoted(written)),
        )
        .help(format!(
            "write `\"{}\"` for the block, or `\"{}\"` for the address",
            network.trunc(),
            network.addr()
        )));
    }
    Ok(network)
}

/// Reads an address to listen on. `":8080"` is every address, IPv4 too: it reads as `[::]:8080`.
pub fn listen(text: &Text) -> Result<Vec<SocketAddr>, Problem> {
    let written = text.get_ref().trim();
    if let Ok(address) = written.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let problem =
        Problem::error(text.span(), format!("{} is not an address to listen on", quoted(written)));
    if let Some((_, rest)) = written.split_once("://") {
        let rest = rest.trim_end_matches('/');
        return Err(problem.help(format!("leave the scheme out: {}", quoted(rest))));
    }
    if let Ok(address) = written.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Err(problem.help(format!("add a port: `\"{}\"`", SocketAddr::new(address, 8080))));
    }
    if written.parse::<u16>().is_ok() {
        return Err(problem.help(format!("write `\":{written}\"` for every address, or `\"127.0.0.1:{written}\"` for this machine only")));
    }
    let Some((host, port)) = written.rsplit_once(':') else {
        return Err(problem.help(
            "write an address and a port: `\"127.0.0.1:8080\"`, or `\":8080\"` for every address",
        ));
    };
    let all_digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let Some(port) = port.parse::<u16>().ok().filter(|_| all_digits) else {
        return Err(problem.help("a port is a number from 0 to 65535; 0 lets the system choose"));
    };
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        return Err(
            problem.help(format!("write an IPv6 address in brackets: `\"[{address}]:{port}\"`"))
        );
    }
    match host {
        "" => Ok(vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)]),
        "localhost" => Ok(vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)]),
        "*" => Err(problem.help(format!("write `\":{port}\"` for every address"))),
        _ => Err(problem.help(format!("names are not looked up: write an address of this machine, or `\":{port}\"` for every address"))),
    }
}

/// Reads one of a few words.
pub fn choice<T: Copy>(text: &Text, words: &[(&str, T)]) -> Result<T, Problem> {
    let written = text.get_ref().as_str();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == written) {
        return Ok(*meaning);
    }
    let list = list(words.iter().map(|(word, _)| format!("`\"{word}\"`")), "or");
    let problem =
        Problem::error(text.span(), format!("{} is not one of the choices", quoted(written)));
    Err(match nearest(written, words.iter().map(|(word, _)| *word)) {
        Some(word) => problem.help(format!("did you mean `\"{word}\"`? The choices are {list}")),
        None => problem.help(format!("write {list}")),
    })
}

/// The candidate that was probably meant: the same but for case and separators, or few typing
/// errors away.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes longer words than these, and the comparison is quadratic.
    if word.len() > 64 {
        return None;
    }
    let folded = fold(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let against = fold(candidate);
        if against == folded {
            return Some(candidate);
        }
        let allowed = (folded.len().max(against.len()) / 3).max(1);
        if folded.len() < 2 || folded.len().abs_diff(against.len()) > allowed {
            continue;
        }
        let distance = distance(&folded, &against);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Letters in lower case, without what separates words.
fn fold(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' ' | '.'))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from one word to the
/// other.
pub(super) fn distance(from: &[char], to: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for i in 0..from.len() {
        let mut row = vec![i + 1];
        for j in 0..to.len() {
            let changed = above[j] + usize::from(from[i] != to[j]);
            let mut least = changed.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i] == to[j - 1] && from[i - 1] == to[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[to.len()]
}

/// `a, b or c`
pub(super) fn list(items: impl IntoIterator<Item = String>, last: &str) -> String {
    let mut items: Vec<String> = items.into_iter().collect();
    let Some(end) = items.pop() else { return String::new() };
    if items.is_empty() { end } else { format!("{} {last} {end}", items.join(", ")) }
}

/// What was written, for a message: in backticks, and no longer than a message may be.
pub(super) fn quoted(written: &str) -> String {
    const SHOWN: usize = 60;
    match written.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`\"{}…\"`", &written[..end]),
        None => format!("`\"{written}\"`"),
    }
}

/// A string or a list, told apart by what is there: serde's `untagged` would lose the places of the
/// items.
#[derive(Debug, Clone, PartialEq, Eq)]
enum StringOrList<T> {
    String(String),
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for StringOrList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringOrListVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for StringOrListVisitor<T> {
            type Value = StringOrList<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(StringOrList::String(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(StringOrList::List(items))
            }
        }

        deserializer.deserialize_any(StringOrListVisitor(std::marker::PhantomData))
    }
}

fn from_environment(name: &Text) -> Result<SecretBytes, Problem> {
    let written = name.get_ref();
    if written.is_empty() || written.contains(['=', '\0']) {
        return Err(Problem::error(
            name.span(),
            format!("{} is not the name of an environment variable", quoted(written)),
        )
        .help("write its name, without `$`: `{ env = \"JWT_SECRET\" }`"));
    }
    let Some(value) = std::env::var_os(written) else {
        let problem =
            Problem::error(name.span(), format!("the environment variable `{written}` is not set"));
        return Err(match written.strip_prefix('$') {
            Some(bare) => {
                problem.help(format!("write its name without `$`: `{{ env = \"{bare}\" }}`"))
            }
            None => {
                problem.help("set it where the gateway is started, or write `{ file = \"path\" }`")
            }
        });
    };
    without_newline(value.into_vec()).ok_or_else(|| {
        Problem::error(name.span(), format!("the environment variable `{written}` is empty"))
            .help("set it to the secret")
    })
}

/// The longest secret file that is read, in bytes: a key pair is a hundredth of it.
const LONGEST: u64 = 1 << 20;

fn from_file(
    file: &Text,
    folder: &Path,
    create: bool,
    may_create: CreateFiles,
) -> Result<ReadSecret, Problem> {
    let path = folder.join(file.get_ref());
    let shown = path.display();
    let failed = |error: &io::Error| {
        Problem::error(file.span(), format!("`{shown}` cannot be read: {error}"))
    };
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
            if may_create == CreateFiles::No {
                return Ok(ReadSecret { bytes: random_secret(file)?, warning: None });
            }
            create_secret(&path, file)?;
            fs::metadata(&path).map_err(|error| failed(&error))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Problem::error(file.span(), format!("there is no file `{shown}`")).help(
                "make it, or correct the path: it starts at the folder of the configuration file",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(failed(&error).help(
                "give the user that runs the gateway access to it, and to the folders above it",
            ));
        }
        Err(error) => return Err(failed(&error)),
    };
    if metadata.is_dir() {
        return Err(Problem::error(file.span(), format!("`{shown}` is a directory"))
            .help("name the file in it that holds the secret"));
    }
    if !metadata.is_file() {
        return Err(Problem::error(file.span(), format!("`{shown}` is not a regular file"))
            .help("name a file that holds the secret"));
    }
    let too_long = || {
        Problem::error(file.span(), format!("`{shown}` is longer than a secret can be (1 MiB)"))
            .help("name the file that holds the secret")
    };
    if metadata.len() > LONGEST {
        return Err(too_long());
    }
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 64));
    fs::File::open(&path)
        .and_then(|opened| opened.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(&error)
                .help("let the user that runs the gateway read it: `chown`, then `chmod 600`"),
            _ => failed(&error),
        })?;
    if bytes.len() as u64 > LONGEST {
        return Err(too_long());
    }
    let Some(bytes) = without_newline(std::mem::take(&mut *bytes)) else {
        return Err(Problem::error(file.span(), format!("`{shown}` is empty"))
            .help("write the secret into it"));
    };
    let mode = metadata.permissions().mode();
    let warning = (mode & 0o077 != 0).then(|| {
        Problem::warning(
            file.span(),
            format!("other users may access `{shown}` (mode {:03o})", mode & 0o777),
        )
        .help(format!("`chmod 600 {shown}`"))
    });
    Ok(ReadSecret { bytes, warning })
}

/// The secret without one newline at its end; none when nothing is left.
fn without_newline(bytes: Vec<u8>) -> Option<SecretBytes> {
    let mut bytes = Zeroizing::new(bytes);
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    (!bytes.is_empty()).then_some(SecretBytes(bytes))
}

fn random_secret(file: &Text) -> Result<SecretBytes, Problem> {
    let mut random = Zeroizing::new([0u8; 48]);
    aws_lc_rs::rand::fill(random.as_mut()).map_err(|_| {
        Problem::error(file.span(), "the system gave no random numbers for a new secret")
    })?;
    Ok(SecretBytes::new(BASE64_URL_SAFE_NO_PAD.encode(random.as_ref()).into_bytes()))
}

/// Makes the file under another name first, then links it to its own: whoever starts at the same
/// time finds a whole file or none, and the first link wins.
fn create_secret(path: &Path, file: &Text) -> Result<(), Problem> {
    let failed = |error: &io::Error| {
        Problem::error(file.span(), format!("`{}` cannot be created: {error}", path.display()))
            .help("make the folder, let the user that runs the gateway write to it, or make the file yourself")
    };
    let secret = random_secret(file)?;
    let suffix = random_secret(file)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(String::from_utf8_lossy(&suffix.expose()[..16]).as_ref());
    let draft = path.with_file_name(name);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).and_then(
            |mut opened| {
                opened.write_all(secret.expose())?;
                opened.write_all(b"\n")?;
                opened.sync_all()
            },
        );
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    // The draft has done its work, or is of no use: a failure to remove it hurts neither.
    let _ = fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(&error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(written: &str) -> Text {
        Spanned::new(0..written.len(), written.to_owned())
    }

    fn told<T>(result: Result<T, Problem>) -> String {
        let problem = result.err().expect("it is refused");
        format!("{}; {}", problem.message, problem.help.unwrap_or_default())
    }

    #[test]
    fn durations() {
        let range = Duration::from_secs(1)..=Duration::from_mins(5);
        for (written, seconds) in [("30s", 30), ("1m 30s", 90), (" 5m ", 300), ("1000ms", 1)] {
            assert_eq!(
                duration(&text(written), range.clone()).ok(),
                Some(Duration::from_secs(seconds)),
                "{written}"
            );
        }
        for (written, wanted) in [
            (
                "30",
                "`\"30\"` is not a duration; add a unit: `\"30s\"`, `\"30ms\"`, `\"30m\"` (minutes)",
            ),
            (
                "soon",
                "`\"soon\"` is not a duration; write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`",
            ),
            (
                "",
                "`\"\"` is not a duration; write a number and a unit: `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`",
            ),
            ("6m", "`\"6m\"` is too long; from `\"1s\"` to `\"5m\"`"),
            ("0s", "`\"0s\"` is too short; from `\"1s\"` to `\"5m\"`"),
        ] {
            assert_eq!(told(duration(&text(written), range.clone())), wanted, "{written}");
        }
    }

    #[test]
    fn a_bound_is_told_as_it_would_be_written() {
        let day = Duration::from_hours(24);
        let told_of = |written: &str, range| told(duration(&text(written), range));
        assert_eq!(
            told_of("4000d", Duration::from_hours(1)..=day * 3650),
            "`\"4000d\"` is too long; from `\"1h\"` to `\"3650d\"`"
        );
        assert_eq!(
            told_of("2d", Duration::ZERO..=day),
            "`\"2d\"` is too long; from `\"0s\"` to `\"24h\"`"
        );
        assert_eq!(
            told_of("2m", Duration::from_millis(1)..=Duration::from_secs(90)),
            "`\"2m\"` is too long; from `\"1ms\"` to `\"90s\"`"
        );
    }

    #[test]
    fn sizes() {
        for (written, bytes) in [
            ("1024", 1024),
            ("32KiB", 32768),
            ("1MB", 1_000_000),
            ("10 MiB", 10 << 20),
            ("7b", 7),
            ("1gib", 1 << 30),
            ("0", 0),
        ] {
            assert_eq!(size(&text(written)).ok(), Some(bytes), "{written}");
        }
        let help = "write a whole number and a unit: `\"512\"` (bytes), `\"32KiB\"`, `\"10MiB\"`, `\"1GB\"`";
        for (written, wanted) in [
            ("10M", "`\"10M\"` is not a size; write `\"10MiB\"` (powers of 1024) or `\"10MB\"` (powers of 1000)".to_owned()),
            ("1.5MiB", format!("`\"1.5MiB\"` is not a size; {help}")),
            ("-1", format!("`\"-1\"` is not a size; {help}")),
            ("", format!("`\"\"` is not a size; {help}")),
            ("KiB", format!("`\"KiB\"` is not a size; {help}")),
            ("99999999TiB", format!("`\"99999999TiB\"` is more bytes than can be counted; {help}")),
        ] {
            assert_eq!(told(size(&text(written))), wanted, "{written}");
        }
    }

    #[test]
    fn networks() {
        for (written, wanted) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::1", "::1/128"),
            ("fd00::/8", "fd00::/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(
                network(&text(written)).ok().map(|network| network.to_string()).as_deref(),
                Some(wanted),
                "{written}"
            );
        }
        for (written, wanted) in [
            (
                "10.1.2.3/8",
                "has address bits behind its prefix; write `\"10.0.0.0/8\"` for the block, or `\"10.1.2.3\"` for the address",
            ),
            (
                "10.0.0.0/33",
                "is not a network; an IPv4 prefix is a number from 0 to 32, as in `\"10.0.0.0/8\"`",
            ),
            (
                "::/129",
                "is not a network; an IPv6 prefix is a number from 0 to 128, as in `\"fd00::/8\"`",
            ),
            (
                "proxy.local",
                "is not a network; write an address or a block: `\"192.0.2.7\"`, `\"10.0.0.0/8\"`, `\"fd00::/8\"`; names are not looked up",
            ),
        ] {
            assert_eq!(
                told(network(&text(written))),
                format!("`\"{written}\"` {wanted}"),
                "{written}"
            );
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        for (written, wanted) in [
            (":8080", "[::]:8080"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:0", "[::1]:0"),
            ("localhost:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(
                listen(&text(written)).ok(),
                Some(vec![wanted.parse().expect("an address")]),
                "{written}"
            );
        }
        for (written, help) in [
            (
                "8080",
                "write `\":8080\"` for every address, or `\"127.0.0.1:8080\"` for this machine only",
            ),
            ("127.0.0.1", "add a port: `\"127.0.0.1:8080\"`"),
            ("::1", "add a port: `\"[::1]:8080\"`"),
            ("*:80", "write `\":80\"` for every address"),
            ("http://127.0.0.1:80/", "leave the scheme out: `\"127.0.0.1:80\"`"),
            ("127.0.0.1:99999", "a port is a number from 0 to 65535; 0 lets the system choose"),
            ("127.0.0.1:+80", "a port is a number from 0 to 65535; 0 lets the system choose"),
            (
                "app.example.com:80",
                "names are not looked up: write an address of this machine, or `\":80\"` for every address",
            ),
            (
                "",
                "write an address and a port: `\"127.0.0.1:8080\"`, or `\":8080\"` for every address",
            ),
        ] {
            assert_eq!(
                told(listen(&text(written))),
                format!("`\"{written}\"` is not an address to listen on; {help}"),
                "{written}"
            );
        }
    }

    #[test]
    fn choices() {
        let words = [("authenticated", 1), ("optional", 2), ("public", 3)];
        let list = "`\"authenticated\"`, `\"optional\"` or `\"public\"`";
        assert_eq!(choice(&text("public"), &words).ok(), Some(3));
        let wanted = format!(
            "`\"Public\"` is not one of the choices; did you mean `\"public\"`? The choices are {list}"
        );
        assert_eq!(told(choice(&text("Public"), &words)), wanted);
        assert_eq!(
            told(choice(&text("nobody"), &words)),
            format!("`\"nobody\"` is not one of the choices; write {list}")
        );
    }

    #[test]
    fn the_nearest_word() {
        let words = ["trusted_proxies", "listen", "workers", "path", "host", "h2c"];
        for (word, wanted) in [
            ("trusted-proxies", Some("trusted_proxies")),
            ("trustedProxies", Some("trusted_proxies")),
            ("trusted_proxy", Some("trusted_proxies")),
            ("lsiten", Some("listen")),
            ("worker", Some("workers")),
            ("paht", Some("path")),
            ("h2", Some("h2c")),
            ("x", None),
            ("", None),
            ("upstream", None),
        ] {
            assert_eq!(nearest(word, words), wanted, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), words), None);
    }

    #[test]
    fn scalars_compare_by_value() {
        let cases = [
            (Scalar::Text("a".into()), json!("a"), true),
            (Scalar::Text("1".into()), json!(1), false),
            (Scalar::Integer(1), json!(1), true),
            (Scalar::Integer(1), json!(1.0), true),
            (Scalar::Integer(1), json!(1.5), false),
            (Scalar::Integer(1), json!("1"), false),
            (Scalar::Integer(1), json!(true), false),
            (Scalar::Integer(i64::MAX), json!(9_223_372_036_854_775_808_u64), false),
            (Scalar::Integer(9_007_199_254_740_993), json!(9_007_199_254_740_992.0), false),
            (Scalar::Float(1.5), json!(1.5), true),
            (Scalar::Float(2.0), json!(2), true),
            (Scalar::Float(-0.0), json!(0.0), true),
            (Scalar::Boolean(true), json!(true), true),
            (Scalar::Boolean(true), json!("true"), false),
            (Scalar::Text("a".into()), json!(["a"]), false),
        ];
        for (scalar, claim, wanted) in cases {
            assert_eq!(scalar.matches(&claim), wanted, "{scalar:?} {claim}");
        }
    }

    #[derive(serde::Deserialize)]
    struct Holder {
        one: Spanned<OneOrMany>,
        secret: SecretRef,
        #[serde(rename = "any")]
        _any: Unsupported,
    }

    fn secret(written: &str) -> SecretRef {
        let holder: Holder =
            toml::from_str(&format!("one = \"x\"\nany = {{ a = 1 }}\nsecret = {written}"))
                .expect("it is TOML");
        holder.secret
    }

    #[test]
    fn one_text_has_its_place() {
        let holder: Holder =
            toml::from_str("one = \"x\"\nany = []\nsecret = \"y\"").expect("it is TOML");
        assert_eq!((holder.one.span(), holder.one.get_ref().0[0].span()), (6..9, 6..9));
        assert_eq!(holder.secret.span(), 28..31);
    }

    #[test]
    fn secrets_do_not_show() {
        let shown =
            format!("{:?} {:?}", secret("\"hunter2\""), SecretBytes::new(b"hunter2".to_vec()));
        assert!(shown.contains("[secret]") && !shown.contains("hunter2"), "{shown}");
        assert!(
            toml::from_str::<Holder>("one = \"x\"\nany = 1\nsecret = { emv = \"x\" }").is_err()
        );
    }

    #[test]
    fn secrets_are_read_from_where_they_are() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let write = |name: &str, content: &[u8], mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        };
        write("plain", b"hunter2", 0o600);
        write("newline", b"hunter2\n", 0o600);
        write("crlf", b"hunter2\r\n", 0o600);
        write("two", b"hunter2\n\n", 0o600);
        write("open", b"hunter2", 0o640);
        write("empty", b"\n", 0o600);
        write("long", &vec![b'x'; LONGEST as usize + 1], 0o600);
        fs::create_dir(folder.path().join("dir")).expect("made");
        let read = |written: &str| secret(written).read(folder.path(), CreateFiles::Yes);
        let bytes = |written: &str| {
            read(written).map(|secret| String::from_utf8_lossy(secret.bytes.expose()).into_owned())
        };
        assert_eq!(bytes("\"inline\"").as_deref(), Ok("inline"));
        for (name, wanted) in [
            ("plain", "hunter2"),
            ("newline", "hunter2"),
            ("crlf", "hunter2"),
            ("two", "hunter2\n"),
        ] {
            assert_eq!(bytes(&format!("{{ file = \"{name}\" }}")).as_deref(), Ok(wanted), "{name}");
        }
        let open = read("{ file = \"open\" }")
            .expect("it is readable")
            .warning
            .expect("others may read it");
        assert!(
            open.severity == super::super::Severity::Warning
                && open.message.ends_with("(mode 640)"),
            "{open:?}"
        );
        assert!(read("{ file = \"plain\" }").expect("it is readable").warning.is_none());
        // Cargo sets this one for every test.
        assert_eq!(bytes("{ env = \"CARGO_PKG_NAME\" }").as_deref(), Ok("portcullis"));
        for (written, wanted) in [
            ("{ file = \"none\" }", "there is no file"),
            ("{ file = \"empty\" }", "is empty"),
            ("{ file = \"long\" }", "is longer than a secret can be"),
            ("{ file = \"dir\" }", "is a directory"),
            ("{ file = \"/dev/null\" }", "is not a regular file"),
            (
                "{ env = \"PORTCULLIS_NOT_SET\" }",
                "the environment variable `PORTCULLIS_NOT_SET` is not set",
            ),
            (
                "{ env = \"$HOME_NOT_SET\" }",
                "write its name without `$`: `{ env = \"HOME_NOT_SET\" }`",
            ),
            ("{ env = \"A=B\" }", "is not the name of an environment variable"),
            ("{ env = \"A\", file = \"b\" }", "this names two"),
            ("{ env = \"A\", create = true }", "only a file can be created"),
            ("{}", "this does not say where the secret is"),
            ("\"\"", "the secret is empty"),
        ] {
            let told = told(read(written));
            assert!(told.contains(wanted), "{written}: {told}");
        }
    }

    #[test]
    fn a_missing_secret_is_made_once() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("new");
        let reference = secret("{ file = \"new\", create = true }");
        let forgotten = reference.read(folder.path(), CreateFiles::No).expect("a random one");
        assert!(forgotten.bytes.expose().len() == 64 && !path.exists());
        let made: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let start = || {
                reference
                    .read(folder.path(), CreateFiles::Yes)
                    .expect("made or found")
                    .bytes
                    .expose()
                    .to_vec()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(made.iter().all(|secret| *secret == made[0] && secret.len() == 64));
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).expect("made"), [made[0].as_slice(), b"\n"].concat());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
        let nowhere = secret("{ file = \"missing/new\", create = true }")
            .read(folder.path(), CreateFiles::Yes);
        assert!(told(nowhere).contains("cannot be created"));
    }
}
