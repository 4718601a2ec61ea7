//! The pages that set up a second factor.

use askama::Template;

use super::{Enrolment, RecoveryCodes};
use crate::identity::pages::{
    Complaint, Content, Field, Filled, Form, Link, Sheet, Site, no_code, rendered, wrong_code,
};
use crate::identity::texts::{SecondFactorTexts, Texts};
use crate::identity::{Mount, Policy};
use crate::reason::Reason;

#[derive(Template)]
#[template(path = "pages/totp.html")]
struct EnrolmentPage<'a> {
    site: Site<'a>,
    title: &'a str,
    notice: Option<&'a str>,
    complaints: Vec<Complaint>,
    /// An image that we generate. It contains only lines, no text that anyone typed.
    qr: &'a str,
    words: &'static SecondFactorTexts,
    code: &'static str,
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
    words: &'static SecondFactorTexts,
    codes: Vec<String>,
    links: Vec<Link>,
}

/// The page with the secret to scan and a field for the first code. `refused`: why the last code
/// was rejected.
pub(in crate::identity) fn enrolment(
    enrolment: &Enrolment,
    refused: Option<Reason>,
    texts: &'static Texts,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    let wrong = refused.map(|reason| match reason {
        Reason::LoginFailed => wrong_code(texts),
        _ => no_code(texts),
    });
    // Base32 is ASCII. Groups of four are easier to type correctly.
    let groups: Vec<String> = enrolment
        .secret
        .as_bytes()
        .chunks(4)
        .map(|group| String::from_utf8_lossy(group).into_owned())
        .collect();
    rendered(&EnrolmentPage {
        site: Site::new(policy, mount, texts),
        title: &texts.second_factor.on_title,
        notice: None,
        wrong: wrong.as_ref().map(|complaint| complaint.text.clone()),
        complaints: wrong.into_iter().collect(),
        qr: &enrolment.qr,
        words: &texts.second_factor,
        code: &texts.login.code,
        secret: groups.join(" "),
        action: mount.path("/totp/confirm"),
        links: vec![Link { before: None, text: &texts.profile.back, path: mount.path("/account") }],
    })
}

/// The page that shows the recovery codes.
pub(in crate::identity) fn recovery_codes(
    codes: RecoveryCodes,
    notice: Option<&'static str>,
    texts: &'static Texts,
    policy: &Policy,
    mount: &Mount,
) -> Sheet {
    rendered(&CodesPage {
        site: Site::new(policy, mount, texts),
        title: &texts.second_factor.codes_title,
        notice,
        complaints: Vec::new(),
        words: &texts.second_factor,
        codes: codes.recovery_codes,
        links: vec![Link {
            before: None,
            text: &texts.second_factor.saved,
            path: mount.path("/account"),
        }],
    })
}

/// The page that starts the setup.
pub(in crate::identity) fn totp_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.second_factor;
    let fields = vec![Field::password("current_password", &filled.texts.login.password).focused()];
    Content {
        title: &words.on_title,
        lead: Some(words.on_lead.clone()),
        ways: Vec::new(),
        forms: vec![Form::new(mount, "/totp", fields, &words.next).of_account(filled)],
        links: vec![Link::to_account(filled, mount)],
    }
}

/// The page for the first code. Recovery codes do not exist until it is accepted.
pub(in crate::identity) fn confirm_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.second_factor;
    let hint = Some(words.app_hint.clone());
    let code = Field { hint, inputmode: Some("numeric"), ..Field::code(filled).focused() };
    let again = Link { before: None, text: &words.start_again, path: mount.path("/totp") };
    Content {
        title: &words.on_title,
        lead: None,
        ways: Vec::new(),
        forms: vec![Form::new(mount, "/totp/confirm", vec![code], &words.turn_on)],
        links: vec![again, Link::to_account(filled, mount)],
    }
}

/// The page that makes new recovery codes.
pub(in crate::identity) fn codes_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.second_factor;
    let fields = vec![
        Field::password("current_password", &filled.texts.login.password).focused(),
        Field::code(filled),
    ];
    Content {
        title: &words.renew_title,
        lead: Some(words.renew_lead.clone()),
        ways: Vec::new(),
        forms: vec![Form::new(mount, "/totp/codes", fields, &words.renew).of_account(filled)],
        links: vec![Link::to_account(filled, mount)],
    }
}

/// The page that turns the second factor off.
pub(in crate::identity) fn remove_page(filled: &Filled, mount: &Mount) -> Content {
    let words = &filled.texts.second_factor;
    let fields = vec![
        Field::password("current_password", &filled.texts.login.password).focused(),
        Field::code(filled),
    ];
    let form = Form::new(mount, "/totp/remove", fields, &words.turn_off).of_account(filled);
    Content {
        title: &words.off_title,
        lead: Some(words.off_lead.clone()),
        ways: Vec::new(),
        forms: vec![Form { look: "danger", ..form }],
        links: vec![Link::to_account(filled, mount)],
    }
}
