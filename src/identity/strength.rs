//! Password rules in the spirit of NIST SP 800-63B: long enough and not among the first guesses,
//! but no rules about kinds of characters.

use zeroize::Zeroizing;
use zxcvbn::feedback::{Feedback, Warning};
use zxcvbn::matching::patterns::MatchPattern;
use zxcvbn::{Match, Score, zxcvbn};

use super::password::{LONGEST_PASSWORD, Password};

/// Why a password was rejected. `Display` is a message for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectedPassword {
    /// Fewer characters than configured.
    #[error("The password is too short. Use at least {least} characters.")]
    TooShort {
        /// `password_min_length`.
        least: usize,
    },
    /// The current one.
    #[error("The new password is the same as the current one. Choose another one.")]
    Same,
    /// Longer than anyone types.
    #[error("The password is too long. Use at most {LONGEST_PASSWORD} bytes.")]
    TooLong,
    /// One of the first guesses.
    #[error(
        "This password is one of the most common ones. Use a few unrelated words, or a password manager."
    )]
    Common,
    /// Little more than the owner's name or e-mail address.
    #[error(
        "The password is based on your name, your e-mail address or the name of this site. Use a few words that have nothing to do with you."
    )]
    Personal,
    /// A keyboard row, a date, a repetition, …
    #[error(
        "The password is easy to guess: {0} Add a few unrelated words, or use a password manager."
    )]
    Guessable(Weakness),
}

/// What makes a password easy to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// `qwertzuiop`.
    Keyboard,
    /// `aaaaaaaa`, `abcabcabc`.
    Repetition,
    /// `abcdefgh`, `87654321`.
    Sequence,
    /// `24.12.1990`.
    Date,
    /// `elizabeth`.
    Word,
    /// Anything else.
    Short,
}

impl std::fmt::Display for Weakness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keyboard => "it follows a row of keys.",
            Self::Repetition => "it repeats itself.",
            Self::Sequence => "it follows the alphabet or a number sequence.",
            Self::Date => "it is a year or a date.",
            Self::Word => "it is little more than a word or a name.",
            Self::Short => "too much of it is predictable.",
        })
    }
}

/// Checks a new password. `personal` holds the owner's address and name and the site's name, which
/// an attacker also knows.
///
/// This takes milliseconds (`benches/password.rs`), so run it on a thread that can wait.
pub fn check_strength(
    password: &Password,
    least: usize,
    personal: &[&str],
) -> Result<(), RejectedPassword> {
    if password.is_too_long() {
        return Err(RejectedPassword::TooLong);
    }
    let password = password.folded();
    if password.chars().count() < least {
        return Err(RejectedPassword::TooShort { least });
    }
    let known: Vec<String> = personal
        .iter()
        .flat_map(|text| {
            let parts = text.split(|letter: char| letter == '@' || letter.is_whitespace());
            std::iter::once(*text)
                .chain(parts)
                .chain(text.split(|letter: char| !letter.is_alphanumeric()))
        })
        .filter(|word| word.chars().count() >= SHORTEST_WORD)
        .map(|word| head(word).to_lowercase())
        .take(MOST_WORDS)
        .collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let estimate = zxcvbn(&with_few_signs(head(password)), &known);
    if estimate.score() >= ENOUGH {
        return Ok(());
    }
    Err(match estimate.feedback().and_then(Feedback::warning) {
        Some(
            Warning::ThisIsATop10Password
            | Warning::ThisIsATop100Password
            | Warning::ThisIsACommonPassword,
        ) => RejectedPassword::Common,
        _ if is_personal(estimate.sequence(), &known) => RejectedPassword::Personal,
        warning => RejectedPassword::Guessable(weakness(warning)),
    })
}

/// Whether someone who knows these words would find one of them in the password.
fn is_personal(found: &[Match], known: &[&str]) -> bool {
    found.iter().any(|found| match &found.pattern {
        MatchPattern::Dictionary(word) => known.contains(&word.matched_word.as_str()),
        MatchPattern::Repeat(repeated) => is_personal(&repeated.base_matches, known),
        _ => false,
    })
}

