//! The accounts of people who log in at providers: found by (issuer, subject), made at the first
//! login, and kept as the provider says.

use uuid::Uuid;

use super::account::{AccountError, Accounts, NewAccount};
use super::addresses::unconfirmed;
use super::error::{IdentityError, NoLogin};
use super::provider::Person;
use super::{Email, Policy};
use crate::store::{AccountChange, AccountRow, StoreError, Unconfirmed};
use crate::telemetry::log::AUDIT;

/// A person of a provider.
#[derive(Clone, Copy, Debug)]
pub(super) struct AccountOfPerson<'a> {
    /// The `iss` of the provider.
    pub(super) issuer: &'a str,
    /// What the provider says.
    pub(super) person: &'a Person,
}

impl Accounts {
    /// The account of a person.
    pub(super) async fn of_person(
        &self,
        whose: &AccountOfPerson<'_>,
    ) -> Result<Option<AccountRow>, StoreError> {
        self.store.account_of_person(whose.issuer, &whose.person.subject).await
    }

    /// Makes the account of a person, at `now` in Unix seconds. It has no password. An
    /// unconfirmed registration gives way, if the provider has verified the address. `None`: the
    /// person has an account by now, or the address is taken.
    pub(super) async fn add_person(
        &self,
        whose: &AccountOfPerson<'_>,
        policy: &Policy,
        now: u64,
    ) -> Result<Option<AccountRow>, StoreError> {
        let Some(account) = first_row(whose.person, now) else { return Ok(None) };
        let unconfirmed =
            if whose.person.email_verified { unconfirmed(policy, now) } else { Unconfirmed::Stays };
        let person = (whose.issuer, whose.person.subject.as_str());
        let added = self.store.insert_account_over(&account, Some(person), &unconfirmed).await?;
        Ok(added.ok().map(|gone| {
            self.gone(gone, policy, now);
            account
        }))
    }

    /// The account of a person as it will be once their roles are kept. `None`: no address can be
    /// made up for a new one.
    pub(super) async fn expected(
        &self,
        whose: &AccountOfPerson<'_>,
        now: u64,
    ) -> Result<Option<AccountRow>, StoreError> {
        let person = whose.person;
        let Some(mut account) = self.of_person(whose).await? else {
            return Ok(first_row(person, now));
        };
        if let Some(roles) = &person.roles {
            account.roles = roles.join(" ");
        }
        if account.password.is_empty() {
            account.name = person.name.clone().or(account.name);
            if let Some(email) = &person.email {
                email.as_str().clone_into(&mut account.email);
            }
        }
        Ok(Some(account))
    }

    /// Lets a person log in to an existing account, at `now` in Unix seconds: see
    /// [`Store::link_person`].
    pub(super) async fn link_person(
        &self,
        whose: &AccountOfPerson<'_>,
        account: &AccountRow,
        began: i64,
        now: u64,
    ) -> Result<bool, StoreError> {
        let person = (whose.issuer, &*whose.person.subject);
        self.store.link_person(&account.id, person, began, now.cast_signed()).await
    }

