//! The access log: one line per request.

use std::time::Duration;

use super::escape::{escaped, json, milliseconds, number, print, quoted, timestamp, word};
use super::log::Format;

/// What the access log records about a request. There are no fields for a query, a header, a cookie
/// or a body.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// When the request arrived, as the time since 1970, up to the end of the year 9999.
    pub timestamp: Duration,
    /// The request's id.
    pub request_id: &'a str,
    /// The trace id: hexadecimal digits.
    pub trace_id: &'a str,
    /// The address of the client: the peer, or the address that a trusted proxy named.
    pub client_address: Option<&'a str>,
    /// The method, as received.
    pub method: &'a str,
    /// The path without its query, as received.
    pub path: &'a str,
    /// The name of the route.
    pub route: Option<&'a str>,
    /// The status of the response.
    pub status: u16,
    /// The time from the first byte of the head to the end of the body or tunnel.
    pub duration: Duration,
    /// The time from sending the request to the head of the upstream's response.
    pub upstream: Option<Duration>,
    /// The number of body bytes that the client sent.
    pub bytes_in: u64,
    /// The number of body bytes that the client received.
    pub bytes_out: u64,
    /// `allowed`, `refused`, `would_refuse` or `failed`.
    pub outcome: &'static str,
    /// The stable code of the decision.
    pub reason: &'static str,
    /// The proxy that asked about the request, if one did.
    pub via: Option<&'static str>,
    /// The authenticated caller.
    pub caller: LoggedCaller<'a>,
}

/// What the access log records about a caller.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoggedCaller<'a> {
    /// The issuer that vouches for the caller.
    pub issuer: Option<&'a str>,
    /// The caller's subject.
    pub subject: Option<&'a str>,
    /// The caller's session.
    pub sid: Option<&'a str>,
    /// These three as [`LoggedCaller::json`] wrote them earlier, for remembered callers.
    pub written: Option<&'a str>,
}

impl LoggedCaller<'_> {
    /// The members of the JSON line that describe the caller.
    pub fn json(&self) -> Box<str> {
        let mut out = Vec::new();
        self.write_json(&mut out);
        String::from_utf8(out).unwrap_or_default().into_boxed_str()
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        if let Some(written) = self.written {
            return out.extend_from_slice(written.as_bytes());
        }
        out.extend_from_slice(b"\"issuer\":");
        json_or_null(out, self.issuer);
        out.extend_from_slice(b",\"subject\":");
        json_or_null(out, self.subject);
        out.extend_from_slice(b",\"sid\":");
        json_or_null(out, self.sid);
    }
}

impl AccessRecord<'_> {
    /// Appends the record in `format`.
    pub fn write(&self, format: Format, out: &mut Vec<u8>) {
        match format {
            Format::Json => self.write_json(out),
            Format::Text => self.write_text(out),
        }
    }

    /// Appends one flat JSON object and a line feed. The names are part of the contract.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"timestamp\":\"");
        timestamp(out, self.timestamp);
        out.extend_from_slice(b"\",\"request_id\":");
        json(out, self.request_id);
        out.extend_from_slice(b",\"trace_id\":");
        word(out, self.trace_id);
        out.extend_from_slice(b",\"client.address\":");
        match self.client_address {
            Some(client) => word(out, client),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"http.request.method\":");
        json(out, self.method);
        out.extend_from_slice(b",\"url.path\":");
        json(out, self.path);
        out.extend_from_slice(b",\"http.route\":");
        json_or_null(out, self.route);
        out.extend_from_slice(b",\"http.response.status_code\":");
        number(out, self.status.into());
        out.extend_from_slice(b",\"duration_ms\":");
        milliseconds(out, self.duration);
        out.extend_from_slice(b",\"upstream_ms\":");
        match self.upstream {
            Some(upstream) => milliseconds(out, upstream),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"bytes_in\":");
        number(out, self.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        number(out, self.bytes_out);
        out.extend_from_slice(b",\"outcome\":");
        word(out, self.outcome);
        out.extend_from_slice(b",\"reason\":");
        word(out, self.reason);
        out.push(b',');
        self.caller.write_json(out);
        if let Some(via) = self.via {
            out.extend_from_slice(b",\"via\":");
            word(out, via);
        }
        out.extend_from_slice(b"}\n");
    }

    /// Appends one human-readable line and a line feed. Anything that a client can choose is quoted
    /// and escaped.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        timestamp(out, self.timestamp);
        out.push(b' ');
        escaped(out, self.method);
        out.push(b' ');
        quoted(out, self.path);
        print(out, format_args!(" {} ", self.status));
        milliseconds(out, self.duration);
        print(out, format_args!("ms {} {}", self.outcome, self.reason));
        if let Some(address) = self.client_address {
            print(out, format_args!(" client={address}"));
        }
        if let Some(upstream) = self.upstream {
            out.extend_from_slice(b" upstream=");
            milliseconds(out, upstream);
            out.extend_from_slice(b"ms");
        }
        print(out, format_args!(" in={} out={}", self.bytes_in, self.bytes_out));
        for (name, value) in [
            ("route", self.route),
            ("via", self.via),
            ("issuer", self.caller.issuer),
            ("subject", self.caller.subject),
            ("sid", self.caller.sid),
            ("request_id", Some(self.request_id)),
            ("trace_id", Some(self.trace_id)),
        ] {
            if let Some(value) = value {
                print(out, format_args!(" {name}="));
                quoted(out, value);
            }
        }
        out.push(b'\n');
    }
}

