//! Every file is accepted or refused without a panic, and a secret in it is never printed.
//!
//! Input: a file. `@secret@` is replaced with a line that contains a secret.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use portcullis::config::value::CreateFiles;
use portcullis::config::{self, Problems};
use portcullis::gateway::Snapshot;
use portcullis::compile::CompileOptions;
use portcullis::telemetry::metrics::Metrics;

const SECRET: &str = "correct-horse-battery-staple";

static READY: LazyLock<()> = LazyLock::new(portcullis::token::install_crypto);

fuzz_target!(|data: &[u8]| {
    LazyLock::force(&READY);
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A path of this machine could be an endless device.
    if text.contains("/dev") || text.contains("/proc") || text.contains("/sys") {
        return;
    }
    // The fuzzer learns the secret from comparisons, and writes it where nobody would take it for one.
    if text.contains(SECRET) {
        return;
    }
    let line = format!("secret = \"{SECRET}\"\n");
    let shown = |problems: &Problems| {
        let outputs = [problems.draw(false), problems.draw(true), problems.to_json().to_string(), format!("{problems:?}")];
        outputs.map(|output| output.contains(SECRET))
    };
    // In a comment or a longer string, it is not recognisable as a secret.
    let in_text = ["'''", "\"\"\""].iter().any(|quotes| text.contains(quotes));
    let written = text.replace("\n@secret@\n", &format!("\n{line}"));
    let must_hide = written != text && !in_text;

    let path = Path::new("/nonexistent/gateway.toml");
    let problems = match config::parse(path, written) {
        Err(problems) => problems,
        Ok(loaded) => {
            let options = CompileOptions { previous: None, create: CreateFiles::No, metrics: &Metrics::new(), now: 1_780_000_000 };
            match Snapshot::compile(loaded, &options) {
                Ok(compiled) => compiled.warnings,
                Err(problems) => {
                    assert!(problems.has_errors());
                    problems
                }
            }
        }
    };
    let [plain, coloured, json, _debug] = shown(&problems);
    assert!(!(must_hide && (plain || coloured || json)), "a secret is printed:\n{}", problems.draw(false));
});
