//! The pages that set a second factor up.

use askama::Template;

use super::forms::Link;
use super::words::{Complaint, no_code, wrong_code};
use super::{Sheet, Site, rendered};
use crate::identity::bodies::{Enrolment, RecoveryCodes};
use crate::identity::{Mount, Policy};

#[derive(Template)]
#[template(path = "pages/totp.html")]
struct EnrolmentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    /// An image of ours, made of nothing that anybody typed but squares.
    qr: &'a str,
    secret: String,
    action: String,
    /// What is wrong with the code that was sent.
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

/// What to scan, and where to show that it was.
pub fn enrolment(enrolment: &Enrolment, policy: &Policy, mount: &Mount) -> Sheet {
    enrolment_page(enrolment, Vec::new(), policy, mount)
}

/// The same once more: the code was wrong, or there was none.
pub fn enrolment_again(
    enrolment: &Enrolment,
    is_wrong: bool,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    enrolment_page(enrolment, vec![if is_wrong { wrong_code() } else { no_code() }], policy, mount)
}

fn enrolment_page(
    enrolment: &Enrolment,
    complaints: Vec<Complaint>,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    // Base32 is ASCII: in groups of four it is typed with fewer mistakes.
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
        wrong: complaints.first().map(|complaint| complaint.text.clone()),
        complaints,
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

/// The codes for the day when the app is lost.
pub fn recovery_codes(codes: RecoveryCodes, policy: &Policy, mount: &Mount) -> Sheet {
    rendered(&CodesPage {
        site: Site::new(policy, mount),
        title: "Keep your recovery codes",
        notice: Some("Two-factor login is on."),
        complaints: Vec::new(),
        codes: codes.recovery_codes,
        links: vec![Link { before: None, text: "I have kept them", path: mount.path("/sessions") }],
    })
}
