//! The page that lists the sessions of an account.

use std::time::{Duration, UNIX_EPOCH};

use askama::Template;

use crate::identity::account_of_person::has_address;
use crate::identity::actions::personal_token::Section;
use crate::identity::device::device;
use crate::identity::outcome::Sessions;
use crate::identity::pages::{Complaint, Filled, Link, Sheet, Site, notice, rendered};
use crate::identity::session::PASSWORD_LOGIN;
use crate::identity::texts::{SessionsTexts, filled as filled_in};
use crate::identity::{Mount, Policy};
use crate::store::{AccountRow, SessionRow};

#[derive(Template)]
#[template(path = "pages/sessions.html")]
struct SessionsPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    sessions: Vec<Row>,
    more: Option<String>,
    logout_all: String,
    tokens: Section,
    words: &'static SessionsTexts,
    lead: String,
    links: Vec<Link>,
}

struct Row {
    device: String,
    when: String,
    /// The provider at which it began.
    way: Option<String>,
    what: String,
    is_current: bool,
    action: String,
}

/// The sessions of an account, and how many recovery codes left.
pub(in crate::identity) fn sessions(
    sessions: Sessions,
    filled: &Filled,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let Sessions { rows, more, current, now, account, tokens } = sessions;
    let texts = filled.texts;
    let words = &texts.sessions;
    let row = |session: SessionRow| {
        let used_at = u64::try_from(session.rotated_at / 1000).unwrap_or(0);
        let created_at = u64::try_from(session.created_at).unwrap_or(0);
        let name = device(&session.user_agent).in_words(words);
        let is_current = current.as_deref() == Some(session.id.as_str());
        // A section that is gone is still known by its name.
        let way = match policy.provider(&session.proof.idp) {
            Some(provider) => Some(provider.settings().title.clone()),
            None if session.proof.idp == PASSWORD_LOGIN => None,
            None => Some(session.proof.idp.clone()),
        };
        Row {
            way: way.map(|name| filled_in(&words.by, &[("name", &name)])),
            when: filled_in(
                &words.when,
                &[
                    ("address", &session.address),
                    ("used", &ago(now.saturating_sub(used_at), words)),
                    ("since", &minute(created_at)),
                ],
            ),
            what: filled_in(&words.end_what, &[("device", &name), ("address", &session.address)]),
            device: name,
            is_current,
            action: if is_current {
                mount.path("/logout")
            } else {
                mount.path(&format!("/sessions/{}", session.id))
            },
        }
    };
    // People who log in only at a provider have no password here.
    let lead = if account.password.is_empty() { &words.lead_at_provider } else { &words.lead };
    let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
    rows.sort_by_key(|row| !row.is_current);
    rendered(&SessionsPage {
        site: Site::new(policy, mount, texts),
        title: &words.title,
        notice: filled.done.as_deref().and_then(|done| notice(done, texts)),
        complaints: Vec::new(),
        sessions: rows,
        more: not_listed(more, words),
        words,
        lead: filled_in(lead, &[("who", who(&account))]),
        logout_all: mount.path("/logout-all"),
        tokens: Section::new(tokens, now, filled, mount),
        links: vec![Link::to_account(filled, mount)],
    })
    .leading_on(!policy.providers.is_empty())
}

/// What an account is called: some providers tell no address.
fn who(account: &AccountRow) -> &str {
    match &account.name {
        Some(name) if !has_address(account) => name,
        _ if !has_address(account) => &account.id,
        _ => &account.email,
    }
}

fn not_listed(more: i64, words: &SessionsTexts) -> Option<String> {
    match more {
        ..=0 => None,
        1 => Some(words.one_more.clone()),
        _ => Some(filled_in(&words.more, &[("count", &more.to_string())])),
    }
}

fn ago(seconds: u64, words: &SessionsTexts) -> String {
    let (count, one, several) = match seconds {
        0..60 => return words.now.clone(),
        60..3600 => (seconds / 60, &words.minute, &words.minutes),
        3600..86_400 => (seconds / 3600, &words.hour, &words.hours),
        _ => (seconds / 86_400, &words.day, &words.days),
    };
    let text = if count == 1 { one } else { several };
    filled_in(text, &[("count", &count.to_string())])
}

/// A date with hour and minute, in UTC: without scripts, the reader's time zone is unknown.
fn minute(unix_seconds: u64) -> String {
    let time = time(unix_seconds).replace('T', " ");
    format!("{} UTC", time.get(..16).unwrap_or_default())
}

/// RFC 3339.
fn time(unix_seconds: u64) -> String {
    humantime::format_rfc3339_seconds(
        UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799)),
    )
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::texts::Language;

    #[test]
    fn times_are_relative_and_rounded_down() {
        for (seconds, wanted) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7199, "1 hour ago"),
            (7200, "2 hours ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(ago(seconds, &Language::English.texts().sessions), wanted);
        }
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(minute(90), "1970-01-01 00:01 UTC");
    }
}
