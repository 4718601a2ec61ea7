//! References to secrets: an environment variable or a file, which can be created.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use toml::Spanned;
use zeroize::Zeroizing;

use super::words::quoted;
use crate::config::file::Text;
use crate::config::problem::Problem;

/// Where a secret is: `{ env = "NAME" }`, `{ file = "path" }`, or, for testing, the secret itself.
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
    /// Whether the secret is in the configuration file itself.
    pub fn is_inline(&self) -> bool {
        matches!(self.form, SecretForm::Inline(_))
    }

    /// A reference to a file with this name, which is created with a random secret if it does not
    /// exist.
    pub fn created_file(name: &str) -> Self {
        let file = Some(Spanned::new(0..0, name.to_owned()));
        Self { span: 0..0, form: SecretForm::Table { env: None, file, create: None } }.created()
    }

    /// The same reference, but a missing file is created.
    #[must_use]
    pub fn created(&self) -> Self {
        let mut created = self.clone();
        if let SecretForm::Table { file: Some(_), create, .. } = &mut created.form {
            create.get_or_insert(Spanned::new(0..0, true));
        }
        created
    }

    /// The file that the secret is read from, if it is a file: `watch` checks it.
    pub fn file(&self, folder: &Path) -> Option<PathBuf> {
        match &self.form {
            SecretForm::Table { file: Some(file), .. } => Some(folder.join(file.get_ref())),
            _ => None,
        }
    }

    /// The byte range in the configuration file.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Reads the secret, without the single newline that editors and `echo` leave at the end. Paths
    /// are relative to `folder`, that of the configuration file.
    pub fn read(&self, folder: &Path, create: CreateFiles) -> Result<ReadSecret, Problem> {
        match &self.form {
            SecretForm::Inline(text) if text.is_empty() => {
                Err(Problem::error(self.span(), "the secret is empty")
                    .help("write `{ env = \"NAME\" }` or `{ file = \"path\" }`"))
            }
            SecretForm::Inline(text) => {
                Ok(ReadSecret { bytes: SecretBytes::new(text.as_bytes().to_vec()), warning: None })
            }
            SecretForm::Table { env: Some(env), file: Some(file), .. } => {
                Err(Problem::error(file.span(), "a secret has one source, but this names two")
                    .related(env.span(), "the other one")
                    .help("keep either `env` or `file`"))
            }
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

/// A text, or a reference to a secret: only the reference is masked.
#[derive(Debug, Clone)]
pub enum TextOrSecret {
    /// The text itself.
    Text(String),
    /// Where the secret is.
    Secret(SecretRef),
}

impl<'de> Deserialize<'de> for TextOrSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let SecretRef { span, form } = SecretRef::deserialize(deserializer)?;
        Ok(match form {
            SecretForm::Inline(text) => Self::Text(text.to_string()),
            SecretForm::Table { .. } => Self::Secret(SecretRef { span, form }),
        })
    }
}

impl JsonSchema for TextOrSecret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TextOrSecret".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = SecretRef::json_schema(generator);
        schema.insert(
            "description".into(),
            "A text, or a secret: { env = \"NAME\" } or { file = \"path\" }.".into(),
        );
        schema
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

            // Moved, not copied: a copy would stay behind in memory.
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
            "description": "{ env = \"NAME\" }, { file = \"path\" }, or the secret itself if `insecure_inline_secret` allows it.",
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": {
                        "env": { "type": "string", "description": "The environment variable that holds it. For example `\"JWT_SECRET\"`." },
                        "file": { "type": "string", "description": "The file that holds it. For example `\"jwt.secret\"`." },
                        "create": { "type": "boolean", "description": "Create the file with a random secret if it does not exist. Default false." },
                    },
                    "additionalProperties": false,
                },
            ],
        })
    }
}

/// A secret. Its memory is cleared when it is dropped, and `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes ownership of the bytes.
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

/// The result of reading a secret.
#[derive(Debug)]
pub struct ReadSecret {
    /// The secret, never empty.
    pub bytes: SecretBytes,
    /// A warning that others can access the file.
    pub warning: Option<Problem>,
}

/// Whether a file with `create = true` may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateFiles {
    /// Yes: at start and on reload.
    Yes,
    /// Yes, and also a database whose key already exists: `--new-store`.
    NewStore,
    /// No: for `check`, a missing file counts as a random secret, which is then discarded.
    No,
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
                problem.help("set it in the gateway's environment, or write `{ file = \"path\" }`")
            }
        });
    };
    without_newline(value.into_vec()).ok_or_else(|| {
        Problem::error(name.span(), format!("the environment variable `{written}` is empty"))
            .help("set it to the secret value")
    })
}

