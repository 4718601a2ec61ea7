//! `[admin] token`, and what can be revoked.

use super::Compiler;
use super::issuers::Inline;
use crate::config::Problem;
use crate::config::value::SecretBytes;

impl Compiler<'_> {
    /// The token for operators who may change state. `None` if there is none, or it is invalid.
    pub(super) fn admin_token(&mut self) -> Option<SecretBytes> {
        let written = self.file.admin.token.as_ref()?;
        let token = self.read_secret(written, Inline::Never)?;
        let help = "make one with `openssl rand -base64 32`";
        let problem = match token.expose() {
            short if short.len() < SHORTEST_TOKEN => {
                format!("the token has {} bytes and could be guessed; it needs at least {SHORTEST_TOKEN}", short.len())
            }
            bytes if !bytes.iter().all(u8::is_ascii_graphic) => {
                "the token contains a space, a line break or a non-ASCII character: it cannot be sent as a bearer token".to_owned()
            }
            _ => return Some(token),
        };
        self.error(Problem::error(written.span(), problem).help(help));
        None
    }

    /// Warns about whatever revokes in memory only, which a restart forgets.
    pub(super) fn warn_about_revocations(&mut self) {
        if self.file.store.is_some() || self.file.identity.is_some() {
            return;
        }
        let token = self.file.admin.token.as_ref().map(|token| (token.span(), "`POST /revoke`"));
        let logouts = self.file.issuer.values().filter_map(|issuer| {
            Some((issuer.backchannel_logout.as_ref()?.span(), "a back-channel logout"))
        });
        let revoking: Vec<_> = token.into_iter().chain(logouts).collect();
        for (span, what) in revoking {
            self.error(
                Problem::warning(span, format!("{what} revokes in memory only: the tokens are accepted again after a restart"))
                    .help("add a `[store]` section; `portcullis revoke` needs it too"),
            );
        }
    }
}

/// The shortest token, in bytes.
const SHORTEST_TOKEN: usize = 16;
