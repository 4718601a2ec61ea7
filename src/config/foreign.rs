//! Recognises files in languages other than TOML by their first line.

use super::problem::Problem;

/// The language of a file that is not TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    Json,
    Yaml,
    Nginx,
}

impl Language {
    /// The problem has no place, so nothing of the file is shown: secrets in another language are
    /// not recognised.
    pub(super) fn problem(self) -> Problem {
        let (name, help) = match self {
            Self::Json => ("JSON", "write `\"server\": {\"workers\": 2}` as"),
            Self::Yaml => ("YAML", "write `server:` with `workers: 2` below it as"),
            Self::Nginx => ("an nginx configuration", "a section and its keys look like this:"),
        };
        Problem::error(None, format!("the file looks like {name}; expected TOML"))
            .help(format!("{help}\n\n[server]\nworkers = 2"))
    }
}

/// The language of a text that is not TOML. `None` if it is not recognised, or if the text is TOML
/// with errors.
pub(super) fn language(text: &str) -> Option<Language> {
    let line = text
        .trim_start_matches('\u{feff}')
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))?;
    if line.starts_with('{') {
        return Some(Language::Json);
    }
    if line == "---" || line.starts_with("%YAML") {
        return Some(Language::Yaml);
    }
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let is_yaml = line
        .split_once(':')
        .is_some_and(|(key, value)| is_word(key) && (value.is_empty() || value.starts_with(' ')));
    if is_yaml {
        return Some(Language::Yaml);
    }
    let directive = line.split_once(' ').is_some_and(|(name, _)| is_word(name));
    let is_nginx = directive && line.ends_with(['{', ';']) && !line.contains('=');
    is_nginx.then_some(Language::Nginx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_is_recognised_by_its_first_line() {
        for (text, wanted) in [
            ("{\n  \"server\": {}\n}\n", Some(Language::Json)),
            ("# a comment\n\nserver:\n  workers: 2\n", Some(Language::Yaml)),
            ("---\nroute: []\n", Some(Language::Yaml)),
            ("listen: 127.0.0.1:8080\n", Some(Language::Yaml)),
            ("server {\n    listen 80;\n}\n", Some(Language::Nginx)),
            ("worker_processes auto;\n", Some(Language::Nginx)),
            ("", None),
            ("[server\n", None),
            ("server = {\n", None),
            ("url = http://127.0.0.1;\n", None),
            ("path /reports\n", None),
        ] {
            assert_eq!(language(text), wanted, "{text}");
        }
    }
}
