//! Whether the cookies of a person who comes from a provider are short enough, however many groups
//! they are in.

use uuid::Uuid;

use crate::identity::account_of_person::AccountOfPerson;
use crate::identity::error::IdentityError;
use crate::identity::provider::{LONGEST_COOKIES, NotAllowed, Person, Provider};
use crate::identity::session::REFRESH_TOKEN;
use crate::identity::{Identity, Policy};
use crate::store::LoginProof;

impl Identity {
    /// Refuses a person whose roles do not fit into the cookies of a session. A login that seems to
    /// succeed, with a token that browsers drop or the gateway itself refuses, would be worse.
    pub(super) async fn weighed(
        &self,
        provider: &Provider,
        person: Person,
        policy: &Policy,
    ) -> Result<Person, IdentityError> {
        let roles = person.roles.as_ref().map_or(0, Vec::len);
        // Whatever else is in the token, fewer roles would not help.
        if person.allowed.is_err() || roles == 0 {
            return Ok(person);
        }
        let bytes = self.weight(provider, &person, policy).await?;
        if bytes <= LONGEST_COOKIES {
            return Ok(person);
        }
        Ok(person.refused(NotAllowed::TooManyRoles { roles, bytes }))
    }

    /// The length of the Cookie header that this person would send. Signing the token that they
    /// would get is the only measure that no later claim can make wrong; nobody receives it.
    async fn weight(
        &self,
        provider: &Provider,
        person: &Person,
        policy: &Policy,
    ) -> Result<usize, IdentityError> {
        let now = self.clock.unix_seconds();
        let whose = AccountOfPerson { issuer: &provider.settings().issuer, person };
        let Some(account) = self.accounts.expected(&whose, now).await? else { return Ok(0) };
        let proof = LoginProof {
            idp: provider.settings().name.to_string(),
            acr: person.acr.clone(),
            auth_time: person.auth_time.unwrap_or(0).cast_signed(),
        };
        let sid = Uuid::nil().to_string();
        let minted = self.keys.mint(policy, &account, (&sid, &proof), now).await?;
        let names = policy.cookies.access.len() + policy.cookies.session.len();
        Ok(names + "=; =".len() + minted.token.len() + REFRESH_TOKEN + LOGINS)
    }
}

/// The length of the cookie of logins in progress, with its name: somebody who is logged in may be
/// led to the provider once more, to prove more.
const LOGINS: usize = 320;
