//! The content of each page.

use super::words::{Complaint, Why};
use crate::identity::actions::{
    account, email, login, password, personal_token, profile, provider, second_factor, session,
};
use crate::identity::endpoints::Endpoint;
use crate::identity::texts::{self, Texts};
use crate::identity::{Mount, Policy, return_to};
use crate::reason::Reason;

/// A page with a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Log in.
    Login,
    /// Enter a code after the password.
    Code,
    /// Register.
    Register,
    /// Log out.
    Logout,
    /// A login at a provider that failed.
    Provider,
    /// The page after logout.
    LoggedOut,
    /// Request a reset link.
    Forgot,
    /// Set a new password, from a mailed link.
    Reset,
    /// Change the password, for a logged-in user.
    Change,
    /// Confirm an address, from a mailed link.
    VerifyEmail,
    /// Change the address, from a link that was mailed to the new one.
    ChangeEmail,
    /// Start setting up a second factor.
    Totp,
    /// Confirm the first code of the authenticator app.
    ConfirmTotp,
    /// Remove the second factor.
    RemoveTotp,
    /// Make new recovery codes.
    NewCodes,
    /// The account, and what its owner can do with it.
    Account,
    /// Change the name.
    ChangeName,
    /// Request another address.
    AskForEmail,
    /// Delete the account.
    DeleteAccount,
    /// The list of sessions.
    Sessions,
    /// Make a personal access token.
    NewToken,
    /// No page of its own: an error of something else.
    Other,
}

/// The values of a form, from an earlier submission or from a link. Never passwords or codes.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    /// The address.
    pub email: String,
    /// The address of the account that a password belongs to, if the form does not ask for it.
    pub username: String,
    /// The name.
    pub name: String,
    /// The roles of a personal access token.
    pub roles: String,
    /// The lifetime of a personal access token.
    pub ttl: String,
    /// The page that the user was going to.
    pub return_to: String,
    /// The secret of a mailed link.
    pub token: String,
    /// Whether the account of that link has no password yet.
    pub is_first: bool,
    /// Whether the login is to last when the browser is closed.
    pub keep: bool,
    /// Proof that the password was right, while the page asks for a code.
    pub ticket: String,
    /// A word for what was just done.
    pub done: Option<String>,
    /// The texts in the language of the reader.
    pub(in crate::identity) texts: &'static Texts,
}

/// The content of a page.
pub(in crate::identity) struct Content {
    pub(in crate::identity) title: &'static str,
    pub(in crate::identity) lead: Option<String>,
    /// The providers to log in at.
    pub(in crate::identity) ways: Vec<Way>,
    pub(in crate::identity) forms: Vec<Form>,
    pub(in crate::identity) links: Vec<Link>,
}

