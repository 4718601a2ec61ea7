//! What people read, in each language. The texts are compiled in: one TOML file for each language,
//! all with the same keys.

mod keys;

use std::sync::LazyLock;

pub(crate) use self::keys::{
    AccountTexts, EchoTexts, Mail, Outcome, SecondFactorTexts, SessionsTexts, Texts, TokensTexts,
    UnsentTexts, WrongTexts,
};

/// A language that the pages and mails speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `en`
    English,
    /// `de`
    German,
}

impl Language {
    /// Every language, with its name in the configuration.
    pub const ALL: [(&'static str, Self); 2] = [("en", Self::English), ("de", Self::German)];

    /// Its texts.
    pub(crate) fn texts(self) -> &'static Texts {
        &TEXTS[self as usize]
    }
}

/// The language of `offered` that a reader prefers, by `Accept-Language` (RFC 9110 §12.5.4);
/// otherwise the first one. `de` serves `de-AT`, too.
pub fn preferred(offered: &[Language], accept: Option<&str>) -> Language {
    let mut best = (0.0, offered.first().copied().unwrap_or(Language::English));
    for range in accept.unwrap_or_default().split(',').take(MOST_RANGES) {
        let (tag, weight) = range.split_once(';').unwrap_or((range, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|text| text.parse().ok());
        let primary = tag.trim().split('-').next().unwrap_or_default();
        let spoken = |(name, language): &(&str, Language)| {
            (name.eq_ignore_ascii_case(primary) && offered.contains(language)).then_some(*language)
        };
        if let (Some(weight), Some(language)) = (weight, Language::ALL.iter().find_map(spoken))
            && weight > best.0
        {
            best = (weight, language);
        }
    }
    best.1
}

/// Replaces each `{name}` in a text.
pub fn filled(text: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(text.len() + 32);
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let (name, after) = after.split_once('}').unwrap_or((after, ""));
        // A test compares the names in all languages, so each of them has a value.
        let value = values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// English, if nothing is known about the reader.
impl Default for &'static Texts {
    fn default() -> Self {
        Language::English.texts()
    }
}

impl Texts {
    /// A span of time, as in "try again in …".
    pub(crate) fn wait(&self, seconds: u64) -> String {
        let (text, number) = match seconds {
            0 | 1 => (&self.wait.second, 1),
            2..=90 => (&self.wait.seconds, seconds),
            _ => (&self.wait.minutes, seconds.div_ceil(60)),
        };
        filled(text, &[("number", &number.to_string())])
    }
}

/// In the order of [`Language`].
static TEXTS: LazyLock<[Texts; 2]> = LazyLock::new(|| {
    [include_str!("en.toml"), include_str!("de.toml")]
        .map(|file| toml::from_str(file).expect("a test reads the files, which are compiled in"))
});

/// More than browsers send.
const MOST_RANGES: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Each text, by its key.
    fn texts(file: &str) -> BTreeMap<String, String> {
        fn walk(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
            for (key, value) in table {
                let key = format!("{prefix}{key}");
                match value {
                    toml::Value::Table(table) => walk(&format!("{key}."), table, found),
                    toml::Value::String(text) => drop(found.insert(key, text.clone())),
                    _ => panic!("{key} is not a text"),
                }
            }
        }
        let mut found = BTreeMap::new();
        walk("", &toml::from_str(file).unwrap(), &mut found);
        found
    }

    fn names(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> =
            text.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_language_has_the_same_texts_with_the_same_values() {
        let (english, german) = (texts(include_str!("en.toml")), texts(include_str!("de.toml")));
        assert_eq!(english.keys().collect::<Vec<_>>(), german.keys().collect::<Vec<_>>());
        for (key, text) in &english {
            let translated = &german[key];
            assert!(!text.trim().is_empty() && !translated.trim().is_empty(), "{key}");
            assert_eq!(names(text), names(translated), "{key}");
            let is_alike = ["direction", "account.name", "tokens.roles"].contains(&key.as_str());
            assert!(text != translated || is_alike, "{key} is not translated");
        }
        for (name, language) in Language::ALL {
            assert_eq!(language.texts().language, name);
        }
    }

    #[test]
    fn a_reader_chooses_among_the_languages_that_are_offered() {
        use Language::{English, German};
        for (offered, accept, chosen) in [
            (&[English, German][..], None, English),
            (&[German, English], None, German),
            (&[English, German], Some("de-AT,de;q=0.9,en;q=0.8"), German),
            (&[English, German], Some("fr, en;q=0.2, DE;q=0.5"), German),
            (&[English, German], Some("en-GB,de"), English),
            (&[German], Some("en"), German),
            (&[German, English], Some("fr"), German),
            (&[German, English], Some("en;q=0, *"), German),
            (&[English, German], Some("de;q=x,;;,"), English),
        ] {
            assert_eq!(preferred(offered, accept), chosen, "{accept:?}");
        }
    }

    #[test]
    fn values_are_filled_in_once() {
        assert_eq!(filled("{a} and {b}.", &[("a", "{b}"), ("b", "2")]), "{b} and 2.");
        let english = Language::English.texts();
        assert_eq!(
            [1, 90, 91].map(|seconds| english.wait(seconds)),
            ["a second", "90 seconds", "2 minutes"]
        );
    }
}
