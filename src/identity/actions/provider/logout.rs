//! Logout at a provider: people are led there, and the provider tells us (OpenID Connect
//! RP-Initiated Logout 1.0, Back-Channel Logout 1.0).

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{LogoutForm, asked_for};
use crate::identity::account_of_person::AccountOfPerson;
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::outcome::{Answered, Outcome};
use crate::identity::provider::{Person, Provider, SetOfTokens};
use crate::identity::request::Request;
use crate::identity::session::Ended;
use crate::identity::{Identity, Policy, audit};
use crate::store::{LogoutTokenRow, NamedThere, SessionAtProvider, StoreError};
use crate::token::RevokedBy;

impl Identity {
    /// Where the person logs out at the provider of a session. `None`: it did not begin at one, or
    /// the provider has no such place.
    pub(in crate::identity) async fn logout_at_provider(
        &self,
        sid: &str,
        policy: &Policy,
    ) -> Result<Option<String>, IdentityError> {
        let Some(row) = self.store.provider_session(sid).await? else { return Ok(None) };
        let Some(provider) = policy.provider_of(&row.idp, &row.issuer) else { return Ok(None) };
        let tokens: SetOfTokens = serde_json::from_str(&row.tokens).unwrap_or_default();
        let back = format!("{}/logout", policy.issuer);
        Ok(provider.logout_url(tokens.id.as_deref(), &back).await)
    }

    /// A provider says that a person has logged out there.
    pub(in crate::identity) async fn backchannel_logout(
        &self,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let provider = asked_for(request, policy)?;
        let form = LogoutForm::read(request)?;
        let token = match provider.verify_logout(&form.logout_token, &self.clock).await {
            Ok(token) => token,
            Err(error) => {
                let login = &*provider.settings().name;
                tracing::warn!(login, cause = %error, "a back-channel logout was refused");
                if error.is_outage() {
                    return Err(IdentityError::from(error).into());
                }
                return Err(IdentityError::Request(RequestFault::LogoutToken).into());
            }
        };
        let received = LogoutTokenRow {
            name: name(provider, token.jti()),
            expires_at: token.expires_at().cast_signed(),
        };
        let named = token.into_revocation();
        let there = match named.by {
            RevokedBy::Sid => NamedThere::Session(&named.value),
            _ => NamedThere::Person(&named.value),
        };
        let there = (&*provider.settings().issuer, there);
        let now = self.clock.unix_time();
        let ended = self.sessions.end_once(&received, there, policy, now).await?;
        let ended = ended.ok_or(IdentityError::Request(RequestFault::LogoutToken))?;
        for SessionAtProvider { session, account, idp, .. } in &ended {
            audit::from_provider("logged_out_at_provider", account, idp, session);
        }
        Ok(Outcome::LoggedOutThere)
    }

    /// Ends a session because its provider says so.
    pub(super) async fn end_from_provider(
        &self,
        session: &SessionAtProvider,
        policy: &Policy,
    ) -> Result<(), StoreError> {
        let SessionAtProvider { session: sid, account, idp, .. } = session;
        let now = self.clock.unix_time();
        if !matches!(
            self.sessions.end(sid, account, policy, now).await,
            Ok(Ended::Now | Ended::Before)
        ) {
            // Where sessions are may be away, or have lost this one. The revocation is in the
            // database, and also ends the session for good.
            self.sessions.revoke(sid, policy, now).await?;
            self.store.delete_provider_session(sid).await?;
        }
        audit::from_provider("ended_by_provider", account, idp, sid);
        Ok(())
    }

    /// Takes from a person who may no longer log in at a provider what earlier logins there gave
    /// them: their sessions, and the roles that they no longer have.
    pub(super) async fn take_away(
        &self,
        provider: &Provider,
        person: &Person,
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        let issuer = &provider.settings().issuer;
        // The roles first, as personal access tokens outlive sessions: if this fails, the next check of
        // a session that is left tries again. A newer answer brings them back.
        let began = self.store.last_revocation().await?;
        if let Some(account) = self.accounts.of_person(&AccountOfPerson { issuer, person }).await? {
            let now = self.clock.unix_seconds();
            self.accounts.bring_roles(account, (person, began), policy, now).await?;
        }
        for session in self.store.sessions_of_person(issuer, &person.subject).await? {
            // Another section of this issuer may still let them in.
            let began_at = policy.provider_of(&session.idp, issuer);
            if began_at.is_some_and(|own| own.settings().name == provider.settings().name) {
                self.end_from_provider(&session, policy).await?;
            }
        }
        Ok(())
    }

    /// Gives the account of a person who logged in earlier what the provider says.
    pub(super) async fn bring_up_to_date(
        &self,
        provider: &Provider,
        told: (&Person, i64),
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        let (person, _) = told;
        let whose = AccountOfPerson { issuer: &provider.settings().issuer, person };
        if let Some(account) = self.accounts.of_person(&whose).await? {
            let now = self.clock.unix_seconds();
            self.accounts.bring_up_to_date(account, told, policy, now).await?;
        }
        Ok(())
    }
}

/// A `jti` of a provider as one fixed-length value.
fn name(provider: &Provider, jti: &str) -> String {
    let issuer = &provider.settings().issuer;
    let text = format!("login {}:{issuer}{jti}", issuer.len());
    URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes()))
}
