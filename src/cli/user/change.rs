//! Commands that invite, change or delete one person.

use super::{
    account_by_email, address, called, check_and_hash, describe_roles, failure, insert,
    new_account, parse_name, read_password, record_gone,
};
use crate::cli::Failure;
use crate::cli::issuer::Issuer;
use crate::clock::Clock;
use crate::identity::account::AccountError;
use crate::identity::addresses::Done;
use crate::identity::link::{HANDED_OVER, INVITATION, LinkToken, Purpose};
use crate::identity::outbox::{MailKind, Outbox};
use crate::identity::{Email, address_of};
use crate::store::AccountRow;

pub(super) async fn invite(
    issuer: &Issuer,
    email: &str,
    roles: &[String],
    name: Option<&str>,
) -> Result<String, Failure> {
    check_passwords(issuer)?;
    let mut new = new_account(issuer, email, roles, name).await?;
    // The mailed link confirms it.
    new.email_verified = false;
    let to = new.email.clone();
    let added = insert(issuer, new).await?;
    let roles = describe_roles(&added.roles);
    if issuer.policy.mail.is_some() {
        mail(issuer, MailKind::Invite, &to).await?;
        return Ok(format!(
            "invited {to} with {roles}; the gateway mails a link that sets the password within 7 days\n"
        ));
    }
    let link = make_link(issuer, &added, INVITATION).await?;
    Ok(format!(
        "invited {to} with {roles}; send this link to its owner, who sets the password with it within 7 days:\n{link}\n"
    ))
}

pub(super) async fn reset_link(issuer: &Issuer, email: &str) -> Result<String, Failure> {
    check_passwords(issuer)?;
    let account = account_by_email(&issuer.accounts, email).await?;
    if account.disabled == 1 {
        return Err(Failure::Other(format!(
            "{0} is disabled, so no link can set its password; first: portcullis user enable {0}",
            called(&account)
        )));
    }
    let link = make_link(issuer, &account, HANDED_OVER).await?;
    issuer.record("password_reset_asked", &account.id).await?;
    Ok(format!("{link}\n"))
}

pub(super) async fn set_password(
    issuer: &Issuer,
    email: &str,
    from_input: bool,
) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    let email = address(&account.email)?;
    let password = read_password(from_input)?;
    let hash = check_and_hash(issuer, &password, &email, account.name.as_deref())?;
    // Typing takes a while, in which a token may have been issued.
    let now = Clock::system().unix_seconds();
    issuer.accounts.set_password(&account, &hash, &issuer.policy, now).await.map_err(|error| {
        match error {
            AccountError::Unknown => Failure::Other(format!(
                "{email} was changed at the same time; its password is as before: run the command again"
            )),
            error => failure(email.as_str())(error),
        }
    })?;
    issuer.record("password_changed", &account.id).await?;
    if issuer.policy.mail.is_some() && address_of(&account).is_some() {
        mail(issuer, MailKind::Changed, &email).await?;
    }
    let email = called(&account);
    Ok(format!("set the password of {email}, and ended every session\n"))
}

pub(super) async fn set_email(issuer: &Issuer, email: &str, new: &str) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    let (old, new) = (address(&account.email)?, address(new)?);
    if old == new {
        return Ok(format!("{old} is already the address of this account\n"));
    }
    let Done { gone, .. } = issuer
        .accounts
        .set_email(&account.id, &new, &issuer.policy, issuer.now)
        .await
        .map_err(|error| match error {
            AccountError::Taken => Failure::Other(format!(
                "{new} already has another account; delete that one first, or choose another address"
            )),
            error => failure(old.as_str())(error),
        })?;
    record_gone(issuer, gone, &new).await?;
    issuer.record("email_changed", &account.id).await?;
    if issuer.policy.mail.is_some() && address_of(&account).is_some() {
        mail(issuer, MailKind::EmailChanged, &old).await?;
    }
    Ok(format!("{} is now {new}\n", called(&account)))
}

pub(super) async fn set_name(issuer: &Issuer, email: &str, name: &str) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    let name = parse_name(name)?;
    issuer
        .accounts
        .set_name(&account.id, name.as_deref(), &issuer.policy, issuer.now)
        .await
        .map_err(failure(&account.email))?;
    issuer.record("name_changed", &account.id).await?;
    Ok(match name {
        Some(name) => format!("{} now has the name {name}\n", called(&account)),
        None => format!("{} now has no name\n", called(&account)),
    })
}

pub(super) async fn delete(issuer: &Issuer, email: &str) -> Result<String, Failure> {
    let account = account_by_email(&issuer.accounts, email).await?;
    issuer
        .accounts
        .delete(&account.id, None, &issuer.policy, issuer.now)
        .await
        .map_err(failure(&account.email))?;
    issuer.record("account_deleted", &account.id).await?;
    Ok(format!("deleted {}, with its sessions; its tokens are revoked\n", called(&account)))
}

/// A link that sets a password is refused where nobody logs in with one.
fn check_passwords(issuer: &Issuer) -> Result<(), Failure> {
    if issuer.policy.password_login {
        return Ok(());
    }
    Err(Failure::Other(
        "`password_login` is false, so nobody can set a password: people get an account when they log in at a provider for the first time"
            .to_owned(),
    ))
}

/// Makes a link that sets the password of an account.
async fn make_link(
    issuer: &Issuer,
    account: &AccountRow,
    lifetime: std::time::Duration,
) -> Result<String, Failure> {
    let token = LinkToken::generate().map_err(|error| Failure::Other(error.to_string()))?;
    issuer.accounts.accept_reset_link(&token, account, lifetime, issuer.now).await?;
    Ok(token.url(&issuer.policy.issuer, Purpose::Reset))
}

/// Queues a mail, which the gateway sends.
async fn mail(issuer: &Issuer, kind: MailKind, to: &Email) -> Result<(), Failure> {
    let outbox = Outbox::new(issuer.store.clone(), Clock::system());
    outbox.enqueue(kind, to, "").await.map_err(|error| {
        Failure::Other(format!("the account is changed, but its owner gets no mail: {error}"))
    })
}