/// Fields and their button.
pub(in crate::identity) struct Form {
    pub(in crate::identity) action: String,
    pub(in crate::identity) hidden: Vec<(&'static str, String)>,
    /// The account of the passwords, for password managers.
    pub(in crate::identity) username: Option<String>,
    pub(in crate::identity) fields: Vec<Field>,
    pub(in crate::identity) button: &'static str,
    pub(in crate::identity) look: &'static str,
    /// The text of a box that is ticked if the login is to last, and whether it is.
    pub(in crate::identity) keep: Option<(&'static str, bool)>,
    /// Whether success leads to the application rather than to another page of ours.
    pub(in crate::identity) leads_on: bool,
}

/// An input field.
pub(in crate::identity) struct Field {
    pub(in crate::identity) name: &'static str,
    pub(in crate::identity) label: &'static str,
    pub(in crate::identity) kind: &'static str,
    pub(in crate::identity) autocomplete: &'static str,
    pub(in crate::identity) inputmode: Option<&'static str>,
    pub(in crate::identity) capitals: &'static str,
    pub(in crate::identity) hint: Option<String>,
    pub(in crate::identity) value: String,
    /// The values to choose from, and what they are called. Empty: any text.
    pub(in crate::identity) options: Vec<(&'static str, String)>,
    pub(in crate::identity) required: bool,
    pub(in crate::identity) focused: bool,
    pub(in crate::identity) wrong: Option<String>,
}

/// A provider to log in at.
pub(in crate::identity) struct Way {
    pub(in crate::identity) text: String,
    pub(in crate::identity) path: String,
}

/// A link to another page.
pub(in crate::identity) struct Link {
    pub(in crate::identity) before: Option<&'static str>,
    pub(in crate::identity) text: &'static str,
    pub(in crate::identity) path: String,
}

impl Filled {
    /// The values in the query of a page.
    pub(in crate::identity) fn from_query(query: Option<&str>, texts: &'static Texts) -> Self {
        Self::from_pairs(query.unwrap_or_default().as_bytes(), true, texts)
    }

    /// The values that a form was submitted with.
    pub(in crate::identity) fn from_form(body: &[u8], texts: &'static Texts) -> Self {
        Self::from_pairs(body, false, texts)
    }

    fn from_pairs(pairs: &[u8], is_query: bool, texts: &'static Texts) -> Self {
        // On a page that was not sent yet, the box is ticked.
        let mut filled = Self { keep: is_query, texts, ..Self::default() };
        for (name, value) in form_urlencoded::parse(pairs) {
            match &*name {
                // Do not trust the address in a link.
                "email" if !is_query => filled.email = value.into_owned(),
                "username" if !is_query => filled.username = value.into_owned(),
                "name" if !is_query => filled.name = value.into_owned(),
                "roles" if !is_query => filled.roles = value.into_owned(),
                "ttl" if !is_query => filled.ttl = value.into_owned(),
                "keep" => filled.keep = value == "true",
                "ticket" if !is_query => filled.ticket = value.into_owned(),
                "return_to" => filled.return_to = value.into_owned(),
                "token" => filled.token = value.into_owned(),
                "first" if !is_query => filled.is_first = value == "true",
                "done" if is_query => filled.done = Some(value.into_owned()),
                _ => {}
            }
        }
        filled
    }

    /// The page to return to, if there is one.
    pub(in crate::identity) fn way_back(&self, policy: &Policy) -> Option<&str> {
        Some(return_to::allowed(Some(&self.return_to), policy)).filter(|path| *path != "/")
    }

    /// The path of another page that returns to the same place.
    pub(in crate::identity) fn onwards(&self, path: &str, policy: &Policy) -> String {
        self.way_back(policy)
            .map_or_else(|| path.to_owned(), |back| return_to::remembering(path, back))
    }
}

impl Page {
    /// The content of the page.
    pub(in crate::identity) fn content(
        self,
        filled: &Filled,
        policy: &Policy,
        mount: &Mount,
    ) -> Content {
        match self {
            Self::Login => login::login_page(filled, policy, mount),
            Self::Code => login::code_page(filled, policy, mount),
            Self::Register => account::register_page(filled, policy, mount),
            Self::Provider => provider::failed_page(filled, policy, mount),
            Self::Logout => session::logout_page(filled, policy, mount),
            Self::LoggedOut => session::logged_out_page(filled, mount),
            Self::Forgot => password::forgot_page(filled, policy, mount),
            Self::Reset => password::reset_page(filled, policy, mount),
            Self::Change => password::change_page(filled, policy, mount),
            Self::VerifyEmail => email::verify_page(filled, policy, mount),
            Self::ChangeEmail => profile::change_email_page(filled, mount),
            Self::Totp => second_factor::totp_page(filled, mount),
            Self::ConfirmTotp => second_factor::confirm_page(filled, mount),
            Self::RemoveTotp => second_factor::remove_page(filled, mount),
            Self::NewToken => personal_token::new_page(filled, mount),
            Self::NewCodes => second_factor::codes_page(filled, mount),
            Self::ChangeName => profile::name_page(filled, mount),
            Self::AskForEmail => profile::email_page(filled, mount),
            Self::DeleteAccount => profile::delete_page(filled, mount),
            Self::Account | Self::Sessions | Self::Other => Content {
                title: &filled.texts.wrong.title,
                lead: None,
                ways: Vec::new(),
                forms: Vec::new(),
                links: vec![Link::to_account(filled, mount)],
            },
        }
    }

    /// The content of the page when its form cannot succeed.
    pub(in crate::identity) fn without_form(
        self,
        why: &Why<'_>,
        filled: &Filled,
        policy: &Policy,
        mount: &Mount,
    ) -> Content {
        let (title, texts) = (self.content(filled, policy, mount).title, filled.texts);
        let mut links = Vec::new();
        if why.is_about_credentials()
            && let Some(path) = self.path()
        {
            // A session whose access token has expired continues from there; one that has ended
            // leads to the login.
            links.push(Link {
                before: None,
                text: &texts.wrong.open_again,
                path: mount.path(path),
            });
        } else if matches!(why.reason, Reason::RouteNotFound | Reason::MethodNotAllowed) {
            // Somebody who is not logged in gets to the login from there.
            links.push(Link::to_account(filled, mount));
        } else {
            if self == Self::Reset && policy.mail.is_some() {
                links.push(Link {
                    before: None,
                    text: &texts.password.another_link,
                    path: filled.onwards(&mount.path("/password/forgot"), policy),
                });
            }
            links.push(Link {
                before: None,
                text: &texts.login.button,
                path: filled.onwards(&mount.path("/login"), policy),
            });
        }
        Content { title, lead: None, ways: Vec::new(), forms: Vec::new(), links }
    }

    /// The page whose form is sent to an endpoint, or that the endpoint shows.
    pub fn for_endpoint(endpoint: &Endpoint) -> Self {
        match endpoint.path {
            "/login" => Self::Login,
            "/login/code" => Self::Code,
            "/register" => Self::Register,
            "/login/{name}" | "/login/{name}/callback" => Self::Provider,
            "/logout" | "/logout-all" => Self::Logout,
            "/password/forgot" => Self::Forgot,
            "/password/reset" => Self::Reset,
            "/password/change" => Self::Change,
            "/email/verify" => Self::VerifyEmail,
            "/email/change" => Self::ChangeEmail,
            "/totp" => Self::Totp,
            "/totp/confirm" => Self::ConfirmTotp,
            "/totp/remove" => Self::RemoveTotp,
            "/tokens" => Self::NewToken,
            "/totp/codes" => Self::NewCodes,
            "/account" => Self::Account,
            "/account/name" => Self::ChangeName,
            "/account/email" => Self::AskForEmail,
            "/account/delete" => Self::DeleteAccount,
            "/sessions" | "/sessions/{sid}" | "/tokens/{id}" => Self::Sessions,
            _ => Self::Other,
        }
    }

    /// The path of the page, below the mount.
    fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::Login | Self::Code | Self::Provider => "/login",
            Self::Register => "/register",
            Self::Logout | Self::LoggedOut => "/logout",
            Self::Forgot => "/password/forgot",
            Self::Change => "/password/change",
            Self::Totp | Self::ConfirmTotp | Self::RemoveTotp => "/totp",
            Self::NewCodes => "/totp/codes",
            Self::Account => "/account",
            Self::ChangeName => "/account/name",
            Self::AskForEmail => "/account/email",
            Self::DeleteAccount => "/account/delete",
            Self::Sessions | Self::NewToken => "/sessions",
            Self::Reset | Self::VerifyEmail | Self::ChangeEmail | Self::Other => return None,
        })
    }
}

