//! What each endpoint does.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::account::{self, AccountError, NewAccount};
use super::answer::{asset, done, json, public, see_other, with_cookies};
use super::bodies::{self, Secret, Tokens};
use super::endpoints::Action;
use super::error::{IdentityError, NoLogin, RequestFault};
use super::hasher::Verdict;
use super::link::Purpose;
use super::pages::Page;
use super::password::{Password, StoredHash};
use super::people::show_page;
use super::request::{Origin, Request};
use super::session::{Continued, NotContinued};
use super::{Email, Identity, Policy, Refused, Registration, audit, cookie, return_to};
use crate::store::AccountRow;
use crate::token::VerifiedToken;

pub(super) type Answered = Result<Response<Bytes>, Refused>;

impl Identity {
    pub(super) async fn act(&self, request: &Request, policy: &Policy) -> Answered {
        match request.endpoint.action {
            Action::Register => self.register(request, policy).await,
            Action::Login => self.login(request, policy).await,
            Action::Refresh => self.refresh(request, policy).await,
            Action::Renew => self.renew(request, policy).await,
            Action::Logout => self.logout(request, policy).await,
            Action::LogoutAll => self.logout_all(request, policy).await,
            Action::Me => self.me(request).await,
            Action::Sessions => self.list_sessions(request, policy).await,
            Action::EndSession => self.end_session(request, policy).await,
            Action::ChangePassword => self.change_password(request, policy).await,
            Action::ForgotPassword => self.forgot_password(request, policy).await,
            Action::ResetPassword => self.reset_password(request, policy).await,
            Action::VerifyEmail => self.verify_email(request, policy).await,
            Action::ResendEmail => self.resend_email(request, policy).await,
            Action::BeginTotp => self.begin_totp(request, policy).await,
            Action::ConfirmTotp => self.confirm_totp(request, policy).await,
            Action::RemoveTotp => self.remove_totp(request).await,
            Action::Keys => Ok(public(self.keys.published(), MAX_AGE)),
            Action::Metadata => Ok(metadata(policy, &self.keys.algorithms())),
            Action::Page(Page::Totp) => self.show_totp(request, policy).await,
            Action::Page(Page::Change) => self.show_change(request, policy).await,
            Action::Page(page @ Page::Reset) => {
                self.show_link((page, Purpose::Reset), request, policy).await
            }
            Action::Page(page @ Page::VerifyEmail) => {
                self.show_link((page, Purpose::Verify), request, policy).await
            }
            Action::Page(page) => show_page(page, None, request, policy),
            Action::Style => Ok(asset(&policy.brand.style, request)),
            Action::Logo => policy
                .brand
                .logo
                .as_ref()
                .map(|logo| asset(logo, request))
                .ok_or_else(|| IdentityError::NoLogo.into()),
            Action::Icon => Ok(asset(&policy.brand.icon, request)),
            Action::Home => Ok(see_other(&request.mount.path("/sessions"))),
        }
    }

    async fn register(&self, request: &Request, policy: &Policy) -> Answered {
        if policy.registration == Registration::Closed {
            return Err(IdentityError::RegistrationClosed.into());
        }
        let body: bodies::Registering = request.read()?;
        let email =
            Email::parse(&body.email).map_err(|_| IdentityError::Request(RequestFault::Email))?;
        let name = account::name(body.name.as_deref().unwrap_or_default())
            .map_err(|_| IdentityError::Request(RequestFault::Name))?;
        let now = self.clock.unix_seconds();
        // Hashed before the address is looked for: a taken one takes as long.
        let hash = self.new_hash(body.password.password(), &email, name.as_deref(), policy).await?;
        let new = NewAccount {
            email,
            name,
            password: Some(hash),
            roles: policy.default_roles.clone(),
            email_verified: false,
        };
        let account = if policy.verify_email {
            self.register_by_mail(new, policy).await?
        } else {
            self.accounts.add(new, now).await?
        };
        audit::record("registered", request.client, &account.id, "");
        Ok(json(StatusCode::CREATED, &bodies::Account::of(&account, None)))
    }

