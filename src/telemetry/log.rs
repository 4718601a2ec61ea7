//! Events of the gateway itself. They are written the same way as the access log.
//!
//! Spans are not used: a request is one line of the access log, not a tree. `RUST_LOG` is not read;
//! the configuration file determines what is logged.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::escape::{escaped, json, print, quoted, timestamp};
use super::writer::LogWriter;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One flat JSON object per line.
    Json,
    /// For people. Without colours, which a file or a log collector could not show.
    Text,
}

/// Sends the events of this process to `writer` from now on. Fails if a subscriber was installed
/// before.
///
/// Events of `level` and above are written, but never below `info` for libraries: some of them
/// write whole request heads at `debug`, including tokens. `now` returns the time since 1970.
/// Warnings and errors wait briefly for room in a full queue; everything else is dropped and
/// counted.
pub fn init(
    format: Format,
    level: Level,
    writer: LogWriter,
    now: impl Fn() -> Duration + Send + Sync + 'static,
) -> Result<(), TryInitError> {
    subscriber(format, level, writer, now).try_init()
}

fn subscriber(
    format: Format,
    level: Level,
    writer: LogWriter,
    now: impl Fn() -> Duration + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync + 'static {
    // Audit events are written at every level.
    let filter = Targets::new()
        .with_target(OUR_CRATE, level)
        .with_target(AUDIT, Level::INFO)
        .with_default(level.min(Level::INFO));
    tracing_subscriber::registry().with(Lines { format, writer, now }.with_filter(filter))
}

/// Writes each event as a line.
struct Lines<N> {
    format: Format,
    writer: LogWriter,
    now: N,
}

impl<S, N> Layer<S> for Lines<N>
where
    S: Subscriber + for<'a> registry::LookupSpan<'a>,
    N: Fn() -> Duration + 'static,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields { format: self.format, message: String::new(), rest: Vec::new() };
        event.record(&mut fields);
        let level = *event.metadata().level();
        LINE.with_borrow_mut(|line| {
            line.clear();
            fields.finish(level, (self.now)(), line);
            if level <= Level::WARN {
                self.writer.line_within(line, QUEUE_WAIT);
            } else {
                self.writer.try_line(line);
            }
        });
    }
}

/// The fields of one event. The message is separate because it comes first.
struct Fields {
    format: Format,
    message: String,
    rest: Vec<u8>,
}

impl Fields {
    fn finish(&self, level: Level, now: Duration, line: &mut Vec<u8>) {
        match self.format {
            Format::Json => {
                line.extend_from_slice(b"{\"timestamp\":\"");
                timestamp(line, now);
                line.extend_from_slice(b"\",\"level\":");
                json(line, &level.as_str().to_ascii_lowercase());
                line.extend_from_slice(b",\"message\":");
                json(line, &self.message);
                line.extend_from_slice(&self.rest);
                line.extend_from_slice(b"}\n");
            }
            Format::Text => {
                timestamp(line, now);
                print(line, format_args!(" {level:>5} "));
                escaped(line, &self.message);
                line.extend_from_slice(&self.rest);
                line.push(b'\n');
            }
        }
    }

    /// Writes a value that looks the same in both formats: a number or a boolean.
    fn plain(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.name(field) {
            print(&mut self.rest, value);
        }
    }

    /// Writes a field's name. Returns false if the field must not be shown.
    fn name(&mut self, field: &Field) -> bool {
        // The `log` bridge adds fields about the library's source code.
        let name = field.name();
        if name.starts_with("log.") {
            return false;
        }
        match self.format {
            Format::Json => {
                self.rest.push(b',');
                // A name may occur only once in a JSON object; the first three belong to the gateway.
                let ours = matches!(name, "timestamp" | "level");
                json(&mut self.rest, &if ours { format!("field.{name}") } else { name.into() });
                self.rest.push(b':');
            }
            Format::Text => print(&mut self.rest, format_args!(" {name}=")),
        }
        true
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else if self.name(field) {
            match self.format {
                Format::Json => json(&mut self.rest, value),
                Format::Text => quoted(&mut self.rest, value),
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON cannot represent infinity.
        if value.is_finite() {
            self.plain(field, format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The target of events about accounts.
pub const AUDIT: &str = "audit";
const OUR_CRATE: &str = env!("CARGO_CRATE_NAME");
/// How long a warning may block its thread while the queue is full.
const QUEUE_WAIT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: Level, events: impl FnOnce()) -> String {
        let kept = Captured::default();
        let (writer, guard) = LogWriter::start(kept.clone()).unwrap();
        let subscriber = subscriber(format, level, writer, || Duration::from_secs(1_700_000_000));
        tracing::subscriber::with_default(subscriber, events);
        drop(guard);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    fn events() {
        let error = std::io::Error::other("no \"such\"\nthing");
        tracing::warn!(file = "gateway.toml", line = 7, ok = false, ratio = 0.5, nothing = f64::NAN, %error, "reload {}", "failed");
        tracing::info!(level = "mine");
    }

    #[test]
    fn events_are_flat_json() {
        let text = logged(Format::Json, Level::INFO, events);
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(text.starts_with(r#"{"timestamp":"2023-11-14T22:13:20.000000Z","level":"warn","message":"reload failed","#));
        assert_eq!(
            lines[0],
            json!({
                "timestamp": "2023-11-14T22:13:20.000000Z", "level": "warn", "message": "reload failed", "file": "gateway.toml",
                "line": 7, "ok": false, "ratio": 0.5, "nothing": "NaN", "error": "no \"such\"\nthing",
            })
        );
        assert_eq!(lines[1]["level"], "info");
        assert_eq!(lines[1]["field.level"], "mine");
    }

    #[test]
    fn events_are_readable_text() {
        let text = logged(Format::Text, Level::INFO, events);
        assert_eq!(
            text,
            concat!(
                "2023-11-14T22:13:20.000000Z  WARN reload failed file=\"gateway.toml\" line=7 ok=false ratio=0.5 nothing=\"NaN\" ",
                "error=\"no \\\"such\\\"\\nthing\"\n",
                "2023-11-14T22:13:20.000000Z  INFO  level=\"mine\"\n",
            )
        );
    }

    #[test]
    fn libraries_never_log_below_info() {
        let mixed = || {
            tracing::trace!("ours, finest");
            tracing::debug!(target: "h2::codec", "authorization: Bearer secret");
            tracing::info!(target: "h2::codec", "theirs");
            tracing::error!(target: "h2::codec", "broken");
        };
        let messages = |level| {
            logged(Format::Text, level, mixed)
                .lines()
                .map(|line| line[34..].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(messages(Level::TRACE), ["ours, finest", "theirs", "broken"]);
        assert_eq!(messages(Level::ERROR), ["broken"]);
    }
}
