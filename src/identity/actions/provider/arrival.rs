//! A person arrives from a provider: their account, their roles, their session.

use zeroize::Zeroizing;

use super::{callback, failed};
use crate::identity::account::AccountError;
use crate::identity::account_of_person::AccountOfPerson;
use crate::identity::error::{IdentityError, NoLogin};
use crate::identity::outcome::SessionTokens;
use crate::identity::provider::flight::Flight;
use crate::identity::provider::{Linking, Person, Provider, ProviderError, Received, SetOfTokens};
use crate::identity::request::Request;
use crate::identity::session::{Began, Keep};
use crate::identity::{Identity, Policy, audit};
use crate::store::{AccountRow, LoginProof, ProviderSessionRow};
use crate::telemetry::log::AUDIT;
use crate::token::Excerpt;

impl Identity {
    /// Exchanges the code of a login for a session.
    pub(super) async fn arrive(
        &self,
        provider: &Provider,
        flight: &Flight,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
        let arrived = self.let_in(provider, flight, request, policy).await;
        if let Err(error) = &arrived {
            let outcome = if error.is_outage() { "unavailable" } else { "failed" };
            self.metrics.login(outcome);
            let how = (&*provider.settings().name, error.reason().as_str());
            audit::login("login_failed", request.client, "", how);
        }
        arrived
    }

    async fn let_in(
        &self,
        provider: &Provider,
        flight: &Flight,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
        // What is ended while the provider is asked was not ended for it.
        let began = self.store.last_revocation().await?;
        let received = self
            .redeem(provider, flight, request, policy)
            .await
            .map_err(|error| failed(provider, error))?;
        let Received { person, tokens } = received;
        let person = self.weighed(provider, person, policy).await?;
        if let Err(cause) = &person.allowed {
            tracing::warn!(login = &*provider.settings().name, %cause, "a person may not log in");
            self.take_away(provider, &person, policy).await?;
            return Err(IdentityError::NotAllowed(cause.clone()));
        }
        let now = self.clock.unix_time();
        if !proves(flight, &person, now.as_secs()) {
            return Err(IdentityError::StepUp);
        }
        let account = self.account_of_person(&person, provider, (request, began), policy).await?;
        if account.disabled == 1 {
            return Err(IdentityError::Login(NoLogin::Disabled));
        }
        let settings = provider.settings();
        let proof = LoginProof {
            idp: settings.name.to_string(),
            acr: person.acr.clone(),
            auth_time: person.auth_time.unwrap_or(0).cast_signed(),
        };
        let due_at = tokens.refresh.is_some().then(|| self.next_recheck(provider));
        let row = ProviderSessionRow {
            // Those of the session that is opened with it.
            session: String::new(),
            account: String::new(),
            generation: 0,
            created_at: 0,
            idp: settings.name.to_string(),
            issuer: settings.issuer.clone(),
            subject: person.subject,
            sid: person.sid.unwrap_or_default(),
            tokens: sealed_form(&tokens),
            due_at,
        };
        let how = Began { proof, provider: Some((row, began)) };
        let device = request.device();
        let opened =
            self.sessions.open(&account, (&device, Keep::Lasting, how), policy, now).await?;
        let opened = opened.ok_or(IdentityError::Login(NoLogin::Changed))?;
        self.metrics.login("succeeded");
        audit::login("login_succeeded", request.client, &account.id, (&settings.name, ""));
        self.tokens(opened, policy).await
    }

    /// What the provider says about the person, for the code in the request.
    async fn redeem(
        &self,
        provider: &Provider,
        flight: &Flight,
        request: &Request,
        policy: &Policy,
    ) -> Result<Received, ProviderError> {
        provider.check_iss(request.parameter_of_query("iss").as_deref()).await?;
        if let Some(error) = request.parameter_of_query("error") {
            let description = request.parameter_of_query("error_description").unwrap_or_default();
            return Err(ProviderError::Refused {
                error: Excerpt::new(&error),
                description: Excerpt::new(&description),
                is_invalid_grant: false,
            });
        }
        let Some(code) = request.parameter_of_query("code") else {
            return Err(ProviderError::Contradiction("the response has no single `code`"));
        };
        let (nonce, verifier) = (self.flights.nonce(flight), self.flights.verifier(flight));
        let back = callback(provider, policy);
        provider.exchange(&code, (&nonce, &verifier), &back, &self.clock).await
    }

