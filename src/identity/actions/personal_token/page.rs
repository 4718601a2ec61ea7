//! The pages of personal access tokens: a part of the page of the sessions, the form alone after an
//! error, and the page that shows a new token.

use askama::Template;

use crate::identity::bodies::day;
use crate::identity::pages::{
    Complaint, Content, Field, Filled, Form, Link, Sheet, Site, rendered,
};
use crate::identity::personal_tokens::{CreatedToken, DEFAULT_TTL};
use crate::identity::{Mount, Policy};
use crate::store::PersonalTokenRow;

/// The part of the page of the sessions.
pub(in crate::identity) struct Section {
    pub(in crate::identity) rows: Vec<Row>,
    pub(in crate::identity) forms: Vec<Form>,
}

/// A token in it.
pub(in crate::identity) struct Row {
    pub(in crate::identity) name: String,
    pub(in crate::identity) roles: String,
    pub(in crate::identity) created: String,
    pub(in crate::identity) used: Option<String>,
    pub(in crate::identity) expires: String,
    pub(in crate::identity) is_expired: bool,
    pub(in crate::identity) action: String,
}

#[derive(Template)]
#[template(path = "pages/token.html")]
struct CreatedPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    token: &'a str,
    name: &'a str,
    expires: String,
    links: Vec<Link>,
}

impl Section {
    /// `now`: in Unix seconds.
    pub(in crate::identity) fn new(tokens: Vec<PersonalTokenRow>, now: u64, mount: &Mount) -> Self {
        let row = |token: PersonalTokenRow| Row {
            roles: shown_roles(token.roles.as_deref()),
            created: day(token.created_at),
            used: token.last_used_at.map(day),
            expires: day(token.expires_at),
            is_expired: token.expires_at <= now.cast_signed(),
            action: mount.path(&format!("/tokens/{}", token.id)),
            name: token.name,
        };
        Self {
            rows: tokens.into_iter().map(row).collect(),
            forms: vec![form(&Filled::default(), mount)],
        }
    }
}

/// The page that shows a new token, this one time.
pub(in crate::identity) fn created_page(
    created: &CreatedToken,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    rendered(&CreatedPage {
        site: Site::new(policy, mount),
        title: "Copy your new token",
        notice: Some("The token was made."),
        complaints: Vec::new(),
        token: &created.token,
        name: &created.row.name,
        expires: day(created.row.expires_at),
        links: vec![Link { before: None, text: "I have copied it", path: mount.path("/sessions") }],
    })
}

/// The form alone, after an error.
pub(in crate::identity) fn new_page(filled: &Filled, mount: &Mount) -> Content {
    Content {
        title: "Make a personal access token",
        lead: None,
        forms: vec![form(filled, mount)],
        links: vec![Link::to_sessions(mount)],
    }
}

fn form(filled: &Filled, mount: &Mount) -> Form {
    let name = Field {
        value: filled.name.clone(),
        hint: Some("What you will use it for, such as “calendar on my phone”.".to_owned()),
        capitals: "sentences",
        ..Field::text("name", "Name", "off")
    };
    let roles = Field {
        value: filled.roles.clone(),
        hint: Some("Separated by spaces. Leave it empty for all of your roles.".to_owned()),
        required: false,
        ..Field::text("roles", "Roles", "off")
    };
    let ttl = Field {
        value: Some(filled.ttl.clone())
            .filter(|ttl| !ttl.is_empty())
            .unwrap_or_else(|| DEFAULT_TTL.to_owned()),
        options: &LIFETIMES,
        ..Field::text("ttl", "Valid for", "off")
    };
    Form { look: "quiet", ..Form::new(mount, "/tokens", vec![name, roles, ttl], "Make a token") }
}

fn shown_roles(roles: Option<&str>) -> String {
    match roles {
        None => "all of your roles".to_owned(),
        Some("") => "no roles".to_owned(),
        Some(roles) => {
            let roles: Vec<&str> = roles.split_whitespace().collect();
            let noun = if roles.len() == 1 { "role" } else { "roles" };
            format!("{noun} {}", roles.join(", "))
        }
    }
}

/// What people choose from. Programs may ask for any other.
const LIFETIMES: [(&str, &str); 4] =
    [("30d", "30 days"), ("90d", "90 days"), ("180d", "180 days"), ("365d", "one year")];