/// The maximum size of a secret file, in bytes: a key pair is a hundredth of it.
const MAX_SECRET_BYTES: u64 = 1 << 20;

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
    // Checked before opening: opening a pipe would wait for its writer.
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
                "create it, or correct the path, which is relative to the folder of the configuration file",
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
            .help("name the file inside it that contains the secret"));
    }
    if !metadata.is_file() {
        return Err(Problem::error(file.span(), format!("`{shown}` is not a regular file"))
            .help("name a regular file that contains the secret"));
    }
    let too_long = || {
        Problem::error(file.span(), format!("`{shown}` is larger than a secret can be (1 MiB)"))
            .help("name the file that contains the secret")
    };
    if metadata.len() > MAX_SECRET_BYTES {
        return Err(too_long());
    }
    // Allocate all of it at once: a growing buffer leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(metadata.len() as usize + 64));
    fs::File::open(&path)
        .and_then(|opened| opened.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(&error)
                .help("let the user that runs the gateway read it: `chown`, then `chmod 600`"),
            _ => failed(&error),
        })?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
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
            format!("other users can access `{shown}` (mode {:03o})", mode & 0o777),
        )
        .help(format!("run `chmod 600 {shown}`"))
    });
    Ok(ReadSecret { bytes, warning })
}

/// The secret without one newline at its end; `None` if nothing is left.
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
        Problem::error(file.span(), "the system has no random numbers for a new secret")
    })?;
    Ok(SecretBytes::new(BASE64_URL_SAFE_NO_PAD.encode(random.as_ref()).into_bytes()))
}

/// Writes the file under a temporary name, then links it to its final name. A process that starts
/// at the same time finds a complete file or none, and the first link wins.
fn create_secret(path: &Path, file: &Text) -> Result<(), Problem> {
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
    // The temporary file is no longer needed: failing to remove it does no harm.
    let _ = fs::remove_file(&draft);
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(not_created(path, file, &error))
        }
        _ => Ok(()),
    }
}

fn not_created(path: &Path, file: &Text, error: &io::Error) -> Problem {
    let message = format!("`{}` cannot be created: {error}", path.display());
    let problem = Problem::error(file.span(), message);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            problem.help("the disk that holds it is full: free some space").may_pass()
        }
        _ => problem.help("create the folder, give the user that runs the gateway write access to it, or create the file yourself"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Holder, message_of};
    use super::*;

    fn secret(written: &str) -> SecretRef {
        let holder: Holder =
            toml::from_str(&format!("one = \"x\"\nany = {{ a = 1 }}\nsecret = {written}"))
                .expect("it is TOML");
        holder.secret
    }

    #[test]
    fn secrets_are_not_printed() {
        let shown =
            format!("{:?} {:?}", secret("\"hunter2\""), SecretBytes::new(b"hunter2".to_vec()));
        assert!(shown.contains("[secret]") && !shown.contains("hunter2"), "{shown}");
        assert!(
            toml::from_str::<Holder>("one = \"x\"\nany = 1\nsecret = { emv = \"x\" }").is_err()
        );
    }

    /// With another exit code, systemd would not start the gateway again.
    #[test]
    fn a_full_disk_is_no_mistake_in_the_file() {
        let file = Text::new(0..0, "portcullis.key".to_owned());
        let problem = |kind: io::ErrorKind| not_created(Path::new("key"), &file, &kind.into());
        let full = problem(io::ErrorKind::StorageFull);
        assert!(full.may_pass && full.help.is_some_and(|help| help.contains("free some space")));
        let forbidden = problem(io::ErrorKind::PermissionDenied);
        assert!(!forbidden.may_pass);
        assert!(forbidden.help.is_some_and(|help| help.contains("write access")));
    }

    #[test]
    fn secrets_are_read_from_each_source() {
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
        write("long", &vec![b'x'; MAX_SECRET_BYTES as usize + 1], 0o600);
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
            open.severity == crate::config::Severity::Warning
                && open.message.ends_with("(mode 640)"),
            "{open:?}"
        );
        assert!(read("{ file = \"plain\" }").expect("it is readable").warning.is_none());
        // Cargo sets this one for every test.
        assert_eq!(bytes("{ env = \"CARGO_PKG_NAME\" }").as_deref(), Ok("portcullis"));
        for (written, wanted) in [
            ("{ file = \"none\" }", "there is no file"),
            ("{ file = \"empty\" }", "is empty"),
            ("{ file = \"long\" }", "is larger than a secret can be"),
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
            ("{ env = \"A\", file = \"b\" }", "but this names two"),
            ("{ env = \"A\", create = true }", "only a file can be created"),
            ("{}", "this does not say where the secret is"),
            ("\"\"", "the secret is empty"),
        ] {
            let message_of = message_of(read(written));
            assert!(message_of.contains(wanted), "{written}: {message_of}");
        }
    }

    #[test]
    fn a_missing_secret_is_created_once() {
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
        assert!(message_of(nowhere).contains("cannot be created"));
    }
}
