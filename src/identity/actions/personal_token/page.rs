//! The pages of personal access tokens: a part of the page of the sessions, the form alone after an
//! error, and the page that shows a new token.

use askama::Template;

use crate::identity::bodies::day;
use crate::identity::pages::{
    Complaint, Content, Field, Filled, Form, Link, Sheet, Site, rendered,
};
use crate::identity::personal_tokens::{CreatedToken, DEFAULT_TTL};
use crate::identity::texts::{self, Texts, TokensTexts};
use crate::identity::{Mount, Policy};
use crate::store::PersonalTokenRow;

/// The part of the page of the sessions.
pub(in crate::identity) struct Section {
    pub(in crate::identity) rows: Vec<Row>,
    pub(in crate::identity) forms: Vec<Form>,
    pub(in crate::identity) words: &'static TokensTexts,
}

/// A token in it.
pub(in crate::identity) struct Row {
    pub(in crate::identity) name: String,
    pub(in crate::identity) when: String,
    pub(in crate::identity) what: String,
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
    words: &'static TokensTexts,
    lead: String,
    links: Vec<Link>,
}

impl Section {
    /// `now`: in Unix seconds.
    pub(in crate::identity) fn new(
        tokens: Vec<PersonalTokenRow>,
        now: u64,
        filled: &Filled,
        mount: &Mount,
    ) -> Self {
        let words = &filled.texts.tokens;
        let row = |token: PersonalTokenRow| Row {
            when: shown_times(&token, now, words),
            what: texts::filled(&words.revoke_what, &[("name", &token.name)]),
            is_expired: token.expires_at <= now.cast_signed(),
            action: mount.path(&format!("/tokens/{}", token.id)),
            name: token.name,
        };
        Self {
            rows: tokens.into_iter().map(row).collect(),
            forms: vec![form(&Filled { texts: filled.texts, ..Filled::default() }, mount)],
            words,
        }
    }
}

/// The page that shows a new token, this one time.
pub(in crate::identity) fn created_page(
    created: &CreatedToken,
    texts: &'static Texts,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let words = &texts.tokens;
    rendered(&CreatedPage {
        site: Site::new(policy, mount, texts),
        title: &words.copy_title,
        notice: Some(&words.made),
        complaints: Vec::new(),
        token: &created.token,
        words,
        lead: texts::filled(
            &words.copy_lead,
            &[("name", &created.row.name), ("day", &day(created.row.expires_at))],
        ),
        links: vec![Link { before: None, text: &words.copied, path: mount.path("/sessions") }],
    })
}

/// The form alone, after an error.
pub(in crate::identity) fn new_page(filled: &Filled, mount: &Mount) -> Content {
    Content {
        title: &filled.texts.tokens.new_title,
        lead: None,
        ways: Vec::new(),
        forms: vec![form(filled, mount)],
        links: vec![Link::to_sessions(filled, mount)],
    }
}

fn form(filled: &Filled, mount: &Mount) -> Form {
    let words = &filled.texts.tokens;
    let name = Field {
        value: filled.name.clone(),
        hint: Some(words.name_hint.clone()),
        capitals: "sentences",
        ..Field::text("name", &words.name, "off")
    };
    let roles = Field {
        value: filled.roles.clone(),
        hint: Some(words.roles_hint.clone()),
        required: false,
        ..Field::text("roles", &words.roles, "off")
    };
    let ttl = Field {
        value: Some(filled.ttl.clone())
            .filter(|ttl| !ttl.is_empty())
            .unwrap_or_else(|| DEFAULT_TTL.to_owned()),
        options: LIFETIMES
            .map(|(ttl, days)| (ttl, texts::filled(&words.days, &[("count", days)])))
            .to_vec(),
        ..Field::text("ttl", &words.valid_for, "off")
    };
    Form { look: "quiet", ..Form::new(mount, "/tokens", vec![name, roles, ttl], &words.make) }
}

/// What a token allows, and when it was made, used last and expires.
fn shown_times(token: &PersonalTokenRow, now: u64, words: &TokensTexts) -> String {
    let roles = match token.roles.as_deref() {
        None => words.all_roles.clone(),
        Some("") => words.no_roles.clone(),
        Some(roles) => {
            let roles = roles.split_whitespace().collect::<Vec<_>>().join(", ");
            texts::filled(&words.with_roles, &[("roles", &roles)])
        }
    };
    let on = |text: &str, time: i64| texts::filled(text, &[("day", &day(time))]);
    let used =
        token.last_used_at.map_or_else(|| words.unused.clone(), |time| on(&words.used, time));
    let is_expired = token.expires_at <= now.cast_signed();
    let expires = if is_expired { &words.expired_on } else { &words.expires };
    [roles, on(&words.created, token.created_at), used, on(expires, token.expires_at)].join(" · ")
}

/// What people choose from, in days. Programs may ask for any other.
const LIFETIMES: [(&str, &str); 4] =
    [("30d", "30"), ("90d", "90"), ("180d", "180"), ("365d", "365")];