    pub(super) async fn login(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::Login = request.read()?;
        // An address that none can be has no account, and costs as much.
        let email = Email::parse(&body.email).ok();
        let known = match &email {
            Some(email) => self.accounts.by_email(email).await?,
            None => None,
        };
        let checked = self.check(known.as_ref(), email.as_ref(), body.password.password()).await;
        let opened = match (checked, &known) {
            (Ok(()), Some(account)) => {
                self.open(account, body.code.as_ref(), request, policy).await
            }
            (Ok(()), None) => Err(IdentityError::Login(NoLogin::Unknown)),
            (Err(error), _) => Err(error),
        };
        let session = match opened {
            Ok(session) => session,
            Err(error) => {
                self.login_failed(
                    request,
                    known.as_ref().map_or("", |account| &account.id),
                    &error,
                );
                return Err(error.into());
            }
        };
        if request.is_from_page() {
            let back = return_to::local(body.return_to.as_deref());
            return self.lead_in(session, back, request, policy).await;
        }
        self.tokens(session, body.cookie, request, policy).await
    }

    /// Leads a browser on with the cookies of its session.
    pub(super) async fn lead_in(
        &self,
        session: Continued,
        back: &str,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        let (cookies, _) = self.cookies(&session, request, policy).await?;
        Ok(with_cookies(see_other(back), cookies))
    }

    /// Opens a session for somebody whose password was right.
    pub(super) async fn open(
        &self,
        account: &AccountRow,
        code: Option<&Secret>,
        request: &Request,
        policy: &Policy,
    ) -> Result<Continued, IdentityError> {
        if policy.verify_email && account.email_verified == 0 {
            return Err(IdentityError::EmailUnverified);
        }
        self.check_code(account, code).await?;
        let opened =
            self.sessions.open(account, &request.device(), policy, self.clock.unix_time()).await?;
        let opened = opened.ok_or(IdentityError::Login(NoLogin::Changed))?;
        self.metrics.login("succeeded");
        audit::record("login_succeeded", request.client, &opened.account.id, "");
        Ok(opened)
    }

    /// Whether this is the password of that account, which may log in. Takes as long where it is
    /// not.
    pub(super) async fn check(
        &self,
        account: Option<&AccountRow>,
        email: Option<&Email>,
        password: Password,
    ) -> Result<(), IdentityError> {
        let hash = account.and_then(|account| account.password.parse::<StoredHash>().ok());
        let nobody = Email::parse("nobody@localhost");
        let Some(email) = email.or(nobody.as_ref().ok()) else {
            return Err(IdentityError::Login(NoLogin::Unknown));
        };
        let (Some(account), Some(hash)) = (account, hash) else {
            self.hasher.imitate(password, email).await?;
            return Err(IdentityError::Login(NoLogin::Unknown));
        };
        match self.hasher.verify(email, password, hash).await? {
            Verdict::Wrong => Err(IdentityError::Login(NoLogin::Password)),
            Verdict::Right { .. } if account.disabled == 1 => {
                Err(IdentityError::Login(NoLogin::Disabled))
            }
            Verdict::Right { renewed } => {
                if let Some(renewed) = renewed {
                    self.accounts.renew_hash(account, &renewed).await?;
                }
                Ok(())
            }
        }
    }

    fn login_failed(&self, request: &Request, account: &str, error: &IdentityError) {
        let (outcome, reason) = match error {
            IdentityError::Login(why) => ("failed", why.as_str()),
            IdentityError::EmailUnverified => ("failed", "email_unverified"),
            IdentityError::CodeRequired => return self.metrics.login("code_required"),
            _ => return self.metrics.login("unavailable"),
        };
        self.metrics.login(outcome);
        audit::record("login_failed", request.client, account, reason);
    }

    /// A new password, judged and hashed.
    pub(super) async fn new_hash(
        &self,
        password: Password,
        email: &Email,
        name: Option<&str>,
        policy: &Policy,
    ) -> Result<StoredHash, IdentityError> {
        let personal = [email.as_str(), name.unwrap_or_default(), &policy.issuer];
        Ok(self.hasher.renew(email, password, policy.password_min_length, &personal).await?)
    }

    async fn refresh(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::Refresh = request.read()?;
        let from_cookie = body.refresh_token.is_none();
        let token =
            body.refresh_token.as_deref().or_else(|| cookie::refresh_token(&request.headers));
        // A caller known by a cookie must come from our own pages, or nothing is done.
        if from_cookie && token.is_some() && request.origin != Origin::Own {
            return Err(IdentityError::ForeignOrigin.into());
        }
        let session = match self.carry_on(token, from_cookie, request, policy).await {
            Ok(session) => session,
            Err(error) => {
                let cookies = if from_cookie && error_is_final(&error) {
                    cookie::clear(policy, &request.mount).to_vec()
                } else {
                    Vec::new()
                };
                return Err(Refused { error, cookies, page: None });
            }
        };
        self.tokens(session, from_cookie, request, policy).await
    }

