//! The second factor: codes of an authenticator app in addition to the password (TOTP, RFC 6238),
//! and recovery codes in case the app is lost.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use qrcode::{Color, EcLevel, QrCode};
use zeroize::Zeroizing;

use super::link::NoRandom;
use crate::store::{AccountRow, SecondFactor, Store, StoreError};

/// The second factors of all accounts.
#[derive(Debug)]
pub struct SecondFactors {
    store: Store,
    /// Keys the digests of recovery codes.
    key: hmac::Key,
}

/// What a person needs to set up an authenticator app.
pub struct Enrolment {
    /// To type in: base32.
    pub secret: Zeroizing<String>,
    /// To open: `otpauth://totp/…`.
    pub uri: Zeroizing<String>,
    /// To scan: an SVG image.
    pub qr: Zeroizing<String>,
}

/// The result of checking a code at login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The account requires no code.
    NotNeeded,
    /// The code is right, and now used up.
    Right,
    /// The code is missing.
    Missing,
    /// The code is wrong or already used, or follows too many wrong ones.
    Wrong,
}

/// Why a second factor was not set up.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    /// The account already has one.
    #[error("the account already has a second factor")]
    Already,
    /// The sessions of the account have ended since it was read.
    #[error("the sessions of the account have ended in the meantime")]
    Changed,
    /// The code does not prove that the app has the secret.
    #[error("the code is wrong, or no setup is in progress")]
    Code,
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] NoRandom),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Enrolment {
    fn new(secret: &[u8], site: &str, email: &str) -> Self {
        let secret = Zeroizing::new(base32(secret));
        let (site, email) = (percent_encoded(site), percent_encoded(email));
        let uri = Zeroizing::new(format!(
            "otpauth://totp/{site}:{email}?secret={}&issuer={site}",
            *secret
        ));
        let qr = Zeroizing::new(svg(&uri));
        Self { secret, uri, qr }
    }
}

