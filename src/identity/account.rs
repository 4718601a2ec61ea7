//! Accounts: who may log in, and as what.

/// Whether a word can be a role of an account: it is stored and told in lists, and must come out of them as it went in.
pub fn is_role(word: &str) -> bool {
    (1..=100).contains(&word.len()) && !word.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}
