//! The pages that set up a second factor.

use askama::Template;

use super::{Enrolment, RecoveryCodes};
use crate::identity::pages::{
    Complaint, Content, Field, Filled, Form, Link, Sheet, Site, no_code, rendered, wrong_code,
};
use crate::identity::{Mount, Policy};
use crate::reason::Reason;

#[derive(Template)]
#[template(path = "pages/totp.html")]
struct EnrolmentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    /// An image that we generate. It contains only squares, no text that anyone typed.
    qr: &'a str,
    secret: String,
    action: String,
    /// Why the code was rejected.
    wrong: Option<String>,
    links: Vec<Link>,
}

#[derive(Template)]
#[template(path = "pages/codes.html")]
struct CodesPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    codes: Vec<String>,
    links: Vec<Link>,
}

/// The page with the secret to scan and a field for the first code. `refused`: why the last code
/// was rejected.
pub(in crate::identity) fn enrolment(
    enrolment: &Enrolment,
    refused: Option<Reason>,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let wrong = refused.map(|reason| match reason {
        Reason::LoginFailed => wrong_code(),
        _ => no_code(),
    });
    // Base32 is ASCII. Groups of four are easier to type correctly.
    let groups: Vec<String> = enrolment
        .secret
        .as_bytes()
        .chunks(4)
        .map(|group| String::from_utf8_lossy(group).into_owned())
        .collect();
    rendered(&EnrolmentPage {
        site: Site::new(policy, mount),
        title: "Turn on two-factor login",
        notice: None,
        wrong: wrong.as_ref().map(|complaint| complaint.text.clone()),
        complaints: wrong.into_iter().collect(),
        qr: &enrolment.qr,
        secret: groups.join(" "),
        action: mount.path("/totp/confirm"),
        links: vec![Link {
            before: None,
            text: "Back to your sessions",
            path: mount.path("/sessions"),
        }],
    })
}

/// The page that shows the recovery codes.
pub(in crate::identity) fn recovery_codes(
    codes: RecoveryCodes,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    rendered(&CodesPage {
        site: Site::new(policy, mount),
        title: "Save your recovery codes",
        notice: Some("Two-factor login is on."),
        complaints: Vec::new(),
        codes: codes.recovery_codes,
        links: vec![Link {
            before: None,
            text: "I have saved them",
            path: mount.path("/sessions"),
        }],
    })
}

/// The page that starts the setup.
pub(in crate::identity) fn totp_page(filled: &Filled, mount: &Mount) -> Content {
    let fields = vec![Field::password("current_password", "Password").focused()];
    let lead = "With two-factor login, you also need a code from an authenticator app to log in. Enter your password to begin.";
    Content {
        title: "Turn on two-factor login",
        lead: Some(lead.to_owned()),
        forms: vec![Form::new(mount, "/totp", fields, "Continue").of_account(filled)],
        links: vec![Link::to_sessions(mount)],
    }
}

/// The page for the first code. Recovery codes do not exist until it is accepted.
pub(in crate::identity) fn confirm_page(mount: &Mount) -> Content {
    let hint = Some("The six digits that your authenticator app shows.".to_owned());
    let code = Field { hint, inputmode: Some("numeric"), ..Field::code().focused() };
    let again = Link { before: None, text: "Start again", path: mount.path("/totp") };
    Content {
        title: "Turn on two-factor login",
        lead: None,
        forms: vec![Form::new(mount, "/totp/confirm", vec![code], "Turn on")],
        links: vec![again, Link::to_sessions(mount)],
    }
}

/// The page that turns the second factor off.
pub(in crate::identity) fn remove_page(filled: &Filled, mount: &Mount) -> Content {
    let fields = vec![Field::password("current_password", "Password").focused(), Field::code()];
    let form = Form::new(mount, "/totp/remove", fields, "Turn off").of_account(filled);
    Content {
        title: "Turn off two-factor login",
        lead: Some("Your password alone will then be enough to log in.".to_owned()),
        forms: vec![Form { look: "danger", ..form }],
        links: vec![Link::to_sessions(mount)],
    }
}
