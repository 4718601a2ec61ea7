//! The content of each page.

use super::words::{Complaint, Why};
use crate::identity::actions::{
    account, email, login, password, personal_token, profile, second_factor, session,
};
use crate::identity::endpoints::Endpoint;
use crate::identity::{Mount, Policy, return_to};

/// A page with a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Log in.
    Login,
    /// Register.
    Register,
    /// Log out.
    Logout,
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
    /// A code is required, or was sent.
    pub with_code: bool,
    /// A word for what was just done.
    pub done: Option<String>,
}

/// The content of a page.
pub(in crate::identity) struct Content {
    pub(in crate::identity) title: &'static str,
    pub(in crate::identity) lead: Option<String>,
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
    pub(in crate::identity) options: &'static [(&'static str, &'static str)],
    pub(in crate::identity) required: bool,
    pub(in crate::identity) focused: bool,
    pub(in crate::identity) wrong: Option<String>,
}

/// A link to another page.
pub(in crate::identity) struct Link {
    pub(in crate::identity) before: Option<&'static str>,
    pub(in crate::identity) text: &'static str,
    pub(in crate::identity) path: String,
}

impl Filled {
    /// The values in the query of a page.
    pub fn from_query(query: Option<&str>) -> Self {
        Self::from_pairs(query.unwrap_or_default().as_bytes(), true)
    }

    /// The values that a form was submitted with.
    pub fn from_form(body: &[u8]) -> Self {
        Self::from_pairs(body, false)
    }

    fn from_pairs(pairs: &[u8], is_query: bool) -> Self {
        let mut filled = Self::default();
        for (name, value) in form_urlencoded::parse(pairs) {
            match &*name {
                // Do not trust the address in a link.
                "email" if !is_query => filled.email = value.into_owned(),
                "username" if !is_query => filled.username = value.into_owned(),
                "name" if !is_query => filled.name = value.into_owned(),
                "roles" if !is_query => filled.roles = value.into_owned(),
                "ttl" if !is_query => filled.ttl = value.into_owned(),
                "code" if !is_query => filled.with_code = true,
                "return_to" => filled.return_to = value.into_owned(),
                "token" => filled.token = value.into_owned(),
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
            Self::Register => account::register_page(filled, policy, mount),
            Self::Logout => session::logout_page(mount),
            Self::LoggedOut => session::logged_out_page(mount),
            Self::Forgot => password::forgot_page(filled, policy, mount),
            Self::Reset => password::reset_page(filled, policy, mount),
            Self::Change => password::change_page(filled, policy, mount),
            Self::VerifyEmail => email::verify_page(filled, policy, mount),
            Self::ChangeEmail => profile::change_email_page(filled, mount),
            Self::Totp => second_factor::totp_page(filled, mount),
            Self::ConfirmTotp => second_factor::confirm_page(mount),
            Self::RemoveTotp => second_factor::remove_page(filled, mount),
            Self::NewToken => personal_token::new_page(filled, mount),
            Self::Sessions | Self::Other => Content {
                title: "Something went wrong",
                lead: None,
                forms: Vec::new(),
                links: vec![Link::to_sessions(mount)],
            },
        }
    }

    /// The content of the page when its form cannot succeed.
    pub(in crate::identity) fn without_form(
        self,
        why: &Why<'_>,
        policy: &Policy,
        mount: &Mount,
    ) -> Content {
        let title = self.content(&Filled::default(), policy, mount).title;
        let mut links = Vec::new();
        if why.is_about_credentials()
            && let Some(path) = self.path()
        {
            // A session whose access token has expired continues from there; one that has ended
            // leads to the login.
            links.push(Link { before: None, text: "Open the page again", path: mount.path(path) });
        } else {
            if self == Self::Reset {
                links.push(Link {
                    before: None,
                    text: "Send another link",
                    path: mount.path("/password/forgot"),
                });
            }
            links.push(Link { before: None, text: "Log in", path: mount.path("/login") });
        }
        Content { title, lead: None, forms: Vec::new(), links }
    }

    /// The page whose form is sent to an endpoint, or that the endpoint shows.
    pub fn for_endpoint(endpoint: &Endpoint) -> Self {
        match endpoint.path {
            "/login" => Self::Login,
            "/register" => Self::Register,
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
            "/sessions" | "/sessions/{sid}" | "/tokens/{id}" => Self::Sessions,
            _ => Self::Other,
        }
    }

    /// The path of the page, below the mount.
    fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::Login => "/login",
            Self::Register => "/register",
            Self::Logout | Self::LoggedOut => "/logout",
            Self::Forgot => "/password/forgot",
            Self::Change => "/password/change",
            Self::Totp | Self::ConfirmTotp | Self::RemoveTotp => "/totp",
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
    pub(in crate::identity) fn to_login(mount: &Mount) -> Self {
        Self { before: None, text: "Back to the login", path: mount.path("/login") }
    }

    pub(in crate::identity) fn to_sessions(mount: &Mount) -> Self {
        Self { before: None, text: "Back to your sessions", path: mount.path("/sessions") }
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
            ..Self::new(mount, "/email/resend", Vec::new(), "Send the mail again")
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
            options: &[],
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
            ..Self::text("email", "E-mail address", "username")
        }
    }

    pub(in crate::identity) fn password(name: &'static str, label: &'static str) -> Self {
        Self { kind: "password", ..Self::text(name, label, "current-password") }
    }

    pub(in crate::identity) fn new_password(
        name: &'static str,
        label: &'static str,
        policy: &Policy,
    ) -> Self {
        let hint = format!(
            "At least {} characters. A few unrelated words work well.",
            policy.password_min_length
        );
        Self { kind: "password", hint: Some(hint), ..Self::text(name, label, "new-password") }
    }

    /// Recovery codes contain letters, so do not ask for a numeric keyboard.
    pub(in crate::identity) fn code() -> Self {
        let hint =
            "The six digits that your authenticator app shows, or a recovery code.".to_owned();
        Self { hint: Some(hint), ..Self::text("code", "Code", "one-time-code") }
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
