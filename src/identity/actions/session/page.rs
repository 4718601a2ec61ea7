//! The page that lists the sessions of an account.

use std::time::{Duration, UNIX_EPOCH};

use askama::Template;

use crate::identity::actions::personal_token::Section;
use crate::identity::outcome::Sessions;
use crate::identity::pages::{Complaint, Filled, Link, Sheet, Site, notice, rendered};
use crate::identity::{Mount, Policy};
use crate::store::SessionRow;

#[derive(Template)]
#[template(path = "pages/sessions.html")]
struct SessionsPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    email: &'a str,
    codes: Option<String>,
    sessions: Vec<Row>,
    more: Option<String>,
    logout_all: String,
    tokens: Section,
    links: Vec<Link>,
}

struct Row {
    device: String,
    address: String,
    used: String,
    used_at: String,
    created: String,
    created_at: String,
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
    let Sessions { rows, more, current, now, account, tokens, recovery_codes_left } = sessions;
    let row = |session: SessionRow| {
        let used_at = u64::try_from(session.rotated_at / 1000).unwrap_or(0);
        let created_at = u64::try_from(session.created_at).unwrap_or(0);
        let is_current = current.as_deref() == Some(session.id.as_str());
        Row {
            device: device(&session.user_agent),
            address: session.address,
            used: ago(now.saturating_sub(used_at)),
            used_at: time(used_at),
            created: time(created_at).get(..10).unwrap_or_default().to_owned(),
            created_at: time(created_at),
            is_current,
            action: if is_current {
                mount.path("/logout")
            } else {
                mount.path(&format!("/sessions/{}", session.id))
            },
        }
    };
    let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
    rows.sort_by_key(|row| !row.is_current);
    let mut links = vec![Link {
        before: None,
        text: "Change your password",
        path: mount.path("/password/change"),
    }];
    if policy.totp {
        links.push(Link { before: None, text: "Two-factor login", path: mount.path("/totp") });
    }
    rendered(&SessionsPage {
        site: Site::new(policy, mount),
        title: "Where you are logged in",
        notice: filled.done.as_deref().and_then(notice),
        complaints: Vec::new(),
        email: &account.email,
        codes: recovery_codes_left.map(codes),
        sessions: rows,
        more: not_listed(more),
        logout_all: mount.path("/logout-all"),
        tokens: Section::new(tokens, now, mount),
        links,
    })
}

/// The browser and the operating system, by their usual names, or what the program calls itself.
fn device(user_agent: &str) -> String {
    let first = |names: &[(&str, &'static str)]| {
        names.iter().find(|(mark, _)| user_agent.contains(mark)).map(|(_, name)| *name)
    };
    match (first(&BROWSERS), first(&SYSTEMS)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        _ if user_agent.trim().is_empty() => "A program".to_owned(),
        _ => user_agent.chars().filter(|letter| !letter.is_control()).take(60).collect(),
    }
}

fn not_listed(more: i64) -> Option<String> {
    match more {
        ..=0 => None,
        1 => Some("One more session, used earlier, is not listed.".to_owned()),
        _ => Some(format!("{more} more sessions, used earlier, are not listed.")),
    }
}

fn codes(left: i64) -> String {
    match left {
        0 => "you have no recovery codes left".to_owned(),
        1 => "you have one recovery code left".to_owned(),
        _ => format!("you have {left} recovery codes left"),
    }
}

fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// RFC 3339.
fn time(unix_seconds: u64) -> String {
    humantime::format_rfc3339_seconds(
        UNIX_EPOCH + Duration::from_secs(unix_seconds.min(253_402_300_799)),
    )
    .to_string()
}

/// The part of a user agent that identifies a browser. Each entry also claims to be those below it.
const BROWSERS: [(&str, &str); 8] = [
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS", "Firefox"),
    ("Chrom", "Chrome"),
    ("CriOS", "Chrome"),
    ("Safari/", "Safari"),
];

/// The part of a user agent that identifies a system. Each entry also claims to be those below it.
const SYSTEMS: [(&str, &str); 7] = [
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_their_usual_names() {
        for (user_agent, wanted) in [
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
                "Chrome on Linux",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:140.0) Gecko/20100101 Firefox/140.0",
                "Firefox on macOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
            ),
            ("curl/8.14.1", "curl/8.14.1"),
            ("", "A program"),
        ] {
            assert_eq!(device(user_agent), wanted);
        }
    }

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
            assert_eq!(ago(seconds), wanted);
        }
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
    }
}