impl Content {
    /// Shows each complaint at its field, and focuses the first of these fields.
    pub(in crate::identity) fn point_at(&mut self, complaints: &[Complaint]) {
        let mut fields: Vec<&mut Field> =
            self.forms.iter_mut().flat_map(|form| &mut form.fields).collect();
        for field in &mut fields {
            field.wrong = complaints
                .iter()
                .find(|complaint| complaint.field == Some(field.name))
                .map(|complaint| complaint.text.clone());
        }
        if fields.iter().any(|field| field.wrong.is_some()) {
            let mut is_first = true;
            for field in fields {
                field.focused = field.wrong.is_some() && std::mem::replace(&mut is_first, false);
            }
        }
    }
}

impl Link {
    pub(in crate::identity) fn to_login(filled: &Filled, policy: &Policy, mount: &Mount) -> Self {
        let path = filled.onwards(&mount.path("/login"), policy);
        Self { before: None, text: &filled.texts.login.back, path }
    }

    pub(in crate::identity) fn to_account(filled: &Filled, mount: &Mount) -> Self {
        Self { before: None, text: &filled.texts.profile.back, path: mount.path("/account") }
    }

    pub(in crate::identity) fn to_sessions(filled: &Filled, mount: &Mount) -> Self {
        Self { before: None, text: &filled.texts.sessions.back, path: mount.path("/sessions") }
    }
}

