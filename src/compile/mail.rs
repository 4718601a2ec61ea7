//! `mail = { … }` of `[identity]`.

use lettre::message::Mailbox;
use toml::Spanned;

use super::Compiler;
use super::issuers::Inline;
use crate::config::Problem;
use crate::config::identity::Mail;
use crate::identity::mail::{MailSettings, MailWay, SmtpServer};

impl Compiler<'_> {
    /// How an issuer with this URL sends mail.
    pub(super) fn mail(
        &mut self,
        section: &Spanned<Mail>,
        issuer: Option<&str>,
    ) -> Option<MailSettings> {
        let written = section.get_ref();
        let from = self.sender(section, issuer);
        let way = match (&written.folder, &written.smtp) {
            (Some(folder), None) => {
                Some(MailWay::Folder(self.source.folder().join(folder.get_ref())))
            }
            (None, Some(_)) => self.smtp(section).map(MailWay::Smtp),
            (None, None) => {
                self.error(
                    Problem::error(section.span(), "`mail` has no destination")
                        .help("write `{ folder = \"mail\" }` or `{ smtp = …, from = … }`"),
                );
                None
            }
            (Some(folder), Some(smtp)) => {
                self.error(
                    Problem::error(smtp.span(), "`folder` and `smtp` contradict each other")
                        .related(folder.span(), "the other")
                        .help("keep one of them"),
                );
                None
            }
        };
        Some(MailSettings { way: way?, from: from? })
    }

    /// The sender: the configured one, or for a folder `no-reply@` the issuer's host.
    fn sender(&mut self, section: &Spanned<Mail>, issuer: Option<&str>) -> Option<Mailbox> {
        let help = "add `from = \"Example <no-reply@example.com>\"`";
        let Some(from) = &section.get_ref().from else {
            if section.get_ref().smtp.is_some() {
                self.error(Problem::error(section.span(), "`mail` has no `from`").help(help));
                return None;
            }
            let host = issuer
                .and_then(|issuer| issuer.parse::<http::Uri>().ok())
                .and_then(|issuer| issuer.host().map(str::to_owned));
            let host = host
                .filter(|host| host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('['));
            return format!("no-reply@{}", host.as_deref().unwrap_or("localhost")).parse().ok();
        };
        let mailbox = from.get_ref().parse().ok();
        if mailbox.is_none() {
            self.error(Problem::error(from.span(), "not a valid sender address").help(help));
        }
        mailbox
    }

    fn smtp(&mut self, section: &Spanned<Mail>) -> Option<SmtpServer> {
        let (smtp, plaintext) =
            (section.get_ref().smtp.as_ref()?, section.get_ref().insecure_plaintext);
        // A server's URL without a password is not secret.
        let url = self.read_secret(smtp, Inline::Permitted)?;
        let text = std::str::from_utf8(url.expose()).unwrap_or_default();
        let server = match SmtpServer::parse(text, plaintext) {
            Ok(server) => server,
            Err(error) => {
                let message = error.to_string();
                let (what, help) = message
                    .split_once("; ")
                    .unwrap_or((&message, "write `smtps://mail.example.com`"));
                self.error(Problem::error(smtp.span(), what).help(help));
                return None;
            }
        };
        if smtp.get_ref().is_inline() && text.contains('@') {
            self.error(Problem::error(smtp.span(), "the password is in the configuration file").help(
                "move the whole URL to an environment variable or a file, and refer to it with `{ env = \"NAME\" }` or `{ file = \"path\" }`",
            ));
            return None;
        }
        if plaintext && server.is_plaintext() {
            self.weakened
                .push("identity.mail.insecure_plaintext: links and passwords can be read in transit to the mail server".to_owned());
        }
        Some(server)
    }
}
