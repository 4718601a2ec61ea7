//! Other spellings of the names of fields, which some application reads as the same.

/// What separates the words of a name, for one proxy or application or another: every character
/// that a name may have (RFC 9110 §5.6.2), other than letters and digits.
pub(super) const SIGNS: [&str; 15] =
    ["-", "_", ".", "~", "!", "*", "+", "|", "^", "`", "'", "$", "%", "&", "#"];

/// The signs that are read as `-` most often (CGI, WSGI, PHP).
pub(super) const USUAL_SIGNS: [&str; 4] = ["-", "_", ".", "~"];

/// The name with another sign between its words.
pub(super) fn spelled(name: &str, sign: &str) -> String {
    name.replace('-', sign)
}

/// The name with another sign only between its last two words.
pub(super) fn half_spelled(name: &str, sign: &str) -> Option<String> {
    let (before, after) = name.rsplit_once('-')?;
    before.contains('-').then(|| format!("{before}{sign}{after}"))
}