    /// Renews the cookies of a browser and leads it back. It is a navigation: `SameSite=Lax` lets
    /// it come from elsewhere, and all that comes of it is that somebody stays logged in.
    async fn renew(&self, request: &Request, policy: &Policy) -> Answered {
        let asked = request.parameter_of_query("return_to");
        let back = return_to::local(asked.as_deref());
        match self.carry_on(cookie::refresh_token(&request.headers), true, request, policy).await {
            Ok(session) => self.lead_in(session, back, request, policy).await,
            Err(error) if error_is_final(&error) => {
                let login = return_to::remembering(&request.mount.path("/login"), back);
                Ok(with_cookies(see_other(&login), cookie::clear(policy, &request.mount)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Exchanges a refresh token, and tells how it went.
    async fn carry_on(
        &self,
        token: Option<&str>,
        in_cookie: bool,
        request: &Request,
        policy: &Policy,
    ) -> Result<Continued, IdentityError> {
        let now = self.clock.unix_time();
        let continued = match token {
            Some(token) => {
                self.sessions.continued(token, in_cookie, &request.device(), policy, now).await
            }
            None => Err(NotContinued::Invalid),
        };
        let outcome = match &continued {
            Ok(_) => "succeeded",
            Err(NotContinued::Invalid) => "failed",
            Err(NotContinued::Reused { account, .. }) => {
                audit::record("refresh_reused", request.client, account, "invalid_grant");
                "reused"
            }
            Err(NotContinued::Store(_)) => "unavailable",
        };
        self.metrics.refresh(outcome);
        Ok(continued?)
    }

    /// The tokens of a session: in the body, or in cookies, where no script can read them.
    async fn tokens(
        &self,
        session: Continued,
        in_cookies: bool,
        request: &Request,
        policy: &Policy,
    ) -> Answered {
        if in_cookies {
            let (cookies, expires_in) = self.cookies(&session, request, policy).await?;
            let body =
                Tokens { access_token: None, token_type: None, expires_in, refresh_token: None };
            return Ok(with_cookies(json(StatusCode::OK, &body), cookies));
        }
        let minted =
            self.keys.mint(policy, &session.account, &session.sid, session.issued_at).await?;
        let body = Tokens {
            access_token: Some(minted.token),
            token_type: Some("Bearer"),
            expires_in: minted.expires_in,
            refresh_token: Some(session.refresh_token),
        };
        Ok(json(StatusCode::OK, &body))
    }

    /// The cookies of a session, and the seconds until its access token expires.
    async fn cookies(
        &self,
        session: &Continued,
        request: &Request,
        policy: &Policy,
    ) -> Result<([HeaderValue; 2], u64), IdentityError> {
        let minted =
            self.keys.mint(policy, &session.account, &session.sid, session.issued_at).await?;
        let cookies = cookie::set(&minted.token, &session.refresh_token, policy, &request.mount);
        Ok((cookies, minted.expires_in))
    }

    async fn logout(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::Logout = request.read()?;
        let from_cookie = cookie::refresh_token(&request.headers);
        // Whoever says two ways who they are wants both to be over.
        let by_token =
            body.refresh_token.as_deref().and_then(|token| self.sessions.named_by(token));
        let by_caller =
            request.caller.as_deref().and_then(|caller| caller.sid()).map(str::to_owned);
        let mut named: Vec<String> = by_token.into_iter().chain(by_caller).collect();
        named.dedup();
        if named.is_empty() {
            if from_cookie.is_some() && request.origin != Origin::Own {
                return Err(IdentityError::ForeignOrigin.into());
            }
            named.extend(from_cookie.and_then(|token| self.sessions.named_by(token)));
        }
        let cookies = cookie::clear(policy, &request.mount);
        if named.is_empty() {
            return Err(Refused {
                error: IdentityError::Nobody,
                cookies: cookies.to_vec(),
                page: None,
            });
        }
        for sid in &named {
            self.end_named(sid, request, policy).await?;
        }
        Ok(with_cookies(done(), cookies))
    }

    /// Ends a session that its own token names.
    async fn end_named(
        &self,
        sid: &str,
        request: &Request,
        policy: &Policy,
    ) -> Result<(), IdentityError> {
        if let Some(account) = self.sessions.account_of(sid).await? {
            self.sessions.end(sid, &account.id, policy, self.clock.unix_time()).await?;
            audit::record("logged_out", request.client, &account.id, "");
        } else {
            // It is over already, perhaps only for want of use: an access token may live longer
            // than that.
            self.sessions.revoke(sid, policy, self.clock.unix_time()).await?;
        }
        Ok(())
    }

    async fn logout_all(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        self.accounts.end_sessions(caller.subject(), policy, self.clock.unix_seconds()).await?;
        audit::record("logged_out_everywhere", request.client, caller.subject(), "");
        Ok(with_cookies(done(), cookie::clear(policy, &request.mount)))
    }

    async fn me(&self, request: &Request) -> Answered {
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        Ok(json(StatusCode::OK, &bodies::Account::of(&account, codes_left)))
    }

    async fn list_sessions(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        let rows = self.sessions.of(caller.subject(), policy, self.clock.unix_time()).await?;
        let sessions = rows.into_iter().map(|row| bodies::Session::of(row, caller.sid())).collect();
        Ok(json(StatusCode::OK, &bodies::SessionList { sessions }))
    }

    async fn end_session(&self, request: &Request, policy: &Policy) -> Answered {
        let caller = caller(request)?;
        let sid = request.parameter.as_deref().unwrap_or_default();
        if !self.sessions.end(sid, caller.subject(), policy, self.clock.unix_time()).await? {
            return Err(IdentityError::NoSession.into());
        }
        audit::record("session_ended", request.client, caller.subject(), "");
        let own = caller.sid() == Some(sid);
        let cookies = own.then(|| cookie::clear(policy, &request.mount));
        Ok(with_cookies(done(), cookies.into_iter().flatten()))
    }

    async fn change_password(&self, request: &Request, policy: &Policy) -> Answered {
        let body: bodies::ChangePassword = request.read()?;
        let account = self.account_of(request).await?;
        let email = Email::parse(&account.email).ok();
        if let Err(error) =
            self.check(Some(&account), email.as_ref(), body.current_password.password()).await
        {
            if let IdentityError::Login(why) = &error {
                audit::record("password_change_failed", request.client, &account.id, why.as_str());
            }
            return Err(error.into());
        }
        let email = email.ok_or(IdentityError::Nobody)?;
        let new = body.new_password.password();
        let hash = self.new_hash(new, &email, account.name.as_deref(), policy).await?;
        let now = self.clock.unix_seconds();
        match self.accounts.set_password(&account, &hash, policy, now).await {
            Err(AccountError::Unknown) => return Err(IdentityError::Login(NoLogin::Changed).into()),
            set => set?,
        }
        audit::record("password_changed", request.client, &account.id, "");
        self.tell_of_change(&account, policy).await;
        Ok(with_cookies(done(), cookie::clear(policy, &request.mount)))
    }

    /// The account of whoever calls.
    pub(super) async fn account_of(&self, request: &Request) -> Result<AccountRow, IdentityError> {
        let account = self.accounts.by_id(caller(request)?.subject()).await?;
        account.filter(|account| account.disabled == 0).ok_or(IdentityError::Nobody)
    }
}

/// Whoever calls: the gateway lets nobody else to an endpoint that needs a caller.
fn caller(request: &Request) -> Result<&VerifiedToken, IdentityError> {
    request.caller.as_deref().ok_or(IdentityError::Nobody)
}

/// Whether the same refresh token will never be good again.
fn error_is_final(error: &IdentityError) -> bool {
    matches!(error, IdentityError::Grant(_))
}

/// `algorithms`: of every key whose tokens are good, which after a change are more than one.
fn metadata(policy: &Policy, algorithms: &[&str]) -> Response<Bytes> {
    let issuer = &policy.issuer;
    let metadata = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "id_token_signing_alg_values_supported": algorithms,
        "subject_types_supported": ["public"],
        // There is no authorization endpoint: people log in at the endpoints of the reference.
        "response_types_supported": [],
        "grant_types_supported": [],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "jti", "sid", "roles", "email", "name"],
    });
    public(Bytes::from(metadata.to_string()), MAX_AGE)
}

/// For less than a key is published before it signs.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=300");
