//! What each page asks for.

use super::words::{Complaint, Why};
use crate::identity::endpoints::Endpoint;
use crate::identity::{Mount, Policy, Registration, return_to};

/// A page with a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Log in.
    Login,
    /// Make an account.
    Register,
    /// Log out.
    Logout,
    /// One is logged out.
    LoggedOut,
    /// Have a link mailed.
    Forgot,
    /// The mailed link: another password.
    Reset,
    /// Another password, of somebody who is logged in.
    Change,
    /// The mailed link: the address is theirs.
    VerifyEmail,
    /// Begin with a second factor.
    Totp,
    /// Show that the authenticator app has the key.
    ConfirmTotp,
    /// Do without a second factor.
    RemoveTotp,
    /// Where they are logged in.
    Sessions,
    /// What has no page: a refusal of something else.
    Other,
}

/// What a form was filled in with, or its link brings. No passwords, no codes.
#[derive(Clone, Debug, Default)]
pub struct Filled {
    /// The address.
    pub email: String,
    /// The address of the account that a password is of, where it is not asked for.
    pub username: String,
    /// The name.
    pub name: String,
    /// Where the person was going.
    pub return_to: String,
    /// The secret of a mailed link.
    pub token: String,
    /// A code is needed, or was sent.
    pub with_code: bool,
    /// What was just done, in a word.
    pub done: Option<String>,
}

/// What a page shows.
pub(super) struct Content {
    pub(super) title: &'static str,
    pub(super) lead: Option<String>,
    pub(super) forms: Vec<Form>,
    pub(super) links: Vec<Link>,
}

/// Fields and their button.
pub(super) struct Form {
    pub(super) action: String,
    pub(super) hidden: Vec<(&'static str, String)>,
    /// Whose passwords these are, for password managers.
    pub(super) username: Option<String>,
    pub(super) fields: Vec<Field>,
    pub(super) button: &'static str,
    pub(super) look: &'static str,
    /// Whether all being well leads on to the application, and not to another page of ours.
    pub(super) leads_on: bool,
}

/// What is typed in.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    pub(super) kind: &'static str,
    pub(super) autocomplete: &'static str,
    pub(super) inputmode: Option<&'static str>,
    pub(super) capitals: &'static str,
    pub(super) hint: Option<String>,
    pub(super) value: String,
    pub(super) required: bool,
    pub(super) focused: bool,
    pub(super) wrong: Option<String>,
}

/// A way to somewhere else.
pub(super) struct Link {
    pub(super) before: Option<&'static str>,
    pub(super) text: &'static str,
    pub(super) path: String,
}

impl Filled {
    /// What the query of a page brings.
    pub fn from_query(query: Option<&str>) -> Self {
        Self::from_pairs(query.unwrap_or_default().as_bytes(), true)
    }

    /// What a form was sent with.
    pub fn from_form(body: &[u8]) -> Self {
        Self::from_pairs(body, false)
    }

    fn from_pairs(pairs: &[u8], is_query: bool) -> Self {
        let mut filled = Self::default();
        for (name, value) in form_urlencoded::parse(pairs) {
            match &*name {
                // Of a link, nobody's address is believed.
                "email" if !is_query => filled.email = value.into_owned(),
                "username" if !is_query => filled.username = value.into_owned(),
                "name" if !is_query => filled.name = value.into_owned(),
                "code" if !is_query => filled.with_code = true,
                "return_to" => filled.return_to = value.into_owned(),
                "token" => filled.token = value.into_owned(),
                "done" if is_query => filled.done = Some(value.into_owned()),
                _ => {}
            }
        }
        filled
    }

    /// The way back, where there is one.
    fn way_back(&self) -> Option<&str> {
        Some(return_to::local(Some(&self.return_to))).filter(|path| *path != "/")
    }

    /// The path of another page, from which the way back is the same.
    fn onwards(&self, path: &str) -> String {
        self.way_back().map_or_else(|| path.to_owned(), |back| return_to::remembering(path, back))
    }
}

