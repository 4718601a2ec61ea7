//! Proof that somebody has just entered the password of an account, while the page asks for a code.
//! It opens no session by itself: each login also uses up a code.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::store::{AccountRow, Store};

/// Makes and reads tickets. Nothing is stored.
#[derive(Debug)]
pub(super) struct Tickets(hmac::Key);

/// A ticket, as the form of the page holds it.
#[derive(Clone)]
pub struct Ticket(String);

impl Tickets {
    pub(super) fn new(store: &Store) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, store.ticket_key().as_ref()))
    }

    /// A ticket for an account whose password was entered at `now`. `None`: its id is not one that
    /// we made.
    pub(super) fn issue(&self, account: &AccountRow, now: u64) -> Option<Ticket> {
        let id = Uuid::parse_str(&account.id).ok()?;
        let mut bytes = id.as_bytes().to_vec();
        bytes.extend(account.generation.to_be_bytes());
        bytes.extend(now.saturating_add(LIFETIME.as_secs()).to_be_bytes());
        let tag = hmac::sign(&self.0, &bytes);
        bytes.extend(tag.as_ref());
        Some(Ticket(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The id and the generation of the account that a valid ticket is for.
    pub(super) fn read(&self, ticket: &str, now: u64) -> Option<(String, i64)> {
        let bytes = URL_SAFE_NO_PAD.decode(ticket).ok()?;
        let (said, tag) = bytes.split_at_checked(16 + 8 + 8)?;
        hmac::verify(&self.0, said, tag).ok()?;
        let (id, rest) = said.split_first_chunk::<16>()?;
        let (generation, expires) = rest.split_first_chunk::<8>()?;
        let expires = u64::from_be_bytes(expires.try_into().ok()?);
        // One that was made while the clock was ahead does not last until that date.
        if expires <= now || expires > now.saturating_add(2 * LIFETIME.as_secs()) {
            return None;
        }
        Some((Uuid::from_bytes(*id).to_string(), i64::from_be_bytes(*generation)))
    }
}

impl Ticket {
    /// For the form.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket([secret])")
    }
}

/// Long enough to find the phone.
const LIFETIME: Duration = Duration::from_mins(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_account_as_it_is_for_five_minutes() {
        let tickets = Tickets(hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]));
        let id = Uuid::new_v4().to_string();
        let account = AccountRow {
            id: id.clone(),
            email: String::new(),
            name: None,
            password: String::new(),
            roles: String::new(),
            disabled: 0,
            email_verified: 0,
            generation: 3,
            not_before: 0,
            created_at: 0,
            last_login_at: None,
        };
        let ticket = tickets.issue(&account, 1000).unwrap();
        assert_eq!(tickets.read(ticket.expose(), 1299), Some((id, 3)));
        assert_eq!(tickets.read(ticket.expose(), 1300), None);
        let others = Tickets(hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]));
        assert_eq!(others.read(ticket.expose(), 1000), None);
        for broken in ["", "AAAA", &ticket.expose()[1..]] {
            assert_eq!(tickets.read(broken, 1000), None);
        }
        assert!(!format!("{ticket:?}").contains(ticket.expose()));
    }
}
