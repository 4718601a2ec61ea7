//! Mail delivery: over SMTP, or into a folder for development.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use lettre::message::header::{
    ContentTransferEncoding, ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0,
};
use lettre::message::{Body, Mailbox};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use percent_encoding::percent_decode_str;
use url::{Host, Url};
use uuid::Uuid;

use super::email::Email;
use crate::config::value::SecretBytes;

/// `mail = { … }`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailSettings {
    /// Where messages go.
    pub way: MailWay,
    /// The sender.
    pub from: Mailbox,
}

/// Where messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailWay {
    /// A file in this folder for each message.
    Folder(PathBuf),
    /// To this server.
    Smtp(SmtpServer),
}

/// A mail server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmtpServer {
    host: String,
    port: u16,
    tls: SmtpTls,
    login: Option<(String, SecretBytes)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SmtpTls {
    /// From the first byte (RFC 8314 §3).
    Implicit,
    /// After `STARTTLS`; without it nothing is sent.
    Required,
    /// None.
    Plain,
}

/// Why a text is not a valid server. `Display` says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoServer {
    /// Not a URL, or a URL with another scheme.
    #[error(
        "not a valid mail server URL; write `smtps://mail.example.com`, or `smtp://mail.example.com:587` for STARTTLS"
    )]
    Form,
    /// It has a path or a query.
    #[error(
        "a mail server URL ends after host and port; use `smtp://` for STARTTLS, `smtps://` for TLS from the first byte"
    )]
    Rest,
    /// Only a user name, or only a password.
    #[error(
        "a login needs both a user name and a password: write `smtps://name:password@mail.example.com`, percent-encoded"
    )]
    Login,
}

impl SmtpServer {
    /// Parses `smtps://[NAME:PASSWORD@]HOST[:PORT]` or `smtp://…`. The latter requires STARTTLS,
    /// except for a server on this machine or if `plaintext` is set.
    pub fn parse(text: &str, plaintext: bool) -> Result<Self, NoServer> {
        let url = Url::parse(text.trim()).map_err(|_| NoServer::Form)?;
        // For an unknown scheme, `Url` leaves the host as written.
        let written = url.host_str().filter(|host| !host.is_empty()).ok_or(NoServer::Form)?;
        let host = Host::parse(written).map_err(|_| NoServer::Form)?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(NoServer::Rest);
        }
        let address = match &host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(IpAddr::from(*address)),
            Host::Ipv6(address) => Some(IpAddr::from(*address)),
        };
        let host = address.map_or_else(|| host.to_string(), |address| address.to_string());
        let is_local = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let (tls, port) = match url.scheme() {
            "smtps" => (SmtpTls::Implicit, 465),
            "smtp" if is_local || plaintext => (SmtpTls::Plain, 25),
            "smtp" => (SmtpTls::Required, 587),
            _ => return Err(NoServer::Form),
        };
        let decoded = |text: &str| {
            percent_decode_str(text).decode_utf8().map(String::from).map_err(|_| NoServer::Login)
        };
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            ("", Some(_)) | (_, None) => return Err(NoServer::Login),
            (name, Some(password)) => {
                Some((decoded(name)?, SecretBytes::new(decoded(password)?.into_bytes())))
            }
        };
        Ok(Self { host, port: url.port().unwrap_or(port), tls, login })
    }

    /// Whether messages to it can be read on the way.
    pub fn is_plaintext(&self) -> bool {
        self.tls == SmtpTls::Plain
    }

    fn transport(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, NotSent> {
        let tls = match self.tls {
            SmtpTls::Implicit => Tls::Wrapper(TlsParameters::new(self.host.clone())?),
            SmtpTls::Required => Tls::Required(TlsParameters::new(self.host.clone())?),
            SmtpTls::Plain => Tls::None,
        };
        let builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host)
            .port(self.port)
            .tls(tls)
            .timeout(Some(TIMEOUT));
        Ok(match &self.login {
            None => builder.build(),
            Some((name, password)) => {
                let password = String::from_utf8_lossy(password.expose()).into_owned();
                builder.credentials(Credentials::new(name.clone(), password)).build()
            }
        })
    }
}

