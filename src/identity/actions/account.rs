//! Registration, and the account of the caller.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::identity::account::{self, NewAccount};
use crate::identity::bodies::{Secret, time};
use crate::identity::error::{IdentityError, RequestFault};
use crate::identity::outcome::{Answered, Outcome, SessionTokens};
use crate::identity::pages::{Content, Field, Filled, Form, Link};
use crate::identity::request::Request;
use crate::identity::session::Keep;
use crate::identity::{
    Compat, Email, Identity, Mount, Policy, Registration, address_of, audit, is_verified,
};
use crate::store::AccountRow;

impl Identity {
    pub(super) async fn register(&self, request: &Request, policy: &Policy) -> Answered {
        if policy.registration == Registration::Closed {
            return Err(IdentityError::RegistrationClosed.into());
        }
        let body: Registering = request.parse_body()?;
        let email =
            Email::parse(&body.email).map_err(|_| IdentityError::Request(RequestFault::Email))?;
        let name = account::name(body.name.as_deref().unwrap_or_default())
            .map_err(|_| IdentityError::Request(RequestFault::Name))?;
        let now = self.clock.unix_seconds();
        // Hash before looking up the address: a taken address then takes just as long.
        let hash = self
            .new_hash(request.client, body.password.password(), &email, name.as_deref(), policy)
            .await?;
        let new = NewAccount {
            email,
            name,
            password: Some(hash),
            roles: policy.default_roles.clone(),
            email_verified: false,
        };
        let account = if policy.verify_email {
            self.register_by_mail(new, body.return_to.as_deref(), request, policy).await?
        } else {
            self.accounts.add(new, now).await?
        };
        audit::record("registered", request.client, &account.id, "");
        let logs_in = request.is_for_people() || policy.compat == Compat::Express;
        let tokens = if logs_in && !policy.verify_email {
            // The account exists, even if this login fails.
            self.log_in_new(&account, request, policy).await.ok()
        } else {
            None
        };
        let account = Account::from_row(&account, None);
        Ok(Outcome::Registered { account, tokens, return_to: body.return_to })
    }

    /// Opens the first session of an account, whose password was just chosen.
    async fn log_in_new(
        &self,
        account: &AccountRow,
        request: &Request,
        policy: &Policy,
    ) -> Result<SessionTokens, IdentityError> {
        let session = self.open(account, None, Keep::Lasting, request, policy).await?;
        self.tokens(session, policy).await
    }

    pub(super) async fn me(&self, request: &Request) -> Answered {
        let account = self.account_of(request).await?;
        let codes_left = self.second_factors.recovery_codes_left(&account.id).await?;
        Ok(Outcome::Account(Account::from_row(&account, codes_left)))
    }
}

/// A registration.
#[derive(Deserialize, JsonSchema)]
#[schemars(example = json!({ "email": "ann@example.com", "password": "plum orbit tenant 71", "name": "Ann Ott" }))]
pub struct Registering {
    /// The e-mail address.
    #[schemars(extend("format" = "email"))]
    pub email: String,
    /// The password.
    pub password: Secret,
    /// Display name.
    pub name: Option<String>,
    /// The path on this site to go on to.
    pub return_to: Option<String>,
}

/// An account, as its owner sees it.
#[derive(Serialize, JsonSchema)]
#[schemars(example = account_example())]
pub struct Account {
    /// The `sub` of its tokens.
    pub id: String,
    /// The e-mail address. null: a login provider gave none, or has not verified it.
    #[schemars(extend("format" = "email"))]
    pub email: Option<String>,
    /// Whether the owner has proved that the address is theirs.
    pub email_verified: bool,
    /// Display name.
    pub name: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
    /// Whether logins require a second factor.
    pub totp: bool,
    /// Unused recovery codes. null: logins require no second factor.
    pub recovery_codes_left: Option<i64>,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub created_at: String,
    /// RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_login_at: Option<String>,
}

pub(super) fn account_example() -> Value {
    json!({
        "id": "586ceb28-2a0e-4afb-a580-634b137a7c02",
        "email": "ann@example.com",
        "email_verified": true,
        "name": "Ann Ott",
        "roles": ["user"],
        "totp": false,
        "recovery_codes_left": null,
        "created_at": "2026-03-14T09:26:53Z",
        "last_login_at": null,
    })
}

impl Account {
    /// The part of a row that its owner may see, and the number of recovery codes left if the
    /// account has a second factor.
    pub fn from_row(row: &AccountRow, recovery_codes_left: Option<i64>) -> Self {
        Self {
            id: row.id.clone(),
            email: address_of(row).map(str::to_owned),
            email_verified: is_verified(row),
            name: row.name.clone(),
            roles: row.roles.split_whitespace().map(str::to_owned).collect(),
            totp: recovery_codes_left.is_some(),
            recovery_codes_left,
            created_at: time(row.created_at),
            last_login_at: row.last_login_at.map(time),
        }
    }
}

pub(in crate::identity) fn register_page(
    filled: &Filled,
    policy: &Policy,
    mount: &Mount,
) -> Content {
    let words = &filled.texts.register;
    let name = Field {
        capitals: "words",
        value: filled.name.clone(),
        required: false,
        hint: Some(words.name_hint.clone()),
        ..Field::text("name", &words.name, "name")
    };
    let fields = vec![
        Field::email(filled).focused(),
        name,
        Field::new_password("password", &filled.texts.login.password, filled, policy),
    ];
    // If the address has to be confirmed, the login page comes first.
    let mut form = Form {
        leads_on: !policy.verify_email,
        ..Form::new(mount, "/register", fields, &words.button)
    };
    form.hidden.push(("keep", "true".to_owned()));
    form.hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
    let login = Link {
        before: Some(&words.have_account),
        text: &words.log_in,
        path: filled.onwards(&mount.path("/login"), policy),
    };
    Content {
        title: &words.title,
        lead: None,
        ways: Vec::new(),
        forms: vec![form],
        links: vec![login],
    }
}
