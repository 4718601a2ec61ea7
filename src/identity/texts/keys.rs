//! The keys of the files with texts. Each file has all of them and no others.

use serde::Deserialize;

/// Declares a table of texts.
macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $kind),* }
    };
}

texts!(
    /// The texts of one language.
    Texts {
        language: String,
        /// `ltr` or `rtl`.
        direction: String,
        frame: Frame,
        wait: Wait,
        outcome: Outcomes,
    }
);

texts!(
    /// What every page has.
    Frame { error: String, one_problem: String, problems: String }
);

texts!(
    /// Spans of time.
    Wait { second: String, seconds: String, minutes: String }
);

texts!(
    /// Pages for requests to an application that were refused or that failed.
    Outcomes {
        you_are: String,
        log_in: String,
        other_login: String,
        again: String,
        back: String,
        fine_print: String,
        check: String,
        target: Outcome,
        request: Outcome,
        login: Outcome,
        logged_out: Outcome,
        denied: Outcome,
        foreign: Outcome,
        not_found: Outcome,
        method: Outcome,
        too_large: Outcome,
        limited: Outcome,
        unreachable: Outcome,
        failed: Outcome,
        timeout: Outcome,
        unavailable: Outcome,
    }
);

texts!(
    /// What happened.
    Outcome { title: String, text: String }
);
