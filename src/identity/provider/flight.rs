//! Logins in progress. Nothing about them is stored, so logins that are never finished cost
//! nothing: `state` holds what the login is for, sealed, and one cookie of fixed size holds the ids
//! of the browser's last logins. The secrets of a login are derived from its id.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{constant_time, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A login in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// Random. The cookie names it; nobody else learns it.
    #[serde(rename = "i")]
    pub id: [u8; ID],
    /// When it began, in Unix seconds.
    #[serde(rename = "t")]
    pub began_at: u64,
    /// The name of the provider.
    #[serde(rename = "p")]
    pub provider: String,
    /// Where to go on to: a path, or a URL of a host that shares the login.
    #[serde(rename = "r")]
    pub return_to: String,
    /// The authentication contexts of which one is required; empty: any.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub acr: Vec<String>,
    /// How long ago the person may have proved who they are, in seconds.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u64>,
    /// How often it began again because another tab had overwritten its cookie.
    #[serde(rename = "b", default, skip_serializing_if = "is_zero")]
    pub repeats: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// The ids of a browser's logins in progress, the latest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InFlight(Vec<([u8; ID], u64)>);

/// Seals logins in progress, and derives their secrets.
pub struct Flights {
    seal: Zeroizing<[u8; 32]>,
    secrets: hmac::Key,
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

impl Flights {
    /// Two independent keys.
    pub fn new(seal: Zeroizing<[u8; 32]>, secrets: &[u8]) -> Self {
        Self { seal, secrets: hmac::Key::new(hmac::HMAC_SHA256, secrets) }
    }

    /// A login that begins at `now`, in Unix seconds. `None`: there are no random numbers.
    pub fn begin(&self, provider: &str, return_to: &str, now: u64) -> Option<Flight> {
        let mut id = [0; ID];
        rand::fill(&mut id).ok()?;
        Some(Flight {
            id,
            began_at: now,
            provider: provider.to_owned(),
            return_to: return_to.to_owned(),
            acr: Vec::new(),
            max_age: None,
            repeats: 0,
        })
    }

    /// `state`: the login, sealed.
    pub fn state(&self, flight: &Flight) -> Option<String> {
        self.seal("state", &serde_json::to_vec(flight).ok()?)
    }

    /// The login that a `state` of ours holds. `None`: it is not one of ours, or it began too long
    /// before `now`.
    pub fn open(&self, state: &str, now: u64) -> Option<Flight> {
        let flight: Flight = serde_json::from_slice(&self.unseal("state", state)?).ok()?;
        (now < flight.began_at.saturating_add(LIFETIME)).then_some(flight)
    }

    /// `nonce`: ties the ID token to this login.
    pub fn nonce(&self, flight: &Flight) -> String {
        self.secret("nonce", flight)
    }

    /// `code_verifier` (RFC 7636 §4.1): ties the code to this login.
    pub fn verifier(&self, flight: &Flight) -> String {
        self.secret("code_verifier", flight)
    }

    fn secret(&self, purpose: &str, flight: &Flight) -> String {
        let tag = hmac::sign(&self.secrets, &[purpose.as_bytes(), &[0], &flight.id].concat());
        URL_SAFE_NO_PAD.encode(tag)
    }

    /// The value of the cookie. All values are equally long.
    pub fn cookie(&self, logins: &InFlight) -> Option<String> {
        let mut bytes = Vec::with_capacity(MOST * (ID + 8));
        for (id, began_at) in &logins.0 {
            bytes.extend(id);
            bytes.extend(began_at.to_be_bytes());
        }
        bytes.resize(MOST * (ID + 8), 0);
        self.seal("cookie", &bytes)
    }

    /// What a cookie holds; nothing if it is not one of ours.
    pub fn read_cookie(&self, value: &str, now: u64) -> InFlight {
        let bytes = self.unseal("cookie", value).unwrap_or_default();
        let (entries, _) = bytes.as_chunks::<{ ID + 8 }>();
        let entry = |entry: &[u8; ID + 8]| {
            let (id, began_at) = entry.split_first_chunk::<ID>()?;
            Some((*id, u64::from_be_bytes(began_at.try_into().ok()?)))
        };
        let mut logins: Vec<_> = entries.iter().filter_map(entry).collect();
        logins.retain(|(_, began_at)| now < began_at.saturating_add(LIFETIME));
        InFlight(logins)
    }