impl Page {
    pub(super) fn content(self, filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
        let login = Link { before: None, text: "Back to the login", path: mount.path("/login") };
        let account =
            Link { before: None, text: "Back to your sessions", path: mount.path("/sessions") };
        match self {
            Self::Login => login_page(filled, policy, mount),
            Self::Register => register_page(filled, policy, mount),
            Self::Logout => Content {
                title: "Log out?",
                lead: Some("Of this browser alone, or of every browser and program that uses your account.".to_owned()),
                forms: vec![
                    Form::new(mount, "/logout", Vec::new(), "Log out"),
                    Form { look: "quiet", ..Form::new(mount, "/logout-all", Vec::new(), "Log out everywhere") },
                ],
                links: vec![account],
            },
            Self::LoggedOut => Content {
                title: "You are logged out",
                lead: None,
                forms: Vec::new(),
                links: vec![Link { before: None, text: "Log in again", path: mount.path("/login") }],
            },
            Self::Forgot if policy.mail.is_none() => Content {
                title: "Reset your password",
                lead: Some("Mail is not set up here. Ask whoever runs this site for another password.".to_owned()),
                forms: Vec::new(),
                links: vec![login],
            },
            Self::Forgot => Content {
                title: "Reset your password",
                lead: Some("Enter your address, and a link to set another password is sent to it. It is good for 30 minutes.".to_owned()),
                forms: vec![Form::new(mount, "/password/forgot", vec![Field::email(filled).focused()], "Send the link")],
                links: vec![login],
            },
            Self::Reset => {
                let mut form = Form::new(
                    mount,
                    "/password/reset",
                    vec![Field::new_password("password", "New password", policy).focused()],
                    "Set password",
                );
                form = form.of_account(filled);
                form.hidden.push(("token", filled.token.clone()));
                let lead = Some("You are then logged out everywhere, and log in with it.".to_owned());
                Content { title: "Set a new password", lead, forms: vec![form], links: vec![login] }
            }
            Self::Change => {
                let fields = vec![
                    Field::password("current_password", "Current password").focused(),
                    Field::new_password("new_password", "New password", policy),
                ];
                let lead = Some("You are then logged out everywhere, here too, and log in with the new one.".to_owned());
                let form =
                    Form::new(mount, "/password/change", fields, "Change password").of_account(filled);
                Content { title: "Change your password", lead, forms: vec![form], links: vec![account] }
            }
            Self::VerifyEmail => verify_page(filled, policy, mount, login),
            Self::Totp => {
                let fields = vec![Field::password("current_password", "Password").focused()];
                let lead = "With an authenticator app, your password alone is not enough to log in. Enter it to begin.";
                Content {
                    title: "Turn on two-factor login",
                    lead: Some(lead.to_owned()),
                    forms: vec![Form::new(mount, "/totp", fields, "Continue").of_account(filled)],
                    links: vec![account],
                }
            }
            // There are no recovery codes before this one is taken.
            Self::ConfirmTotp => {
                let hint = Some("The six digits that your authenticator app shows.".to_owned());
                let code = Field { hint, inputmode: Some("numeric"), ..Field::code().focused() };
                Content {
                    title: "Turn on two-factor login",
                    lead: None,
                    forms: vec![Form::new(mount, "/totp/confirm", vec![code], "Turn on")],
                    links: vec![Link { before: None, text: "Begin again", path: mount.path("/totp") }, account],
                }
            }
            Self::RemoveTotp => {
                let fields = vec![Field::password("current_password", "Password").focused(), Field::code()];
                Content {
                    title: "Turn off two-factor login",
                    lead: Some("Your password alone will then be enough to log in.".to_owned()),
                    forms: vec![Form { look: "danger", ..Form::new(mount, "/totp/remove", fields, "Turn off").of_account(filled) }],
                    links: vec![account],
                }
            }
            Self::Sessions | Self::Other => Content { title: "That did not work", lead: None, forms: Vec::new(), links: vec![account] },
        }
    }

    /// Where the form would be of no use.
    pub(super) fn without_form(self, why: &Why<'_>, policy: &Policy, mount: &Mount) -> Content {
        let title = self.content(&Filled::default(), policy, mount).title;
        let mut links = Vec::new();
        if why.is_about_credentials()
            && let Some(path) = self.path()
        {
            // A session whose access token has expired goes on from there; one that is over leads
            // to the login.
            links.push(Link { before: None, text: "Open the page again", path: mount.path(path) });
        } else {
            if self == Self::Reset {
                links.push(Link {
                    before: None,
                    text: "Send another link",
                    path: mount.path("/password/forgot"),
                });
            }
            links.push(Link { before: None, text: "Go to the login", path: mount.path("/login") });
        }
        Content { title, lead: None, forms: Vec::new(), links }
    }

    /// The page whose form is sent to an endpoint, or that the endpoint shows.
    pub fn of(endpoint: &Endpoint) -> Self {
        match endpoint.path {
            "/login" => Self::Login,
            "/register" => Self::Register,
            "/logout" | "/logout-all" => Self::Logout,
            "/password/forgot" => Self::Forgot,
            "/password/reset" => Self::Reset,
            "/password/change" => Self::Change,
            "/email/verify" => Self::VerifyEmail,
            "/totp" => Self::Totp,
            "/totp/confirm" => Self::ConfirmTotp,
            "/totp/remove" => Self::RemoveTotp,
            "/sessions" | "/sessions/{sid}" => Self::Sessions,
            _ => Self::Other,
        }
    }

    /// Where it is, below the mount.
    fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::Login => "/login",
            Self::Register => "/register",
            Self::Logout | Self::LoggedOut => "/logout",
            Self::Forgot => "/password/forgot",
            Self::Change => "/password/change",
            Self::Totp | Self::ConfirmTotp | Self::RemoveTotp => "/totp",
            Self::Sessions => "/sessions",
            Self::Reset | Self::VerifyEmail | Self::Other => return None,
        })
    }
}

