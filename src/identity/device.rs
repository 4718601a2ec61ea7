//! What people call the browser or program of a session.

use super::texts::{SessionsTexts, filled};

/// The name of a browser or program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DeviceName {
    /// A browser, and its operating system if it is known.
    Browser(&'static str, Option<&'static str>),
    /// What a program calls itself.
    Program(String),
    /// Nothing is known.
    Unknown,
}

/// The browser and the operating system, by their usual names, or what the program calls itself.
pub(super) fn device(user_agent: &str) -> DeviceName {
    let first = |names: &[(&str, &'static str)]| {
        names.iter().find(|(mark, _)| user_agent.contains(mark)).map(|(_, name)| *name)
    };
    match (first(&BROWSERS), first(&SYSTEMS)) {
        (Some(browser), system) => DeviceName::Browser(browser, system),
        _ if user_agent.trim().is_empty() => DeviceName::Unknown,
        _ => DeviceName::Program(
            user_agent.chars().filter(|letter| !letter.is_control()).take(60).collect(),
        ),
    }
}

impl DeviceName {
    /// The name, in the language of a reader.
    pub(super) fn in_words(&self, words: &SessionsTexts) -> String {
        match self {
            Self::Browser(browser, Some(system)) => {
                filled(&words.device, &[("browser", browser), ("system", system)])
            }
            Self::Browser(browser, None) => (*browser).to_owned(),
            Self::Program(name) => name.clone(),
            Self::Unknown => words.program.clone(),
        }
    }
}

/// The part of a user agent that identifies a browser. Each entry also claims to be those below it.
const BROWSERS: [(&str, &str); 8] = [
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS", "Firefox"),
    ("Chrom", "Chrome"),
    ("CriOS", "Chrome"),
    ("Safari/", "Safari"),
];

/// The part of a user agent that identifies a system. Each entry also claims to be those below it.
const SYSTEMS: [(&str, &str); 7] = [
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::texts::Language;

    #[test]
    fn devices_have_their_usual_names() {
        let words = &Language::English.texts().sessions;
        for (user_agent, wanted) in [
            (
                "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
                "Chrome on Linux",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:140.0) Gecko/20100101 Firefox/140.0",
                "Firefox on macOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
            ),
            ("curl/8.14.1", "curl/8.14.1"),
            ("", "A program"),
        ] {
            assert_eq!(device(user_agent).in_words(words), wanted);
        }
    }
}