impl SecondFactors {
    /// The second factors in this store.
    pub fn new(store: Store) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, store.recovery_key().as_ref());
        Self { store, key }
    }

    /// Whether logins of an account require a code.
    pub async fn has(&self, account: &str) -> Result<bool, StoreError> {
        Ok(self.store.second_factor(account).await?.is_some_and(|factor| factor.is_confirmed))
    }

    /// How many recovery codes an account has left. `None`: its logins require no code.
    pub async fn recovery_codes_left(&self, account: &str) -> Result<Option<i64>, StoreError> {
        if !self.has(account).await? {
            return Ok(None);
        }
        Ok(Some(self.store.recovery_codes_left(account).await?))
    }

    /// The ids of all accounts whose logins require a code.
    pub async fn owners(&self) -> Result<HashSet<String>, StoreError> {
        Ok(self.store.second_factor_owners().await?.into_iter().collect())
    }

    /// Makes a secret for an account, labelled with its address at `site` in the app. Logins require
    /// no codes until `session` confirms the first one, which it may do for ten minutes.
    pub async fn begin(
        &self,
        account: &AccountRow,
        session: &str,
        site: &str,
        now: Duration,
    ) -> Result<Enrolment, NotEnrolled> {
        let mut secret = Zeroizing::new([0; SECRET]);
        rand::fill(secret.as_mut()).map_err(|_| NoRandom)?;
        let of = (account.id.as_str(), account.generation);
        let now = now.as_secs().cast_signed();
        if self.store.begin_second_factor(of, session, secret.as_ref(), now).await? {
            Ok(Enrolment::new(secret.as_ref(), site, &account.email))
        } else if self.has(&account.id).await? {
            Err(NotEnrolled::Already)
        } else {
            Err(NotEnrolled::Changed)
        }
    }

    /// The secret that this session may still confirm.
    pub async fn begun(
        &self,
        account: &AccountRow,
        session: &str,
        site: &str,
        now: Duration,
    ) -> Result<Enrolment, NotEnrolled> {
        let begun = self.unconfirmed(&account.id, session, now).await?;
        Ok(Enrolment::new(&begun.secret, site, &account.email))
    }

    /// Reads the secret that `session` has begun to set up. Beginning requires the password, so other
    /// sessions cannot continue, and neither can someone who finds this one open later. A secret that
    /// was made while the clock was ahead expires too.
    async fn unconfirmed(
        &self,
        account: &str,
        session: &str,
        now: Duration,
    ) -> Result<SecondFactor, NotEnrolled> {
        let factor = self.store.second_factor(account).await?.ok_or(NotEnrolled::Code)?;
        if factor.is_confirmed {
            return Err(NotEnrolled::Already);
        }
        let (now, most) = (now.as_secs().cast_signed(), SETUP.as_secs().cast_signed());
        let is_recent = (now - most..=now + most).contains(&factor.begun_at);
        if is_recent && factor.begun_in == session { Ok(factor) } else { Err(NotEnrolled::Code) }
    }

    /// Confirms the secret with a code of the app. From now on logins require codes. Returns the
    /// recovery codes, which are shown only once.
    pub async fn confirm(
        &self,
        account: &AccountRow,
        session: &str,
        code: &str,
        now: Duration,
    ) -> Result<Vec<Zeroizing<String>>, NotEnrolled> {
        let factor = self.unconfirmed(&account.id, session, now).await?;
        let step = step_of(code, &factor.secret, now, factor.last_step).ok_or(NotEnrolled::Code)?;
        let (codes, digests) = self.new_codes(&account.id)?;
        let of = (account.id.as_str(), account.generation);
        let now = now.as_secs().cast_signed();
        let confirmed = self.store.confirm_second_factor(of, &factor, step, &digests, now).await?;
        if confirmed { Ok(codes) } else { Err(NotEnrolled::Code) }
    }

    /// Makes new recovery codes, which replace the earlier ones. `None`: logins of the account
    /// require no code.
    pub async fn renew_codes(
        &self,
        account: &AccountRow,
    ) -> Result<Option<Vec<Zeroizing<String>>>, NotEnrolled> {
        let (codes, digests) = self.new_codes(&account.id)?;
        let of = (account.id.as_str(), account.generation);
        if self.store.replace_recovery_codes(of, &digests).await? {
            Ok(Some(codes))
        } else if self.has(&account.id).await? {
            Err(NotEnrolled::Changed)
        } else {
            Ok(None)
        }
    }

    /// New recovery codes and their digests.
    fn new_codes(&self, account: &str) -> Result<(Vec<Zeroizing<String>>, Vec<String>), NoRandom> {
        let codes = (0..RECOVERY_CODES).map(|_| recovery_code()).collect::<Result<Vec<_>, _>>()?;
        let digests = codes.iter().map(|code| self.digest(account, code)).collect();
        Ok((codes, digests))
    }

    /// Checks the code of someone who knows the password of an account. A right code is used up.
    pub async fn check(
        &self,
        account: &str,
        code: Option<&str>,
        now: Duration,
    ) -> Result<Checked, StoreError> {
        let Some(factor) =
            self.store.second_factor(account).await?.filter(|factor| factor.is_confirmed)
        else {
            return Ok(Checked::NotNeeded);
        };
        let Some(code) = code.filter(|code| !code.trim().is_empty()) else {
            return Ok(Checked::Missing);
        };
        // Counted as wrong first: of codes that arrive at once, no more are checked than of codes
        // that arrive in turn.
        let (now_in_seconds, block) = (now.as_secs().cast_signed(), BLOCK.as_secs().cast_signed());
        if !self.store.count_code(account, MOST_WRONG, now_in_seconds, block).await? {
            return Ok(Checked::Wrong);
        }
        let is_right = match step_of(code, &factor.secret, now, factor.last_step) {
            Some(step) => {
                self.store.take_code(account, step, current_step(now) + STEPS_AHEAD).await?
            }
            None => self.store.use_recovery_code(account, &self.digest(account, code)).await?,
        };
        Ok(if is_right { Checked::Right } else { Checked::Wrong })
    }

    /// Removes the second factor of an account. With a generation, does so only while the account has
    /// that one. Returns whether anything was removed.
    pub async fn remove(&self, account: &str, generation: Option<i64>) -> Result<bool, StoreError> {
        self.store.remove_second_factor(account, generation).await
    }

    /// The digest of a recovery code that the store keeps. With 80 random bits, it need not be
    /// slow.
    fn digest(&self, account: &str, code: &str) -> String {
        let plain: String =
            code.chars().filter(char::is_ascii_alphanumeric).take(LONGEST_CODE).collect();
        let tag =
            hmac::sign(&self.key, format!("{account}/{}", plain.to_ascii_uppercase()).as_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(tag)
    }
}