/// A message to one person.
#[derive(Clone, PartialEq, Eq)]
pub struct Letter {
    /// The recipient.
    pub to: Email,
    /// The subject.
    pub subject: String,
    /// The text. It may contain a secret link.
    pub text: String,
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum NotSent {
    /// The message cannot be built.
    #[error("no message can be made for this address: {0}")]
    Message(#[from] lettre::error::Error),
    /// The address cannot be used in a message.
    #[error("no message can be made for this address: {0}")]
    Address(#[from] lettre::address::AddressError),
    /// The server rejected the message, or cannot be reached.
    #[error("{}", chain(.0))]
    Smtp(#[from] lettre::transport::smtp::Error),
    /// Each of the server's answers came in time, and all of them together did not.
    #[error("the mail server took longer than {} seconds for one message", LONGEST.as_secs())]
    Slow,
    /// The file cannot be written.
    #[error("cannot write to {}: {source}; make the folder writable for the user that runs the gateway", path.display())]
    File {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// An error with its causes: the mail library's outer error is only "connection error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

impl NotSent {
    /// Whether retrying is pointless: the server says that it will never accept this message.
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::Message(_) | Self::Address(_) => true,
            Self::Slow | Self::File { .. } => false,
            // A failed login (530, 535) is a configuration error, which may be fixed.
            Self::Smtp(error) => {
                error.is_permanent()
                    && error.status().is_some_and(|code| !code.to_string().starts_with("53"))
            }
        }
    }
}

/// Sends messages under one configuration.
#[derive(Debug)]
pub struct Mailer {
    settings: MailSettings,
    smtp: Option<AsyncSmtpTransport<Tokio1Executor>>,
}

impl Mailer {
    /// Prepares to send. Does not connect yet.
    ///
    /// # Errors
    /// The system's trust anchors cannot be read.
    pub fn new(settings: &MailSettings) -> Result<Self, NotSent> {
        let smtp = match &settings.way {
            MailWay::Folder(_) => None,
            MailWay::Smtp(server) => Some(server.transport()?),
        };
        Ok(Self { settings: settings.clone(), smtp })
    }

    /// The settings it was made from.
    pub fn settings(&self) -> &MailSettings {
        &self.settings
    }

    /// Sends a message dated `now` (since 1970). On return, the server has accepted it, or the file
    /// is complete.
    pub async fn send(&self, letter: &Letter, now: Duration) -> Result<(), NotSent> {
        let sending = tokio::time::timeout(LONGEST, self.try_to_send(letter, now));
        sending.await.unwrap_or(Err(NotSent::Slow))
    }

    async fn try_to_send(&self, letter: &Letter, now: Duration) -> Result<(), NotSent> {
        let message = self.message(letter, now)?;
        match (&self.settings.way, &self.smtp) {
            (MailWay::Folder(folder), _) => {
                let (folder, bytes) = (folder.clone(), message.formatted());
                let written = folder.clone();
                let name = format!("{}-{}.eml", now.as_millis(), Uuid::new_v4().simple());
                let writing = tokio::task::spawn_blocking(move || write(&folder, &name, &bytes));
                let done = writing.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                done.map_err(|source| NotSent::File { path: written, source })
            }
            (MailWay::Smtp(server), None) => {
                server.transport()?.send(message).await.map(drop).map_err(NotSent::from)
            }
            (MailWay::Smtp(_), Some(transport)) => {
                transport.send(message).await.map(drop).map_err(NotSent::from)
            }
        }
    }

    fn message(&self, letter: &Letter, now: Duration) -> Result<Message, NotSent> {
        let from = &self.settings.from;
        let id = format!("<{}@{}>", Uuid::new_v4().simple(), from.email.domain());
        let mut message = Message::builder()
            .from(from.clone())
            .to(Mailbox::new(None, letter.to.as_str().parse()?))
            .subject(&letter.subject)
            .date(UNIX_EPOCH + now)
            .message_id(Some(id))
            // The library adds it to multipart messages only (RFC 2045 §4). Without it, a reader
            // may treat the content as plain ASCII text.
            .header(MIME_VERSION_1_0)
            .header(ContentType::TEXT_PLAIN)
            .body(body(&letter.text))?;
        // Suppresses automatic replies, such as absence notices (RFC 3834 §5).
        let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
        message.headers_mut().insert_raw(HeaderValue::new(automatic, "auto-generated".to_owned()));
        Ok(message)
    }
}

/// The text as is, if every server accepts it so. The mail library would wrap links at 76
/// characters, as RFC 5322 §2.1.1 recommends, and readers would have to undo that; 998 is the hard
/// limit for a line.
fn body(text: &str) -> Body {
    if text.is_ascii() && text.lines().all(|line| line.len() <= 998) {
        let lines: Vec<&str> = text.lines().collect();
        return Body::dangerous_pre_encoded(
            format!("{}\r\n", lines.join("\r\n")).into_bytes(),
            ContentTransferEncoding::SevenBit,
        );
    }
    Body::new(text.to_owned())
}

/// Writes a complete file or none: readers look for names that end in `.eml`.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let unfinished = folder.join(format!(".{name}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, folder.join(name))
}

/// How long it may take to send one message.
pub const LONGEST: Duration = Duration::from_secs(150);

/// The timeout for one command of the server.
const TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str, plaintext: bool) -> Result<(String, SmtpTls, Option<String>), NoServer> {
        SmtpServer::parse(text, plaintext).map(|server| {
            let login = server.login.map(|(name, password)| {
                format!("{name} {}", String::from_utf8_lossy(password.expose()))
            });
            (format!("{} {}", server.host, server.port), server.tls, login)
        })
    }

    #[test]
    fn only_local_servers_are_used_without_tls() {
        for (text, plaintext, address, tls) in [
            ("smtps://mail.example.com", false, "mail.example.com 465", SmtpTls::Implicit),
            ("smtps://mail.example.com:4650/", true, "mail.example.com 4650", SmtpTls::Implicit),
            ("smtp://Mail.example.com", false, "mail.example.com 587", SmtpTls::Required),
            ("smtp://192.0.2.1", false, "192.0.2.1 587", SmtpTls::Required),
            ("smtp://mail.internal:25", true, "mail.internal 25", SmtpTls::Plain),
            ("smtp://localhost", false, "localhost 25", SmtpTls::Plain),
            ("smtp://127.0.0.1:1025", false, "127.0.0.1 1025", SmtpTls::Plain),
            ("smtp://[::1]:1025", false, "::1 1025", SmtpTls::Plain),
        ] {
            assert_eq!(server(text, plaintext), Ok((address.to_owned(), tls, None)), "{text}");
        }
        let with_login =
            server("smtps://no%2Dreply%40example.com:p%40ss:word@mail.example.com\n", false)
                .unwrap();
        assert_eq!(with_login.2.as_deref(), Some("no-reply@example.com p@ss:word"));
        for (text, error) in [
            ("", NoServer::Form),
            ("mail.example.com", NoServer::Form),
            ("smtp:mail.example.com", NoServer::Form),
            ("smtp://", NoServer::Form),
            ("smtp://a b", NoServer::Form),
            ("smtp://mail.example.com:99999", NoServer::Form),
            ("http://mail.example.com", NoServer::Form),
            ("smtp://mail.example.com?tls=required", NoServer::Rest),
            ("smtps://mail.example.com/inbox", NoServer::Rest),
            ("smtps://name@mail.example.com", NoServer::Login),
            ("smtps://:password@mail.example.com", NoServer::Login),
            ("smtps://name:%ff@mail.example.com", NoServer::Login),
        ] {
            assert_eq!(server(text, false), Err(error), "{text}");
        }
    }

    #[tokio::test]
    async fn a_folder_receives_complete_messages() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mail/out");
        let settings = MailSettings {
            way: MailWay::Folder(path.clone()),
            from: "Exämple <no-reply@example.com>".parse().unwrap(),
        };
        let mailer = Mailer::new(&settings).unwrap();
        let link = format!("https://app.example.com/auth/password/reset?token={}", "t".repeat(43));
        let letter = Letter {
            to: Email::parse("ann@example.com").unwrap(),
            subject: "Grüße".into(),
            text: format!("Open\n\n{link}\n"),
        };
        mailer.send(&letter, Duration::from_hours(500_000)).await.unwrap();
        let files: Vec<_> =
            fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
        let text = fs::read_to_string(&files[0]).unwrap();
        for line in [
            "From: =?utf-8?b?RXjDpG1wbGU=?= <no-reply@example.com>\r\n",
            "To: ann@example.com\r\n",
            "Subject: =?utf-8?b?R3LDvMOfZQ==?=\r\n",
            "Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "MIME-Version: 1.0\r\n",
            "Content-Type: text/plain; charset=utf-8\r\n",
            "Content-Transfer-Encoding: 7bit\r\n",
            &format!("\r\n\r\nOpen\r\n\r\n{link}\r\n"),
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(files.len() == 1 && files[0].extension().is_some_and(|end| end == "eml"));
        assert_eq!(text.matches("MIME-Version").count(), 1, "{text}");
        assert!(
            !text.contains("localhost") && text.contains("@example.com>\r\n"),
            "the Message-ID tells no host name: {text}"
        );

        // Text with letters beyond ASCII is encoded so that a server of any age passes it on, and
        // the encoding is declared.
        let text = format!("Exämple\n\n{link}\n");
        mailer
            .send(&Letter { text, ..letter.clone() }, Duration::from_hours(500_001))
            .await
            .unwrap();
        let newest = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
        let text = fs::read_to_string(newest).unwrap();
        assert!(text.is_ascii() && text.contains("MIME-Version: 1.0\r\n"), "{text}");
        assert!(text.contains("Content-Transfer-Encoding: quoted-printable\r\n"), "{text}");
        assert!(text.contains("\r\n\r\nEx=C3=A4mple\r\n\r\n"), "{text}");

        let blocked =
            MailSettings { way: MailWay::Folder(files[0].join("below a file")), ..settings };
        let error = Mailer::new(&blocked).unwrap().send(&letter, Duration::ZERO).await.unwrap_err();
        assert!(!error.is_for_good() && error.to_string().contains("cannot write to"), "{error}");
    }
}
