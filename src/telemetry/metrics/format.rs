//! The two formats of `/metrics`: OpenMetrics, which the library writes, and the older Prometheus
//! text format, the only one that some agents read.

use std::fmt::Write;

/// The output format of [`Metrics::encode_as`](super::Metrics::encode_as).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format, 0.0.4.
    Prometheus,
}

impl Format {
    /// Selects the format for an `Accept` field (RFC 9110 §12.5.1): the Prometheus format only if
    /// it is preferred.
    pub fn accepted(accept: &str) -> Self {
        let text = weight(accept, "text", "plain");
        let open = weight(accept, "application", "openmetrics-text");
        if text > open { Self::Prometheus } else { Self::OpenMetrics }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The weight of a media type, from 0 to 1. The most specific range counts.
fn weight(accept: &str, kind: &str, subtype: &str) -> f32 {
    let mut best = (0, 0.0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let exactness = match name.split_once('/') {
            Some(("*", "*")) => 1,
            Some((found, "*")) if found.eq_ignore_ascii_case(kind) => 2,
            Some((found, below))
                if found.eq_ignore_ascii_case(kind) && below.eq_ignore_ascii_case(subtype) =>
            {
                3
            }
            _ => continue,
        };
        let q = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        let q = q.map_or(1.0, |q| q.trim().parse::<f32>().unwrap_or(0.0).clamp(0.0, 1.0));
        if (exactness, q) > best {
            best = (exactness, q);
        }
    }
    best.1
}

/// Converts the library's output. In the older format, a counter's family has the same name as its
/// samples, there is no type `info`, and neither units nor the end are marked.
pub(super) fn prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.extend([line, "\n"]);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            // The name depends on the type, which comes next.
            (Some("HELP"), Some(name), text) => help = Some((name, text.unwrap_or_default())),
            (Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                let text =
                    help.take().filter(|(named, _)| *named == name).map_or("", |help| help.1);
                // Writing to a string cannot fail.
                let _ = write!(out, "# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}\n");
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_is_written_if_preferred() {
        for (accept, wanted) in [
            ("", Format::OpenMetrics),
            ("*/*", Format::OpenMetrics),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Format::OpenMetrics),
            ("text/plain", Format::Prometheus),
            ("text/plain; version=0.0.4", Format::Prometheus),
            ("TEXT/plain;version=0.0.4;q=1,*/*;q=0.1", Format::Prometheus),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.4", Format::Prometheus),
            // Prometheus 2 and 3.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("application/json", Format::OpenMetrics),
            ("text/plain;q=0", Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn features_missing_in_prometheus_text_are_rewritten() {
        let open = "# HELP a Many.\n# TYPE a counter\na_total{x=\"# TYPE b info\"} 1\n\
                    # HELP b The version.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP c_seconds How long.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\nc_seconds_sum 0.5\n# EOF\n";
        let wanted = "# HELP a_total Many.\n# TYPE a_total counter\na_total{x=\"# TYPE b info\"} 1\n\
                      # HELP b_info The version.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
                      # HELP c_seconds How long.\n# TYPE c_seconds histogram\nc_seconds_sum 0.5\n";
        assert_eq!(prometheus(open), wanted);
    }
}