/// The time step of a code: that of `now`, the one before or the one after (RFC 6238 §5.2), but
/// none at or before `last`, unless that was used while the clock was ahead.
fn step_of(code: &str, secret: &[u8], now: Duration, last: i64) -> Option<i64> {
    let digits: String =
        code.chars().filter(|letter| !letter.is_whitespace()).take(LONGEST_CODE).collect();
    let is_code = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    let code: u32 = digits.parse().ok().filter(|_| is_code)?;
    let step = current_step(now);
    let last = if last > step + STEPS_AHEAD { 0 } else { last };
    [step, step - 1, step + 1]
        .into_iter()
        .find(|&step| step > last && code_at(secret, step.cast_unsigned()) == code)
}

fn current_step(now: Duration) -> i64 {
    (now.as_secs() / STEP).cast_signed()
}

/// RFC 4226 §5.3, with HMAC-SHA-1, which every app supports.
fn code_at(secret: &[u8], step: u64) -> u32 {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag.last().copied().unwrap_or_default() & 0x0f);
    let word = tag.iter().skip(at).take(4).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
    (word & 0x7fff_ffff) % 1_000_000
}

/// Sixteen letters and digits in groups of four: 80 random bits.
fn recovery_code() -> Result<Zeroizing<String>, NoRandom> {
    let mut bytes = Zeroizing::new([0; 10]);
    rand::fill(bytes.as_mut()).map_err(|_| NoRandom)?;
    let plain = Zeroizing::new(base32(bytes.as_ref()));
    let groups: Vec<&str> =
        (0..4).filter_map(|group| plain.get(group * 4..group * 4 + 4)).collect();
    Ok(Zeroizing::new(groups.join("-")))
}

/// RFC 4648 §6, for a multiple of five bytes.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5);
    for group in bytes.chunks(5) {
        let word = group.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        let letters = group.len() * 8 / 5;
        for letter in (0..letters).rev() {
            text.push(char::from(BASE32[(word >> (letter * 5)) as usize & 31]));
        }
    }
    text
}

/// Percent-encodes a label or value of an `otpauth:` URI: everything except unreserved characters
/// (RFC 3986 §2.3).
fn percent_encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// A scalable QR code, dark on light whatever the colours of the page: apps cannot scan inverted
/// ones. Its rows are lines with gaps, which take a fifth of the bytes of squares.
fn svg(text: &str) -> String {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::M) else {
        return String::new();
    };
    let (width, quiet) = (code.width(), 4);
    let mut path = String::new();
    for (row, modules) in code.to_colors().chunks(width).enumerate() {
        // Writing into a string cannot fail.
        let _ = write!(path, "M{quiet} {}.5", row + quiet);
        for run in modules.chunk_by(PartialEq::eq) {
            let _ = match run.first() {
                Some(Color::Dark) => write!(path, "h{}", run.len()),
                _ => write!(path, "m{} 0", run.len()),
            };
        }
    }
    let side = width + 2 * quiet;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {side} {side}\" role=\"img\" \
         aria-label=\"QR code for an authenticator app\" shape-rendering=\"crispEdges\">\
         <rect width=\"{side}\" height=\"{side}\" fill=\"#fff\"/><path d=\"{path}\" fill=\"none\" stroke=\"#000\"/></svg>"
    )
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The length of a secret in bytes: the output length of SHA-1 (RFC 4226 §4).
const SECRET: usize = 20;

/// Seconds in a time step, and digits of a code: the values that every app assumes.
const STEP: u64 = 30;
const DIGITS: usize = 6;

/// For how long a secret may be confirmed: long enough to install an app.
const SETUP: Duration = Duration::from_mins(10);

/// Recovery codes per account.
const RECOVERY_CODES: usize = 10;

/// The longest possible code, with separators.
const LONGEST_CODE: usize = 40;