/// The estimate tries every letter that a symbol may stand for, in all combinations: with many
/// kinds of symbols there are hundreds, and each costs as much as the rest. If there are many,
/// those that stand for the same letter are treated as one.
fn with_few_signs(head: &str) -> Zeroizing<String> {
    let mut kinds: Vec<char> = head.chars().filter(|letter| SIGNS.contains(*letter)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() <= MOST_SIGNS {
        return Zeroizing::new(head.to_owned());
    }
    let one_of_each = head.chars().map(|letter| match letter {
        '@' => '4',
        '{' | '[' | '<' => '(',
        '9' => '6',
        '!' | '|' => '1',
        '$' => '5',
        '+' => '7',
        other => other,
    });
    Zeroizing::new(one_of_each.collect())
}

/// The part of a text that is checked.
fn head(text: &str) -> &str {
    text.char_indices().nth(JUDGED).map_or(text, |(end, _)| &text[..end])
}

fn weakness(warning: Option<Warning>) -> Weakness {
    match warning {
        Some(
            Warning::StraightRowsOfKeysAreEasyToGuess
            | Warning::ShortKeyboardPatternsAreEasyToGuess,
        ) => Weakness::Keyboard,
        Some(
            Warning::RepeatsLikeAaaAreEasyToGuess
            | Warning::RepeatsLikeAbcAbcAreOnlySlightlyHarderToGuess,
        ) => Weakness::Repetition,
        Some(Warning::SequencesLikeAbcAreEasyToGuess) => Weakness::Sequence,
        Some(Warning::RecentYearsAreEasyToGuess | Warning::DatesAreOftenEasyToGuess) => {
            Weakness::Date
        }
        Some(
            Warning::ThisIsSimilarToACommonlyUsedPassword
            | Warning::AWordByItselfIsEasyToGuess
            | Warning::NamesAndSurnamesByThemselvesAreEasyToGuess
            | Warning::CommonNamesAndSurnamesAreEasyToGuess,
        ) => Weakness::Word,
        _ => Weakness::Short,
    }
}

/// More than a million guesses: with the login limits, years per account.
const ENOUGH: Score = Score::Two;

/// The number of characters that are checked. The cost of the estimate grows faster than the
/// length, which an attacker controls.
const JUDGED: usize = 32;

/// The symbols that the estimate reads as letters, and how many kinds of them it gets unchanged:
/// more than any commonly guessed password uses.
const SIGNS: &str = "4@8({[<369&#!1/|0$5+7%2";
const MOST_SIGNS: usize = 8;

/// The shortest personal word that counts, in characters.
const SHORTEST_WORD: usize = 3;

/// The largest number of personal words.
const MOST_WORDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(password: &str) -> Result<(), RejectedPassword> {
        check_strength(
            &Password::new(password.to_owned()),
            8,
            &["grace.hopper@navy.example", "Grace Hopper", "app.example.com"],
        )
    }

    #[test]
    fn weak_passwords_are_rejected_with_a_reason() {
        for (password, expected) in [
            ("", RejectedPassword::TooShort { least: 8 }),
            ("a1!B2?c", RejectedPassword::TooShort { least: 8 }),
            // Seven characters of three bytes each, and eight that fold to four.
            ("日本語日本語日", RejectedPassword::TooShort { least: 8 }),
            ("e\u{301}e\u{301}e\u{301}e\u{301}", RejectedPassword::TooShort { least: 8 }),
            (&"x".repeat(1025), RejectedPassword::TooLong),
            ("password", RejectedPassword::Common),
            ("12345678", RejectedPassword::Common),
            ("ｐａｓｓｗｏｒｄ", RejectedPassword::Common),
            ("grace.hopper", RejectedPassword::Personal),
            ("grace.hopper@navy.example", RejectedPassword::Personal),
            ("p4$$w0rd", RejectedPassword::Guessable(Weakness::Word)),
            ("aaaaaaaaaa", RejectedPassword::Guessable(Weakness::Repetition)),
            (&"a".repeat(1000), RejectedPassword::Guessable(Weakness::Repetition)),
            ("abcdefghijklmnop", RejectedPassword::Guessable(Weakness::Sequence)),
            ("24.12.1990", RejectedPassword::Guessable(Weakness::Date)),
        ] {
            assert_eq!(verdict(password), Err(expected), "{password}");
        }
        assert_eq!(
            RejectedPassword::Guessable(Weakness::Keyboard).to_string(),
            "The password is easy to guess: it follows a row of keys. Add a few unrelated words, or use a \
             password manager."
        );
    }

    #[test]
    fn passwords_that_are_hard_to_guess_are_accepted() {
        for password in [
            "correct horse battery staple",
            "zV9qLw2k",
            "nur kleinbuchstaben hier",
            "пароль который никто не знает",
            "日本語の長い合言葉",
            "4@8({[<369&#!1/|0$5+7%2",
        ] {
            assert_eq!(verdict(password), Ok(()), "{password}");
        }
        assert_eq!(verdict(&"The quick brown fox. ".repeat(48)), Ok(()));
    }
}