    /// Gives an account what the provider says: the roles; and name and address, unless the account also
    /// has a password, so that its owner manages them here.
    ///
    /// # Errors
    /// As [`Accounts::bring_roles`].
    pub(super) async fn bring_up_to_date(
        &self,
        account: AccountRow,
        (person, began): (&Person, i64),
        policy: &Policy,
        now: u64,
    ) -> Result<AccountRow, IdentityError> {
        let mut account = self.bring_roles(account, (person, began), policy, now).await?;
        if !account.password.is_empty() {
            return Ok(account);
        }
        if person.name.is_some() && person.name != account.name {
            self.rename(&account.id, person.name.as_deref()).await?;
            account.name.clone_from(&person.name);
        }
        if let Some(email) = person.email.as_ref().filter(|_| person.email_verified)
            && email.as_str() != account.email
        {
            match self.set_email(&account.id, email, policy, now).await {
                Ok(_) => {
                    email.as_str().clone_into(&mut account.email);
                    account.email_verified = 1;
                }
                // Whoever has the address here keeps it.
                Err(AccountError::Taken) => {
                    tracing::warn!(target: AUDIT, { account = account.id, reason = "address_taken" }, "email_not_changed");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(account)
    }

    /// Gives an account the roles that the provider says, which takes effect at once: what was issued
    /// with other roles is revoked, and sessions continue.
    ///
    /// `began`: the number of the last revocation when the provider was asked.
    ///
    /// # Errors
    /// [`NoLogin::Changed`] if the account got other roles since the provider was asked: its answer is
    /// perhaps the older one.
    pub(super) async fn bring_roles(
        &self,
        mut account: AccountRow,
        (person, began): (&Person, i64),
        policy: &Policy,
        now: u64,
    ) -> Result<AccountRow, IdentityError> {
        if let Some(roles) = &person.roles
            && !has(&account, roles)
        {
            let joined = roles.join(" ");
            let change = AccountChange::Roles { roles: &joined, began };
            match self.change(&account.id, change, policy, now).await {
                Ok(()) => account.roles = joined,
                Err(AccountError::Unknown) => {
                    // Another tab may have brought the same roles.
                    let current = self.by_id(&account.id).await?;
                    let current = current.filter(|current| has(current, roles));
                    account = current.ok_or(IdentityError::Login(NoLogin::Changed))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(account)
    }
}

/// Whether an account has these roles, which are in order, and no others.
fn has(account: &AccountRow, roles: &[String]) -> bool {
    let mut current: Vec<&str> = account.roles.split_whitespace().collect();
    current.sort_unstable();
    current == *roles
}

/// The account of a person who logs in for the first time.
fn first_row(person: &Person, now: u64) -> Option<AccountRow> {
    let new = NewAccount {
        email: person.email.clone().or_else(no_address)?,
        name: person.name.clone(),
        password: None,
        roles: person.first_roles.clone(),
        email_verified: person.email_verified,
    };
    Some(new.into_row(now))
}

/// What stands for the address of an account whose provider told none: the column is unique and
/// never empty. No mail reaches it (RFC 2606 §2).
fn no_address() -> Option<Email> {
    Email::parse(&format!("{}@{NO_ADDRESS}", Uuid::new_v4().simple())).ok()
}

/// Whether an account has an address, rather than what stands for one.
pub(super) fn has_address(account: &AccountRow) -> bool {
    account.email.rsplit_once('@').is_none_or(|(_, domain)| domain != NO_ADDRESS)
}

/// The address of an account, if it has one.
pub fn address_of(account: &AccountRow) -> Option<&str> {
    has_address(account).then_some(&*account.email)
}

/// Whether an account has an address that was shown to belong to its owner.
pub fn is_verified(account: &AccountRow) -> bool {
    has_address(account) && account.email_verified == 1
}

/// Whether an account has a password that somebody else than the owner of its address may have chosen.
/// Invited people confirm the address when they choose one, and providers answer for their people.
pub fn is_unconfirmed(account: &AccountRow) -> bool {
    account.email_verified == 0 && !account.password.is_empty()
}

const NO_ADDRESS: &str = "no-address.invalid";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::policy::tests::policy;
    use crate::store::{Store, test_settings};

    fn person(role: &str) -> Person {
        Person {
            subject: "u-1".into(),
            email: None,
            email_verified: false,
            name: None,
            roles: Some(vec![role.into()]),
            first_roles: vec![role.into()],
            acr: String::new(),
            auth_time: None,
            sid: None,
            allowed: Ok(()),
        }
    }

    /// The provider is asked about a person by a login and, a little later, by a check of another
    /// session. The answers arrive in the other order.
    #[tokio::test]
    async fn an_older_answer_does_not_bring_back_roles() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let (accounts, policy) = (Accounts::new(store.clone(), None), policy());
        let (before, after) = (person("admin"), person("user"));
        let whose = AccountOfPerson { issuer: "https://login.test", person: &before };
        let account = accounts.add_person(&whose, &policy, 100).await.unwrap().unwrap();
        let keep = async |person: &Person, began| {
            accounts.bring_up_to_date(account.clone(), (person, began), &policy, 200).await
        };
        let began = store.last_revocation().await.unwrap();
        assert_eq!(keep(&after, began).await.unwrap().roles, "user");
        let older = accounts.of_person(&whose).await.unwrap().unwrap();
        let older = accounts.bring_up_to_date(older, (&before, began), &policy, 200).await;
        assert!(matches!(older, Err(IdentityError::Login(NoLogin::Changed))), "{older:?}");
        // Another tab brings the same, and has read the account before.
        assert_eq!(keep(&after, began).await.unwrap().roles, "user");
        assert_eq!(accounts.of_person(&whose).await.unwrap().unwrap().roles, "user");
        let began = store.last_revocation().await.unwrap();
        let account = accounts.of_person(&whose).await.unwrap().unwrap();
        let given = accounts.bring_up_to_date(account, (&before, began), &policy, 200).await;
        assert_eq!(given.unwrap().roles, "admin", "the provider was asked later");
    }
}