    fn seal(&self, place: &str, plain: &[u8]) -> Option<String> {
        let mut sealed = plain.to_vec();
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.seal.as_ref()).ok()?;
        let nonce = key.seal_in_place_append_tag(Aad::from(place.as_bytes()), &mut sealed).ok()?;
        Some(URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &sealed].concat()))
    }

    fn unseal(&self, place: &str, text: &str) -> Option<Vec<u8>> {
        if text.len() > LONGEST {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        if bytes.len() < NONCE {
            return None;
        }
        let mut sealed = bytes.split_off(NONCE);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).ok()?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.seal.as_ref()).ok()?;
        let opened = key.open_in_place(nonce, Aad::from(place.as_bytes()), &mut sealed).ok()?;
        Some(opened.to_vec())
    }
}

impl InFlight {
    /// Adds a login; the oldest one goes if there are too many.
    pub fn add(&mut self, flight: &Flight) {
        self.0.insert(0, (flight.id, flight.began_at));
        self.0.truncate(MOST);
    }

    /// Takes a login out. Returns false if this browser has not begun it.
    pub fn take(&mut self, flight: &Flight) -> bool {
        let before = self.0.len();
        self.0.retain(|(id, _)| constant_time::verify_slices_are_equal(id, &flight.id).is_err());
        self.0.len() < before
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `code_challenge` with the method S256 (RFC 7636 §4.2).
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

/// The longest time for a login at the provider, in seconds.
pub const LIFETIME: u64 = 15 * 60;

/// The number of logins in progress that a browser can have.
const MOST: usize = 8;

/// The longest `state`, in characters: more than the longest path to return to needs.
const LONGEST: usize = 8192;

/// Bytes of an id.
const ID: usize = 16;

/// Bytes of a nonce of AES-GCM.
const NONCE: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn flights() -> Flights {
        Flights::new(Zeroizing::new([1; 32]), &[2; 32])
    }

    #[test]
    fn a_state_is_readable_for_fifteen_minutes_and_only_by_its_maker() {
        let flights = flights();
        let flight = flights.begin("corp", "/a?b=c", 1000).unwrap();
        let state = flights.state(&flight).unwrap();
        assert_eq!(flights.open(&state, 1899), Some(flight.clone()));
        assert_eq!(flights.open(&state, 1900), None);
        let cookie = flights.cookie(&InFlight::default()).unwrap();
        let long = "A".repeat(1_000_000);
        for forged in ["", "A", "AAAA", &state[1..], &format!("{state}AA"), &cookie, &long] {
            assert_eq!(flights.open(forged, 1000), None);
        }
        let other = Flights::new(Zeroizing::new([3; 32]), &[2; 32]);
        assert_eq!(other.open(&state, 1000), None);
        assert_ne!(flights.nonce(&flight), flights.verifier(&flight));
        assert_eq!(flights.verifier(&flight).len(), 43);
        let another = flights.begin("corp", "/a?b=c", 1000).unwrap();
        assert_ne!(flights.nonce(&flight), flights.nonce(&another));
    }

    /// The example of RFC 7636, appendix B.
    #[test]
    fn the_challenge_is_that_of_the_specification() {
        assert_eq!(
            challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }

    #[test]
    fn a_cookie_holds_the_last_eight_logins_in_constant_size() {
        let flights = flights();
        let mut logins = InFlight::default();
        let empty = flights.cookie(&logins).unwrap();
        let begun: Vec<Flight> =
            (0..9).map(|index| flights.begin("corp", "/", 1000 + index).unwrap()).collect();
        for flight in &begun {
            logins.add(flight);
        }
        let cookie = flights.cookie(&logins).unwrap();
        assert_eq!((cookie.len(), empty.len()), (cookie.len(), cookie.len()));
        assert!(cookie.len() < 320, "{}", cookie.len());
        let mut read = flights.read_cookie(&cookie, 1010);
        assert_eq!(read, logins);
        assert!(!read.take(&begun[0]), "the ninth has taken its place");
        assert!(begun[1..].iter().all(|flight| read.take(flight)) && read.is_empty());
        assert!(!read.take(&begun[1]), "it works once");
        let later = flights.read_cookie(&cookie, 1000 + LIFETIME + 7);
        assert_eq!(later.0.len(), 1, "the others are too old");
        assert!(flights.read_cookie("AAAA", 1000).is_empty());
    }
}