/// Wrong codes in a row after which codes are rejected for a while. An attacker who knows the
/// password needs about eight months for an even chance.
const MOST_WRONG: i64 = 10;
const BLOCK: Duration = Duration::from_mins(15);

/// How far ahead the step of the last code may be, if the clock was right then. The clocks of
/// replicas may differ by a little.
const STEPS_AHEAD: i64 = 4;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;
    use crate::identity::account::{Accounts, NewAccount};
    use crate::store::test_settings;

    #[test]
    fn codes_match_the_test_vectors_of_the_rfcs() {
        // RFC 6238, appendix B, SHA-1: the last six of eight digits.
        let secret = b"12345678901234567890";
        for (seconds, code) in [
            (59, 287_082),
            (1_111_111_109, 81_804),
            (1_111_111_111, 50_471),
            (1_234_567_890, 5_924),
            (2_000_000_000, 279_037),
            (20_000_000_000, 353_130),
        ] {
            assert_eq!(code_at(secret, seconds / STEP), code, "{seconds}");
        }
        // RFC 4226, appendix D.
        for (step, code) in [
            755_224, 287_082, 359_152, 969_429, 338_314, 254_676, 287_922, 162_583, 399_871,
            520_489,
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(code_at(secret, step as u64), code, "{step}");
        }
    }

    #[test]
    fn a_code_is_valid_one_step_early_or_late_and_only_once() {
        let secret = b"12345678901234567890";
        let at = |seconds: u64, code: &str, last: i64| {
            step_of(code, secret, Duration::from_secs(seconds), last)
        };
        for seconds in [30, 59, 60, 89, 0, 29] {
            assert_eq!(at(seconds, "287082", -1), Some(1), "{seconds}");
        }
        assert_eq!(
            (at(90, "287082", -1), at(59, "287082", 1), at(59, "287082", 0)),
            (None, None, Some(1))
        );
        assert_eq!(at(59, " 287 082\n", 0), Some(1));
        for wrong in ["", "28708", "2870820", "+87082", "२८७०८२", "287083", "287082x"] {
            assert_eq!(at(59, wrong, 0), None, "{wrong}");
        }
        // Leading zeros count.
        assert_eq!(
            (at(1_111_111_109, "081804", 0), at(1_111_111_109, "81804", 0)),
            (Some(37_037_036), None)
        );
    }

    const NOW: Duration = Duration::from_hours(500_000);

    /// The second factors in a store, and an account for which the session `s` has begun to set one up,
    /// with its secret.
    async fn begun(folder: &tempfile::TempDir) -> (SecondFactors, AccountRow, Vec<u8>) {
        let store = Store::open(&test_settings(folder.path())).await.unwrap();
        let new = NewAccount::verified("ann@example.com");
        let account = Accounts::new(store.clone(), None).add(new, NOW.as_secs()).await.unwrap();
        let factors = SecondFactors::new(store.clone());
        factors.begin(&account, "s", "site", NOW).await.unwrap();
        let secret = store.second_factor(&account.id).await.unwrap().unwrap().secret.to_vec();
        (factors, account, secret)
    }

    /// The same once the account has one.
    async fn enrolled(folder: &tempfile::TempDir) -> (Arc<SecondFactors>, String, Vec<u8>) {
        let (factors, account, secret) = begun(folder).await;
        let code = code_of(&secret, NOW.saturating_sub(Duration::from_secs(STEP)));
        factors.confirm(&account, "s", &code, NOW).await.unwrap();
        (Arc::new(factors), account.id, secret)
    }

    #[tokio::test]
    async fn a_secret_is_confirmed_soon_and_by_the_session_that_began() {
        let folder = tempfile::tempdir().unwrap();
        let (factors, account, secret) = begun(&folder).await;
        let (early, second) = (NOW.saturating_sub(SETUP), Duration::from_secs(1));
        for (session, at, is_shown) in [
            ("another", NOW, false),
            ("s", NOW + SETUP + second, false),
            // The clock was ahead.
            ("s", early.saturating_sub(second), false),
            ("s", early, true),
            ("s", NOW + SETUP, true),
        ] {
            let begun = factors.begun(&account, session, "site", at).await;
            assert_eq!(begun.is_ok(), is_shown, "{session} {at:?}");
            let code = if is_shown { "no code".to_owned() } else { code_of(&secret, at) };
            let confirmed = factors.confirm(&account, session, &code, at).await;
            assert!(matches!(confirmed, Err(NotEnrolled::Code)), "{session} {at:?}");
        }
        let at = NOW + SETUP;
        factors.confirm(&account, "s", &code_of(&secret, at), at).await.unwrap();
        let again = factors.confirm(&account, "s", &code_of(&secret, at), at).await;
        assert!(matches!(again, Err(NotEnrolled::Already)));
    }

    fn code_of(secret: &[u8], at: Duration) -> String {
        format!("{:06}", code_at(secret, at.as_secs() / STEP))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn codes_at_once_are_guesses_too() {
        let folder = tempfile::tempdir().unwrap();
        let (factors, id, secret) = enrolled(&folder).await;
        let right = code_of(&secret, NOW);
        let wrong = if right == "000000" { "000001" } else { "000000" };
        let mut guesses = JoinSet::new();
        for _ in 0..40 {
            let (factors, id) = (Arc::clone(&factors), id.clone());
            guesses.spawn(async move { factors.check(&id, Some(wrong), NOW).await.unwrap() });
        }
        assert!(guesses.join_all().await.iter().all(|checked| *checked == Checked::Wrong));
        let check = async |code: &str, at| factors.check(&id, Some(code), at).await.unwrap();
        assert_eq!(check(&right, NOW).await, Checked::Wrong);
        // Of ten in a row, the last one may be right.
        let later = NOW + BLOCK;
        for _ in 0..9 {
            assert_eq!(check("x", later).await, Checked::Wrong);
        }
        assert_eq!(check(&code_of(&secret, later), later).await, Checked::Right);
        let later = later + Duration::from_secs(STEP);
        assert_eq!(check(&code_of(&secret, later), later).await, Checked::Right);
    }

    #[tokio::test]
    async fn a_code_from_when_the_clock_was_ahead_uses_no_others_up() {
        let folder = tempfile::tempdir().unwrap();
        let (factors, id, secret) = enrolled(&folder).await;
        for at in [NOW + Duration::from_hours(48), NOW] {
            let code = code_of(&secret, at);
            let check = async || factors.check(&id, Some(&code), at).await.unwrap();
            assert_eq!((check().await, check().await), (Checked::Right, Checked::Wrong));
        }
    }

    #[test]
    fn base32_matches_the_rfc() {
        // RFC 4648 §10; and the secret of RFC 6238 as apps show it.
        assert_eq!((base32(b"fooba").as_str(), base32(b"").as_str()), ("MZXW6YTB", ""));
        assert_eq!(base32(b"12345678901234567890"), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ");
        let code = recovery_code().unwrap();
        assert_eq!((code.len(), code.matches('-').count()), (19, 3));
    }

    #[test]
    fn the_qr_code_is_a_complete_svg() {
        let text = "otpauth://totp/app.example.com:ann%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=app.example.com";
        let image = svg(text);
        assert!(
            image.starts_with("<svg ")
                && image.contains(" role=\"img\" aria-label=\"QR code for an authenticator app\" ")
                && image.ends_with("</svg>")
                && !image.contains("style"),
            "{image}"
        );
        // A page with it is small.
        assert!(image.len() < 6 * 1024, "{}", image.len());

        let code = QrCode::with_error_correction_level(text, EcLevel::M).unwrap();
        let path = image.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
        let mut drawn = Vec::new();
        for (row, lines) in path.split('M').skip(1).enumerate() {
            let lines = lines.replace('h', " h").replace('m', " m");
            let mut steps = lines.split(' ');
            assert_eq!(steps.next(), Some("4"));
            assert_eq!(steps.next(), Some(format!("{}.5", row + 4).as_str()));
            for step in steps.filter(|step| *step != "0") {
                let (kind, length) = step.split_at(1);
                let color = if kind == "h" { Color::Dark } else { Color::Light };
                drawn.extend(std::iter::repeat_n(color, length.parse().unwrap()));
            }
        }
        assert!(drawn == code.to_colors());
    }
}