impl Form {
    pub(in crate::identity) fn new(
        mount: &Mount,
        path: &str,
        fields: Vec<Field>,
        button: &'static str,
    ) -> Self {
        Self {
            action: mount.path(path),
            hidden: Vec::new(),
            username: None,
            fields,
            button,
            look: "main",
            keep: None,
            leads_on: false,
        }
    }

    /// Names the account of its passwords, if it is known.
    pub(in crate::identity) fn of_account(self, filled: &Filled) -> Self {
        let username = Some(filled.username.clone()).filter(|username| !username.is_empty());
        Self { username, ..self }
    }

    /// A form that sends the confirmation mail again.
    pub(in crate::identity) fn resend(filled: &Filled, policy: &Policy, mount: &Mount) -> Self {
        let mut hidden = vec![("email", filled.email.clone())];
        hidden.extend(filled.way_back(policy).map(|back| ("return_to", back.to_owned())));
        Self {
            hidden,
            look: "quiet",
            ..Self::new(mount, "/email/resend", Vec::new(), &filled.texts.confirm.resend)
        }
    }
}

impl Field {
    pub(in crate::identity) fn text(
        name: &'static str,
        label: &'static str,
        autocomplete: &'static str,
    ) -> Self {
        Self {
            name,
            label,
            kind: "text",
            autocomplete,
            inputmode: None,
            capitals: "none",
            hint: None,
            value: String::new(),
            options: Vec::new(),
            required: true,
            focused: false,
            wrong: None,
        }
    }

    /// Not `type="email"`: with it, browsers reject some valid addresses and rewrite others.
    pub(in crate::identity) fn email(filled: &Filled) -> Self {
        Self {
            inputmode: Some("email"),
            value: filled.email.clone(),
            ..Self::text("email", &filled.texts.login.email, "username")
        }
    }

    pub(in crate::identity) fn password(name: &'static str, label: &'static str) -> Self {
        Self { kind: "password", ..Self::text(name, label, "current-password") }
    }

    pub(in crate::identity) fn new_password(
        name: &'static str,
        label: &'static str,
        filled: &Filled,
        policy: &Policy,
    ) -> Self {
        let least = policy.password_min_length.to_string();
        let hint = texts::filled(&filled.texts.register.password_hint, &[("least", &least)]);
        Self { kind: "password", hint: Some(hint), ..Self::text(name, label, "new-password") }
    }

    /// Recovery codes contain letters, so do not ask for a numeric keyboard.
    pub(in crate::identity) fn code(filled: &Filled) -> Self {
        let words = &filled.texts.login;
        let hint = Some(words.code_hint.clone());
        Self { hint, ..Self::text("code", &words.code, "one-time-code") }
    }

    pub(in crate::identity) fn focused(self) -> Self {
        Self { focused: true, ..self }
    }

    /// The ids of its descriptions, in reading order.
    pub(in crate::identity) fn described_by(&self) -> Option<String> {
        let hint = self.hint.as_ref().map(|_| format!("{}-hint", self.name));
        let wrong = self.wrong.as_ref().map(|_| format!("{}-wrong", self.name));
        let ids: Vec<String> = wrong.into_iter().chain(hint).collect();
        (!ids.is_empty()).then(|| ids.join(" "))
    }
}