    /// The account of a person, made at the first login, with the roles that the provider gives.
    async fn account_of_person(
        &self,
        person: &Person,
        provider: &Provider,
        (request, began): (&Request, i64),
        policy: &Policy,
    ) -> Result<AccountRow, IdentityError> {
        let settings = provider.settings();
        let now = self.clock.unix_seconds();
        // Several tabs may bring the same person for the first time.
        for _ in 0..3 {
            let whose = AccountOfPerson { issuer: &settings.issuer, person };
            if let Some(account) = self.accounts.of_person(&whose).await? {
                let told = (person, began);
                return self.accounts.bring_up_to_date(account, told, policy, now).await;
            }
            if let Some(account) = self.accounts.add_person(&whose, policy, now).await? {
                let how = (&*settings.name, "");
                audit::login("account_created", request.client, &account.id, how);
                return Ok(account);
            }
            let known = match &person.email {
                Some(email) => self.accounts.by_email(email).await?,
                None => None,
            };
            let Some(known) = known else { continue };
            if let Err(reason) = self.may_join(&known, provider, person, policy).await? {
                // Another tab may just have made the account.
                if self.accounts.of_person(&whose).await?.is_some() {
                    continue;
                }
                let (login, account) = (&*settings.name, &*known.id);
                tracing::warn!(target: AUDIT, { login, account, reason }, "account_not_joined");
                return Err(IdentityError::AccountExists);
            }
            if self.accounts.link_person(&whose, &known, began, now).await? {
                audit::login("account_linked", request.client, &known.id, (&settings.name, ""));
            }
        }
        Err(AccountError::Taken.into())
    }

    /// Whether a person who logs in for the first time joins the account that has their address; if
    /// not, why: a word for the log. The address must have been proved to us, or to providers that
    /// are trusted about addresses: through another provider, a stranger could have created the
    /// account and waited for the owner of the address to join it. And if somebody of this provider
    /// has the account, they are somebody else: the address belonged to them before.
    async fn may_join(
        &self,
        known: &AccountRow,
        provider: &Provider,
        person: &Person,
        policy: &Policy,
    ) -> Result<Result<(), &'static str>, IdentityError> {
        let settings = provider.settings();
        let people = self.store.people_of_account(&known.id).await?;
        let is_trusted = |issuer: &str| {
            let all = policy.providers.iter().map(|provider| provider.settings());
            all.filter(|settings| settings.issuer == issuer)
                .any(|settings| settings.link == Linking::VerifiedEmail)
        };
        let is_proved = known.email_verified == 1
            && (!known.password.is_empty() || people.iter().all(|(issuer, _)| is_trusted(issuer)));
        Ok(if people.iter().any(|(issuer, _)| *issuer == settings.issuer) {
            Err("other_subject")
        } else if settings.link != Linking::VerifiedEmail {
            Err("link_never")
        } else if !person.email_verified || !is_proved {
            Err("address_not_proved")
        } else {
            Ok(())
        })
    }
}

/// Whether the person has proved who they are in the way, and as recently, as the login is for.
fn proves(flight: &Flight, person: &Person, now: u64) -> bool {
    let is_recent = flight.max_age.is_none_or(|seconds| {
        person
            .auth_time
            .is_some_and(|at| at.saturating_add(seconds).saturating_add(CLOCK_SKEW) >= now)
    });
    is_recent && (flight.acr.is_empty() || flight.acr.contains(&person.acr))
}

/// Tokens as they are sealed.
pub(super) fn sealed_form(tokens: &SetOfTokens) -> Zeroizing<String> {
    Zeroizing::new(serde_json::to_string(tokens).unwrap_or_default())
}

/// How far a provider's clock may be off, in seconds. Routes tolerate nothing, so with more, a
/// browser could be sent to log in again and again.
const CLOCK_SKEW: u64 = 5;