fn json_or_null(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => json(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn record<'a>(path: &'a str, subject: Option<&'a str>) -> AccessRecord<'a> {
        AccessRecord {
            timestamp: Duration::from_micros(1_700_000_000_000_001),
            request_id: "r1",
            trace_id: "t1",
            client_address: Some("192.0.2.1"),
            method: "GET",
            path,
            route: None,
            status: 200,
            duration: Duration::from_micros(1_234_567),
            upstream: None,
            bytes_in: 0,
            bytes_out: u64::MAX,
            outcome: "allowed",
            reason: "authorized",
            via: None,
            caller: LoggedCaller { subject, ..LoggedCaller::default() },
        }
    }

    fn line(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_json_line_has_the_exact_documented_form() {
        let mut full = record("/reports/q3", Some("u-17"));
        (full.route, full.upstream, full.caller.sid) =
            (Some("reports"), Some(Duration::from_millis(3)), Some("s"));
        let text = line(|out| full.write_json(out));
        full.via = Some("nginx");
        let asked = line(|out| full.write_json(out));
        assert_eq!(asked, text.replace("}\n", ",\"via\":\"nginx\"}\n"));
        full.via = None;
        let written = full.caller.json();
        full.caller = LoggedCaller { written: Some(&written), ..LoggedCaller::default() };
        assert_eq!(line(|out| full.write_json(out)), text);
        assert_eq!(
            text,
            concat!(
                r#"{"timestamp":"2023-11-14T22:13:20.000001Z","request_id":"r1","trace_id":"t1","client.address":"192.0.2.1","#,
                r#""http.request.method":"GET","url.path":"/reports/q3","http.route":"reports","http.response.status_code":200,"#,
                r#""duration_ms":1234.567,"upstream_ms":3.000,"bytes_in":0,"bytes_out":18446744073709551615,"outcome":"allowed","#,
                r#""reason":"authorized","issuer":null,"subject":"u-17","sid":"s"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn absent_fields_are_null() {
        let mut bare = record("/", None);
        bare.client_address = None;
        let value: Value = serde_json::from_str(&line(|out| bare.write_json(out))).unwrap();
        for name in ["client.address", "http.route", "upstream_ms", "issuer", "subject", "sid"] {
            assert_eq!(value[name], Value::Null, "{name}");
        }
        assert_eq!(value.as_object().unwrap().len(), 17);
    }

    #[test]
    fn the_text_line_is_readable() {
        assert_eq!(
            line(|out| record("/a\n2023 forged", Some("u\" x=\"")).write_text(out)),
            "2023-11-14T22:13:20.000001Z GET \"/a\\n2023 forged\" 200 1234.567ms allowed authorized client=192.0.2.1 in=0 \
             out=18446744073709551615 subject=\"u\\\" x=\\\"\" request_id=\"r1\" trace_id=\"t1\"\n"
        );
    }

    proptest! {
        #[test]
        fn every_record_is_one_parseable_json_line(path in any::<String>(), subject in any::<Option<String>>(), method in any::<String>()) {
            let mut record = record(&path, subject.as_deref());
            record.method = &method;
            let text = line(|out| record.write_json(out));
            prop_assert_eq!(text.bytes().filter(|byte| *byte < 0x20).count(), 1);
            let value: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&value["url.path"], &json!(path));
            prop_assert_eq!(&value["subject"], &json!(subject));
            prop_assert_eq!(&value["http.request.method"], &json!(method));
            let text = line(|out| record.write_text(out));
            prop_assert_eq!(text.chars().filter(|letter| letter.is_control()).count(), 1);
        }
    }
}
