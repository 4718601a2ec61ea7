//! Words of a closed set, and how messages quote and list them.

use crate::config::file::Text;
use crate::config::problem::Problem;

/// Parses one of a few words.
pub fn choice<T: Copy>(text: &Text, words: &[(&str, T)]) -> Result<T, Problem> {
    let written = text.get_ref().as_str();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == written) {
        return Ok(*meaning);
    }
    let list = list(words.iter().map(|(word, _)| format!("`\"{word}\"`")), "or");
    let problem =
        Problem::error(text.span(), format!("{} is not one of the choices", quoted(written)));
    Err(match nearest(written, words.iter().map(|(word, _)| *word)) {
        Some(word) => problem.help(format!("did you mean `\"{word}\"`? The choices are {list}")),
        None => problem.help(format!("write {list}")),
    })
}

/// The candidate that was probably meant: equal except for case and separators, or a few typing
/// errors away.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are not typing errors, and the comparison is quadratic.
    if word.len() > 64 {
        return None;
    }
    let folded = fold(word);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let against = fold(candidate);
        if against == folded {
            return Some(candidate);
        }
        let (length, other) = (folded.chars().count(), against.chars().count());
        let allowed = (length.max(other) / 3).max(1);
        if length < 2 || length.abs_diff(other) > allowed {
            continue;
        }
        let distance = strsim::osa_distance(&folded, &against);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The letters in lower case, without word separators.
fn fold(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' ' | '.'))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// `a, b or c`
pub(in crate::config) fn list(items: impl IntoIterator<Item = String>, last: &str) -> String {
    let mut items: Vec<String> = items.into_iter().collect();
    let Some(end) = items.pop() else { return String::new() };
    if items.is_empty() { end } else { format!("{} {last} {end}", items.join(", ")) }
}

/// The written value for a message: in backticks and shortened.
pub(in crate::config) fn quoted(written: &str) -> String {
    const SHOWN: usize = 60;
    match written.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`\"{}…\"`", &written[..end]),
        None => format!("`\"{written}\"`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message_of, text};
    use super::*;

    #[test]
    fn choices() {
        let words = [("authenticated", 1), ("optional", 2), ("public", 3)];
        let list = "`\"authenticated\"`, `\"optional\"` or `\"public\"`";
        assert_eq!(choice(&text("public"), &words).ok(), Some(3));
        let wanted = format!(
            "`\"Public\"` is not one of the choices; did you mean `\"public\"`? The choices are {list}"
        );
        assert_eq!(message_of(choice(&text("Public"), &words)), wanted);
        assert_eq!(
            message_of(choice(&text("nobody"), &words)),
            format!("`\"nobody\"` is not one of the choices; write {list}")
        );
    }

    #[test]
    fn the_nearest_word() {
        let words = ["trusted_proxies", "listen", "workers", "path", "host", "h2c"];
        for (word, wanted) in [
            ("trusted-proxies", Some("trusted_proxies")),
            ("trustedProxies", Some("trusted_proxies")),
            ("trusted_proxy", Some("trusted_proxies")),
            ("lsiten", Some("listen")),
            ("worker", Some("workers")),
            ("paht", Some("path")),
            ("h2", Some("h2c")),
            ("x", None),
            ("", None),
            ("upstream", None),
        ] {
            assert_eq!(nearest(word, words), wanted, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), words), None);
    }
}