fn login_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let email = Field::email(filled);
    let password = Field::password("password", "Password");
    let mut fields = if filled.email.is_empty() {
        vec![email.focused(), password]
    } else {
        vec![email, password.focused()]
    };
    if filled.with_code {
        fields.push(Field::code());
    }
    let mut form = Form { leads_on: true, ..Form::new(mount, "/login", fields, "Log in") };
    form.hidden.extend(filled.way_back().map(|back| ("return_to", back.to_owned())));
    let mut links = Vec::new();
    if policy.mail.is_some() {
        links.push(Link {
            before: None,
            text: "Forgot your password?",
            path: mount.path("/password/forgot"),
        });
    }
    if policy.registration == Registration::Open {
        links.push(Link {
            before: Some("No account yet?"),
            text: "Register",
            path: filled.onwards(&mount.path("/register")),
        });
    }
    Content { title: "Log in", lead: None, forms: vec![form], links }
}

/// Whoever made the account may be a stranger, who chose its password: it is asked for, or replaced.
fn verify_page(filled: &Filled, policy: &Policy, mount: &Mount, login: Link) -> Content {
    let form = |field: Field, button| {
        let mut form = Form::new(mount, "/email/verify", vec![field], button).of_account(filled);
        form.hidden.push(("token", filled.token.clone()));
        Form { leads_on: true, ..form }
    };
    let confirm = form(Field::password("password", "Password").focused(), "Confirm address");
    let replace =
        form(Field::new_password("new_password", "New password", policy), "Set this password");
    let lead = "Enter the password of the account. If somebody else made the account, or you have forgotten the password, set a new one in its place.";
    Content {
        title: "Confirm your address",
        lead: Some(lead.to_owned()),
        forms: vec![confirm, Form { look: "quiet", ..replace }],
        links: vec![login],
    }
}

fn register_page(filled: &Filled, policy: &Policy, mount: &Mount) -> Content {
    let name = Field {
        capitals: "words",
        value: filled.name.clone(),
        required: false,
        hint: Some("What to call you. You can leave it empty.".to_owned()),
        ..Field::text("name", "Name", "name")
    };
    let fields = vec![
        Field::email(filled).focused(),
        name,
        Field::new_password("password", "Password", policy),
    ];
    // Whoever has to confirm their address comes to the login first.
    let mut form = Form {
        leads_on: !policy.verify_email,
        ..Form::new(mount, "/register", fields, "Register")
    };
    form.hidden.extend(filled.way_back().map(|back| ("return_to", back.to_owned())));
    let login = Link {
        before: Some("You have an account?"),
        text: "Log in",
        path: filled.onwards(&mount.path("/login")),
    };
    Content { title: "Register", lead: None, forms: vec![form], links: vec![login] }
}

impl Content {
    /// Says at each field what is wrong with it, and begins with the first of these.
    pub(super) fn point_at(&mut self, complaints: &[Complaint]) {
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

impl Form {
    fn new(mount: &Mount, path: &str, fields: Vec<Field>, button: &'static str) -> Self {
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

    /// Names the account that its passwords are of, where that is known.
    fn of_account(self, filled: &Filled) -> Self {
        let username = Some(filled.username.clone()).filter(|username| !username.is_empty());
        Self { username, ..self }
    }

    /// Has the link that confirms an address mailed once more.
    pub(super) fn resend(filled: &Filled, mount: &Mount) -> Self {
        let hidden = vec![("email", filled.email.clone())];
        Self {
            hidden,
            look: "quiet",
            ..Self::new(mount, "/email/resend", Vec::new(), "Send the mail again")
        }
    }
}

impl Field {
    fn text(name: &'static str, label: &'static str, autocomplete: &'static str) -> Self {
        Self {
            name,
            label,
            kind: "text",
            autocomplete,
            inputmode: None,
            capitals: "none",
            hint: None,
            value: String::new(),
            required: true,
            focused: false,
            wrong: None,
        }
    }

    /// No `type="email"`: browsers then refuse addresses that are good, or write them in another
    /// way.
    fn email(filled: &Filled) -> Self {
        Self {
            inputmode: Some("email"),
            value: filled.email.clone(),
            ..Self::text("email", "E-mail address", "username")
        }
    }

    fn password(name: &'static str, label: &'static str) -> Self {
        Self { kind: "password", ..Self::text(name, label, "current-password") }
    }

    fn new_password(name: &'static str, label: &'static str, policy: &Policy) -> Self {
        let hint = format!(
            "At least {} characters. A few words that do not belong together are good.",
            policy.password_min_length
        );
        Self { kind: "password", hint: Some(hint), ..Self::text(name, label, "new-password") }
    }

    /// A recovery code has letters too, so the keyboard is not one of digits.
    fn code() -> Self {
        let hint =
            "The six digits that your authenticator app shows, or a recovery code.".to_owned();
        Self { hint: Some(hint), ..Self::text("code", "Code", "one-time-code") }
    }

    fn focused(self) -> Self {
        Self { focused: true, ..self }
    }

    /// What describes it, in the order in which it is read.
    pub(super) fn described_by(&self) -> Option<String> {
        let hint = self.hint.as_ref().map(|_| format!("{}-hint", self.name));
        let wrong = self.wrong.as_ref().map(|_| format!("{}-wrong", self.name));
        let ids: Vec<String> = wrong.into_iter().chain(hint).collect();
        (!ids.is_empty()).then(|| ids.join(" "))
    }
}
